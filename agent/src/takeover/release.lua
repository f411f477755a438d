-- Takes what is left of a schedule of the app's own out of the queue of an instance, where no app runs it any more. Answers
--   {1}         nothing of it is there now
--   {0, id}     an app is at work at a job of it: nothing was done
--   {3, token}  a leader with a higher token has been here: nothing was done
--   {4, key, type} a key is not what BullMQ makes of it: nothing was done
--   KEYS  repeat, delayed, wait, paused, prioritized, active, stalled, events, ticks that are left to the agents, takeovers
--   ARGV  the leader's token, what the keys of the queue begin with, the name of its jobs, the schedule and its queue
local rep, delayed, wait, paused, prioritized, active, stalled, events, left, takeovers = unpack(KEYS)
local token, prefix, name, place = unpack(ARGV)

-- What a script has written stays when it breaks off, so nothing may go wrong once it has begun to write.
local types = {
  [rep] = 'zset', [delayed] = 'zset', [wait] = 'list', [paused] = 'list', [prioritized] = 'zset', [active] = 'list', [stalled] = 'set',
  [events] = 'stream', [left] = 'zset', [takeovers] = 'hash',
}
for key, wanted in pairs(types) do
  local found = redis.call('TYPE', key).ok
  if found ~= 'none' and found ~= wanted then
    return {4, key, found}
  end
end
local before = redis.call('HGET', takeovers, 'token')
if before and tonumber(before) > tonumber(token) then
  return {3, tonumber(before)}
end

local function ours(ids)
  local found = {}
  for _, id in ipairs(ids) do
    if redis.call('HGET', prefix .. id, 'name') == name then
      found[#found + 1] = id
    end
  end
  return found
end
local at_work = ours(redis.call('LRANGE', active, 0, -1))
for _, id in ipairs(at_work) do
  -- Whoever lets it expire has died, and the next to look at the queue would take the job again.
  if redis.call('EXISTS', prefix .. id .. ':lock') == 1 then
    return {0, id}
  end
end

redis.call('HSET', takeovers, 'token', token)
local function tick_of(id)
  return string.match(id, ':(%d+)$')
end
local function leave(id)
  redis.call('DEL', prefix .. id)
  redis.call('XADD', events, '*', 'event', 'removed', 'jobId', id)
  if tick_of(id) then
    redis.call('ZADD', left, tick_of(id), place .. ' ' .. id)
  end
end
-- Ticks that were to be taken, or taken once more, by an app that would have left them to us.
for list, ids in pairs({[active] = at_work, [wait] = ours(redis.call('LRANGE', wait, 0, -1)), [paused] = ours(redis.call('LRANGE', paused, 0, -1))}) do
  for _, id in ipairs(ids) do
    redis.call('LREM', list, 0, id)
    redis.call('SREM', stalled, id)
    leave(id)
  end
end
for _, id in ipairs(ours(redis.call('ZRANGE', prioritized, 0, -1))) do
  redis.call('ZREM', prioritized, id)
  leave(id)
end
local next
local function note(tick)
  if tick and (not next or tonumber(tick) < tonumber(next)) then
    next = tick
  end
end
for _, key in ipairs(redis.call('ZRANGE', rep, 0, -1)) do
  -- A repeatable job is there by its name and when it repeats, a job scheduler by its name alone, with a hash of its own.
  if key == name or string.sub(key, 1, #name + 1) == name .. ':' then
    note(redis.call('ZSCORE', rep, key))
    redis.call('ZREM', rep, key)
    redis.call('DEL', rep .. ':' .. key)
  end
end
local scheduled = next
for _, id in ipairs(ours(redis.call('ZRANGE', delayed, 0, -1))) do
  redis.call('ZREM', delayed, id)
  if scheduled and tick_of(id) and tonumber(tick_of(id)) < tonumber(scheduled) then
    -- It was taken before, and failed, and was to be tried once more.
    leave(id)
  else
    note(tick_of(id))
    redis.call('DEL', prefix .. id)
    redis.call('XADD', events, '*', 'event', 'removed', 'jobId', id, 'prev', 'delayed')
  end
end
-- What comes before it has been taken by an app, which ran it or left it to us.
if next then
  redis.call('HSET', takeovers, 'next ' .. place, next)
end
return {1}
