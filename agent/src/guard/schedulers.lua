-- The schedules of a queue as BullMQ 5 keeps them: the key of each, which says when it repeats, and its next tick.
--   KEYS  repeat
local rep = KEYS[1]
local schedules = redis.call('ZRANGE', rep, 0, -1, 'WITHSCORES')
for i = 1, #schedules, 2 do
  local fields = redis.call('HMGET', rep .. ':' .. schedules[i], 'endDate', 'tz', 'pattern', 'every')
  local times = (fields[1] or '') .. ':' .. (fields[2] or '') .. ':' .. (fields[3] or fields[4] or '')
  schedules[i] = schedules[i] .. ':' .. times
end
return schedules
