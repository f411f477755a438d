-- Removes the oldest jobs of a set, completed or failed, but for so many: how many were removed, a batch at most.
--   KEYS  the set
--   ARGV  what the keys of the queue begin with, how many are kept, how many are removed at once
local set = KEYS[1]
local prefix, keep, batch = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local surplus = math.min(redis.call('ZCARD', set) - keep, batch)
if surplus <= 0 then
  return 0
end
for _, id in ipairs(redis.call('ZRANGE', set, 0, surplus - 1)) do
  local job = prefix .. id
  redis.call('DEL', job, job .. ':logs', job .. ':dependencies', job .. ':processed')
end
redis.call('ZREMRANGEBYRANK', set, 0, surplus - 1)
return surplus
