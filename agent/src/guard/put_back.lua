-- Adds a schedule that is not there, with its next job, as BullMQ does: what both of its versions have in common, before what
-- one of them does (repeatable.lua, scheduler.lua). Answers
--   {1}        it is there now
--   {0}        it was there, and nothing was done
--   {2}        the job of that tick is there or has been: the schedule can be added with a later one only
--   {3, token} a leader with a higher token has been here: nothing was done
--   {4, key, type} a key is not what BullMQ makes of it: nothing was done
--   KEYS  repeat, delayed, events, meta, id, wait, paused, marker, the schedule, the job, the guard's memory
--   ARGV  the leader's token, the schedule's member of repeat, tick, id of the job, name, data, options, now, delay, and the
--         schedule's own fields with their values
local rep, delayed, events, meta, counter, wait, paused, marker, schedule, job, guard = unpack(KEYS)
local token, member, tick, id, name, data, options, now, delay = unpack(ARGV)

-- What a script has written stays when it breaks off, so nothing may go wrong once it has begun to write.
local types = {
  [rep] = 'zset', [delayed] = 'zset', [events] = 'stream', [meta] = 'hash', [counter] = 'string', [wait] = 'list',
  [paused] = 'list', [marker] = 'zset', [schedule] = 'hash', [job] = 'hash', [guard] = 'hash',
}
for name_of_key, wanted in pairs(types) do
  local found = redis.call('TYPE', name_of_key).ok
  if found ~= 'none' and found ~= wanted then
    return {4, name_of_key, found}
  end
end
local before = redis.call('HGET', guard, 'token')
if before and tonumber(before) > tonumber(token) then
  return {3, tonumber(before)}
end
