-- As a put (PROTOCOL 3) of nothing. ARGV: 2 token, 3 seq, then ids.
if not intact or promised ~= tonumber(ARGV[2]) then
    return answer(false)
end
local token, seq = promised, tonumber(ARGV[3])
for i = 4, #ARGV do
    local stored = redis.call('HGET', KEYS[3], ARGV[i])
    if stored then
        local known = cjson.decode(stored)
        local newest = tonumber(known.t)
        if newest < token or (newest == token and tonumber(known.s) <= seq) then
            redis.call('HDEL', KEYS[3], ARGV[i])
        end
    end
end
return answer(true)
