-- A candidate of a newer revision makes itself known. ARGV: 3 revision, 4 ttl in ms.
if tonumber(stand or '0') > tonumber(ARGV[3]) then
    return answer(false)
end
stand = ARGV[3]
redis.call('SET', KEYS[4], stand, 'PX', ARGV[4])
publish('stand ' .. ARGV[4] .. ' ' .. stand)
return answer(true)
