-- Sees to flags of startups, of those that are as the app sets them, and so of a startup that nobody is known to have come
-- through: how many.
--   KEYS  the flags
--   ARGV  'remove' to remove them, or 'vouch' to note in them that the startups were come through
local count = 0
for _, flag in ipairs(KEYS) do
  if redis.call('GET', flag) == 'true' then
    count = count + 1
    local left = redis.call('PTTL', flag)
    if ARGV[1] == 'remove' then
      redis.call('DEL', flag)
    elseif left > 0 then
      -- As good as 'true' to the app, which sets it anew whenever it finds it.
      redis.call('SET', flag, '1', 'PX', left)
    end
  end
end
return count
