-- PROTOCOL 8: confirms a mark, and tells what an amnesiac node still holds. ARGV: 2 run, 3 mark.
if intact or run ~= ARGV[2] or mark ~= ARGV[3] then
    return answer(false)
end
return answer(true, redis.call('HGETALL', KEYS[3]))
