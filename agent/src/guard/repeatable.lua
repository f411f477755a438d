-- BullMQ 2: a repeatable job. After put_back.lua.
if redis.call('ZSCORE', rep, member) then
  return {0}
end
if redis.call('EXISTS', job) == 1 then
  return {2}
end

redis.call('HSET', guard, 'token', token)
local number = redis.call('INCR', counter)
redis.call('ZADD', rep, tick, member)
redis.call('HSET', job, 'name', name, 'data', data, 'opts', options, 'timestamp', now, 'delay', delay, 'priority', 0, 'rjk', member)
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
