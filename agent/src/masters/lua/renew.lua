-- PROTOCOL 1; arms the lock anew where it is missing. ARGV: 2 token, 3 value of the lock, 4 ttl in ms.
if not intact or promised ~= tonumber(ARGV[2]) or (owner and owner ~= ARGV[3]) then
    return answer(false)
end
note_led()
take(KEYS[1], 'lease', memory[7], ARGV[3], ARGV[4])
publish('held ' .. ARGV[4] .. ' ' .. ARGV[3])
return answer(true)
