-- PROTOCOL 1. ARGV: 2 token, 3 value of the lock, 4 how my values begin, 5 revision, 6 ttl in ms.
local token = tonumber(ARGV[2])
local mine = owner and string.sub(owner, 1, #ARGV[4]) == ARGV[4]
if not intact or (owner and not mine) or token <= promised or tonumber(stand or '0') > tonumber(ARGV[5]) then
    return answer(false)
end
promised = token
redis.call('HSET', KEYS[2], 'promised', ARGV[2])
redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[6])
publish('held ' .. ARGV[6] .. ' ' .. ARGV[3])
return answer(true)
