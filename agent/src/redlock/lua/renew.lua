-- PROTOCOL 1; arms the lock anew where it is missing. ARGV: 3 token, 4 value of the lock, 5 ttl in ms.
if promised ~= tonumber(ARGV[3]) or (owner and owner ~= ARGV[4]) then
    return answer(false)
end
redis.call('SET', KEYS[1], ARGV[4], 'PX', ARGV[5])
publish('held ' .. ARGV[5] .. ' ' .. ARGV[4])
return answer(true)
