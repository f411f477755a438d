-- PROTOCOL 1. ARGV: 3 value of the lock, 4 whether to say so.
if owner ~= ARGV[3] then
    return answer(false)
end
redis.call('DEL', KEYS[1])
if ARGV[4] == '1' then
    publish('free ' .. ARGV[3])
end
return answer(true)
