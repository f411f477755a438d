-- PROTOCOL 6. ARGV: 3 id, 4 nonce, 5 result. Refused if the attempt is not the current one.
local stored = redis.call('HGET', KEYS[3], ARGV[3])
if not stored then
    return answer(false)
end
local known = cjson.decode(stored)
if known.r[ARGV[4]] then
    return answer(true)
end
if known.n ~= ARGV[4] then
    return answer(false)
end
known.r[ARGV[4]] = ARGV[5]
redis.call('HSET', KEYS[3], ARGV[3], cjson.encode(known))
return answer(true)
