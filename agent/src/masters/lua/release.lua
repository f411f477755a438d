-- PROTOCOL 1. ARGV: 2 value of the lock, 3 whether to say so.
if owner ~= ARGV[2] then
    return answer(false)
end
redis.call('DEL', KEYS[1])
if ARGV[3] == '1' then
    -- How many hear it, so that they can spread themselves; a user who may not ask is told of a handful.
    local heard = redis.pcall('PUBSUB', 'NUMSUB', ARGV[1])
    publish('free ' .. (heard.err and 8 or heard[2]) .. ' ' .. ARGV[2])
end
return answer(true)
