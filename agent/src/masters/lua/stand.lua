-- A candidate of a newer revision makes itself known. ARGV: 2 revision, 3 ttl in ms.
if tonumber(stand or '0') > tonumber(ARGV[2]) then
    return answer(false)
end
stand = ARGV[2]
take(KEYS[4], 'stands', memory[8], stand, ARGV[3])
publish('stand ' .. ARGV[3] .. ' ' .. stand)
return answer(true)
