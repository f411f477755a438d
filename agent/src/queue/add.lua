-- Adds a job to a BullMQ queue, unless it is there or has been: 1 if it was added, 0 if it was known. If a key is not what
-- BullMQ makes of it, the answer is the key and its type, and nothing is changed.
--   KEYS  wait, paused, active, meta, id, events, marker, the job, what tells that it has been there
--   ARGV  id of the job, its name, data, options, time in ms; for how many ms it is known; '5' for the layout of BullMQ 5,
--         whose workers wait for a marker, else for that of BullMQ 2
local wait, paused, active, meta, counter, events, marker, job, known = unpack(KEYS)
local id, name, data, options, time, memory, layout = unpack(ARGV)

-- What a script has written stays when it breaks off, so nothing may go wrong once it has begun to write.
local types = {
  [wait] = 'list', [paused] = 'list', [active] = 'list', [meta] = 'hash', [counter] = 'string', [events] = 'stream',
  [marker] = 'zset', [job] = 'hash', [known] = 'string',
}
for key, wanted in pairs(types) do
  local found = redis.call('TYPE', key).ok
  if found ~= 'none' and found ~= wanted then
    return {key, found}
  end
end
if redis.call('EXISTS', job, known) > 0 then
  redis.call('PEXPIRE', known, memory)
  return 0
end

local settings = redis.call('HMGET', meta, 'paused', 'concurrency', 'opts.maxLenEvents')
local is_paused, concurrency, limit = settings[1], tonumber(settings[2] or nil), tonumber(settings[3] or nil)
redis.call('INCR', counter)
if layout == '5' and not limit then
  redis.call('HSET', meta, 'opts.maxLenEvents', 10000)
end
redis.call('SET', known, 1, 'PX', memory)
redis.call('HSET', job, 'name', name, 'data', data, 'opts', options, 'timestamp', time, 'delay', 0, 'priority', 0)
redis.call('XTRIM', events, 'MAXLEN', '~', limit or 10000)
redis.call('XADD', events, '*', 'event', 'added', 'jobId', id, 'name', name)
redis.call('LPUSH', is_paused and paused or wait, id)
local is_full = concurrency and redis.call('LLEN', active) >= concurrency
if layout == '5' and not is_paused and not is_full then
  redis.call('ZADD', marker, 0, '0')
end
redis.call('XADD', events, '*', 'event', 'waiting', 'jobId', id)
return 1
