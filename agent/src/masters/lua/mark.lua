-- PROTOCOL 7a. ARGV: 2 mark.
if intact then
    return answer(false)
end
mark = ARGV[2]
redis.call('HSET', KEYS[2], 'marked_run', run, 'marked', mark)
return answer(true)
