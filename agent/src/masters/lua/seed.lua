-- PROTOCOL 7d. ARGV: 2 run, 3 mark, 4 promise, 5 whether somebody has led, then for each record: id and record.
if intact or run ~= ARGV[2] or mark ~= ARGV[3] then
    return answer(false)
end
redis.call('DEL', KEYS[2], KEYS[3])
for i = 6, #ARGV, 2 do
    redis.call('HSET', KEYS[3], ARGV[i], ARGV[i + 1])
end
redis.call('HSET', KEYS[2], 'run', run, 'mark', mark, 'promised', ARGV[4], 'led', ARGV[5], 'epoch', '0',
    'lease', memory[7] or '', 'stands', memory[8] or '')
intact = true
led = ARGV[5] == '1'
promised = tonumber(ARGV[4])
return answer(true)
