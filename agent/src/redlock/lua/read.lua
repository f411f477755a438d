-- PROTOCOL 2: the fenced read. ARGV: 3 token.
if promised ~= tonumber(ARGV[3]) then
    return answer(false)
end
return answer(true, redis.call('HGETALL', KEYS[3]))
