-- PROTOCOL 7d. ARGV: 2 run, 3 mark, 4 promise, then for each record: id and record.
if intact or run ~= ARGV[2] or mark ~= ARGV[3] then
    return answer(false)
end
redis.call('DEL', KEYS[2], KEYS[3])
for i = 5, #ARGV, 2 do
    redis.call('HSET', KEYS[3], ARGV[i], ARGV[i + 1])
end
redis.call('HSET', KEYS[2], 'run', run, 'mark', mark, 'promised', ARGV[4], 'epoch', '0')
intact = true
promised = tonumber(ARGV[4])
return answer(true)
