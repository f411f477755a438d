-- PROTOCOL 1. ARGV: 3 token, 4 value of the lock, 5 how my values begin, 6 revision, 7 ttl in ms.
local token = tonumber(ARGV[3])
local mine = owner and string.sub(owner, 1, #ARGV[5]) == ARGV[5]
if (owner and not mine) or token <= promised or tonumber(stand or '0') > tonumber(ARGV[6]) then
    return answer(false)
end
promised = token
redis.call('HSET', KEYS[2], 'promised', ARGV[3])
redis.call('SET', KEYS[1], ARGV[4], 'PX', ARGV[7])
return answer(true)
