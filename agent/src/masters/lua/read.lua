-- PROTOCOL 2: the fenced read. ARGV: 2 token.
if not intact or promised ~= tonumber(ARGV[2]) then
    return answer(false)
end
return answer(true, redis.call('HGETALL', KEYS[3]))
