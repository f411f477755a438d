-- Records as they are here, without a fence. ARGV: 2 '1' for all, 3 and on: ids, else. Answers id and record for those
-- there are.
if not intact then
    return answer(false)
end
if ARGV[2] == '1' then
    return answer(true, redis.call('HGETALL', KEYS[3]))
end
local found = {}
for i = 3, #ARGV do
    local stored = redis.call('HGET', KEYS[3], ARGV[i])
    if stored then
        found[#found + 1] = ARGV[i]
        found[#found + 1] = stored
    end
end
return answer(true, found)
