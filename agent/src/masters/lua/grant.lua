-- PROTOCOL 1. ARGV: 2 token, 3 value of the lock, 4 how the values of this process begin, 5 revision, 6 ttl in ms,
-- 7 the lock of an earlier process in the pod that may be taken over, or nothing.
local token = tonumber(ARGV[2])
local mine = owner and (string.sub(owner, 1, #ARGV[4]) == ARGV[4] or owner == ARGV[7])
if not intact or (owner and not mine) or token <= promised or tonumber(stand or '0') > tonumber(ARGV[5]) then
    return answer(false)
end
promised = token
redis.call('HSET', KEYS[2], 'promised', ARGV[2])
take(KEYS[1], 'lease', memory[7], ARGV[3], ARGV[6])
publish('held ' .. ARGV[6] .. ' ' .. ARGV[3])
return answer(true)
