-- Adds a schedule that is not there, with its next job, as BullMQ 2 does when a repeatable job is added. Answers
--   {1}        it is there now
--   {0}        it was there, and nothing was done
--   {2}        the job of that tick is there or has been: the schedule can be added with a later one only
--   {3, token} a leader with a higher token has been here: nothing was done
--   {4, key, type} a key is not what BullMQ makes of it: nothing was done
--   KEYS  repeat, delayed, events, meta, id, wait, paused, the job, the guard's memory
--   ARGV  the leader's token, key of the schedule, tick, id of the job, name, data, options, now, delay
local rep, delayed, events, meta, counter, wait, paused, job, guard = unpack(KEYS)
local token, key, tick, id, name, data, options, now, delay = unpack(ARGV)

-- What a script has written stays when it breaks off, so nothing may go wrong once it has begun to write.
local types = {
  [rep] = 'zset', [delayed] = 'zset', [events] = 'stream', [meta] = 'hash', [counter] = 'string', [wait] = 'list',
  [paused] = 'list', [job] = 'hash', [guard] = 'hash',
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
if redis.call('ZSCORE', rep, key) then
  return {0}
end
if redis.call('EXISTS', job) == 1 then
  return {2}
end

redis.call('HSET', guard, 'token', token)
local number = redis.call('INCR', counter)
redis.call('ZADD', rep, tick, key)
redis.call('HSET', job, 'name', name, 'data', data, 'opts', options, 'timestamp', now, 'delay', delay, 'priority', 0, 'rjk', key)
redis.call('XTRIM', events, 'MAXLEN', '~', redis.call('HGET', meta, 'opts.maxLenEvents') or 10000)
redis.call('XADD', events, '*', 'event', 'added', 'jobId', id, 'name', name)
redis.call('ZADD', delayed, tonumber(tick) * 0x1000 + bit.band(number, 0xfff), id)
redis.call('XADD', events, '*', 'event', 'delayed', 'jobId', id, 'delay', tick)
-- Idle workers wait for the list, and for as long as the next delayed job lets them: a job 0 tells them to look again.
local target = redis.call('HEXISTS', meta, 'paused') == 1 and paused or wait
if redis.call('LLEN', target) == 0 and redis.call('ZRANGE', delayed, 0, 0)[1] == id then
  redis.call('LPUSH', target, 0)
end
return {1}
