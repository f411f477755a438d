-- Gives a job other options, unless it has others than are known.
--   KEYS  the job
--   ARGV  the options that it has, and those that it is to have
local job = KEYS[1]
local before, after = unpack(ARGV)
if redis.call('HGET', job, 'opts') == before then
  redis.call('HSET', job, 'opts', after)
end
