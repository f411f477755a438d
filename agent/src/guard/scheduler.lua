-- BullMQ 5: a job scheduler, by one name whenever it repeats. After put_back.lua.
local fields = {}
for field = 10, #ARGV, 2 do
  fields[ARGV[field]] = ARGV[field + 1]
end
-- Another version of it may be in its place.
local other = redis.call('ZSCORE', rep, member)
if other then
  local same = true
  for _, field in ipairs({'endDate', 'tz', 'pattern', 'every'}) do
    same = same and (redis.call('HGET', schedule, field) or nil) == fields[field]
  end
  if same then
    return {0}
  end
end
local pending = other and 'repeat:' .. member .. ':' .. other
local waits = pending and redis.call('ZSCORE', delayed, pending)
if redis.call('EXISTS', job) == 1 and not (waits and pending == id) then
  return {2}
end

redis.call('HSET', guard, 'token', token)
if waits then
  redis.call('ZREM', delayed, pending)
  local key = schedule .. ':' .. other
  redis.call('DEL', key, key .. ':logs', key .. ':dependencies', key .. ':processed', key .. ':failed', key .. ':unsuccessful')
  redis.call('XADD', events, '*', 'event', 'removed', 'jobId', pending, 'prev', 'delayed')
end
local longest = redis.call('HGET', meta, 'opts.maxLenEvents')
if not longest then
  longest = 10000
  redis.call('HSET', meta, 'opts.maxLenEvents', longest)
end
redis.call('INCR', counter)
redis.call('ZADD', rep, tick, member)
redis.call('DEL', schedule)
for field, value in pairs(fields) do
  redis.call('HSET', schedule, field, value)
end
redis.call('HSET', job, 'name', name, 'data', data, 'opts', options, 'timestamp', now, 'delay', delay,
  'priority', cjson.decode(options)['priority'] or 0, 'rjk', member)
redis.call('XADD', events, '*', 'event', 'added', 'jobId', id, 'name', name)
-- Jobs of one millisecond are in order.
local first, last = tonumber(tick) * 0x1000, (tonumber(tick) + 1) * 0x1000 - 1
local beside = redis.call('ZREVRANGEBYSCORE', delayed, last, first, 'WITHSCORES', 'LIMIT', 0, 1)
redis.call('ZADD', delayed, beside[2] and math.min(tonumber(beside[2]) + 1, last) or first, id)
redis.call('XADD', events, 'MAXLEN', '~', longest, '*', 'event', 'delayed', 'jobId', id, 'delay', tick)
-- Idle workers wait for the marker, until the time that it says.
redis.call('ZADD', marker, tonumber(redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')[2]) / 0x1000, '1')
return {1}
