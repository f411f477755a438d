-- PROTOCOL 6. ARGV: 2 id, 3 nonce, 4 result. Refused if the attempt is not the current one, unless nothing changes:
-- a result that is there stays, but done goes before given up.
local stored = redis.call('HGET', KEYS[3], ARGV[2])
if not intact or not stored then
    return answer(false)
end
local known = cjson.decode(stored)
local result = known.r[ARGV[3]]
if result and (string.sub(result, 1, 1) == '1' or string.sub(ARGV[4], 1, 1) ~= '1') then
    return answer(true)
end
if known.n ~= ARGV[3] then
    return answer(false)
end
known.r[ARGV[3]] = ARGV[4]
redis.call('HSET', KEYS[3], ARGV[2], cjson.encode(known))
return answer(true)
