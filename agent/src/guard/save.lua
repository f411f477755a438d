-- Keeps what the guard remembers, unless a leader with a higher token has been here: its token, or 0 if there is none.
--   KEYS  the guard's memory
--   ARGV  the leader's token, how many fields there are, the fields with their values, and fields that are forgotten
local guard = KEYS[1]
local token, count = ARGV[1], tonumber(ARGV[2])
local before = redis.call('HGET', guard, 'token')
if before and tonumber(before) > tonumber(token) then
  return tonumber(before)
end
redis.call('HSET', guard, 'token', token)
for field = 3, 2 + 2 * count, 2 do
  redis.call('HSET', guard, ARGV[field], ARGV[field + 1])
end
for field = 3 + 2 * count, #ARGV do
  redis.call('HDEL', guard, ARGV[field])
end
return 0
