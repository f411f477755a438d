-- PROTOCOL 6. ARGV: 3 id, 4 nonce, 5 result. Refused if the attempt is not the current one, unless nothing changes:
-- a result that is there stays, but done goes before given up.
local stored = redis.call('HGET', KEYS[3], ARGV[3])
if not stored then
    return answer(false)
end
local known = cjson.decode(stored)
local result = known.r[ARGV[4]]
if result and (string.sub(result, 1, 1) == '1' or string.sub(ARGV[5], 1, 1) ~= '1') then
    return answer(true)
end
if known.n ~= ARGV[4] then
    return answer(false)
end
known.r[ARGV[4]] = ARGV[5]
redis.call('HSET', KEYS[3], ARGV[3], cjson.encode(known))
return answer(true)
