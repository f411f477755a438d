-- Records as they are here, without a fence. ARGV: 2 and on: ids. Answers id and record for those there are.
if not intact then
    return answer(false)
end
local found = {}
for i = 2, #ARGV do
    local stored = redis.call('HGET', KEYS[3], ARGV[i])
    if stored then
        found[#found + 1] = ARGV[i]
        found[#found + 1] = stored
    end
end
return answer(true, found)
