-- PROTOCOL 1. ARGV: 2 value of the lock, 3 whether to say so.
if owner ~= ARGV[2] then
    return answer(false)
end
redis.call('DEL', KEYS[1])
if ARGV[3] == '1' then
    publish('free ' .. ARGV[2])
end
return answer(true)
