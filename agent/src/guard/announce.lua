-- Notes that a pod runs, by the clock of Redis, and whether its app goes through its startups: how many other pods' do.
--   KEYS  the pods, since when revisions have had pods, the pods whose apps start
--   ARGV  the pod's revision, the pod, 1 if its app starts, how long pods are remembered, and those that start, in ms
local pods, since, starting = unpack(KEYS)
local hash, pod, starts, remembered, fresh = unpack(ARGV)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', pods, '-inf', '(' .. now - remembered)
redis.call('ZADD', pods, now, hash .. ' ' .. pod)
redis.call('HSETNX', since, hash, now)
redis.call('ZREM', starting, pod)
redis.call('ZREMRANGEBYSCORE', starting, '-inf', '(' .. now - fresh)
local others = redis.call('ZCARD', starting)
if starts == '1' then
  redis.call('ZADD', starting, now, pod)
end
return others
