-- Begins every script. KEYS: 1 lock, 2 node, 3 records, 4 stand. ARGV: 1 wake channel, 2 and on: the script's own.
-- Numbers are kept as text: Lua writes large ones in floating point. Tokens stay below 2^53, so comparing is exact.
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
local time = redis.call('TIME')
local memory = redis.call('HMGET', KEYS[2], 'run', 'mark', 'promised', 'marked_run', 'marked', 'led', 'lease', 'stands')

-- The memory is of the life that the server process has now. If not, the node is amnesiac: it was started again, empty or
-- with what it had at some earlier time, or was flushed. Then it has no say before it is seeded (PROTOCOL 7 and 8).
local intact = memory[1] == run
local promised = tonumber(memory[3] or '0')
local mark = ''
if intact then
    mark = memory[2]
elseif memory[4] == run then
    mark = memory[5]
end

-- What is taken for a time: how long for and by whom is part of the memory, so that it lasts for no longer. It seems to last
-- longer where it was taken while the clock was ahead, which has been set right since; whoever took it believes in no more
-- than its ttl. What another client has taken is left alone.
local function held(key, taken)
    local value = redis.call('GET', key)
    local ttl = value and taken and tonumber(string.match(taken, '^%d+'))
    if ttl and taken == string.format('%d %s', ttl, value) and redis.call('PTTL', key) > ttl then
        redis.call('PEXPIRE', key, ttl)
    end
    return value
end

local owner = held(KEYS[1], memory[7])
local stand = held(KEYS[4], memory[8])

local function take(key, field, taken, value, ttl)
    redis.call('SET', key, value, 'PX', ttl)
    if taken ~= ttl .. ' ' .. value then
        redis.call('HSET', KEYS[2], field, ttl .. ' ' .. value)
    end
end

local function publish(message)
    redis.call('PUBLISH', ARGV[1], message)
end

-- Somebody has led by this memory, so that it would be missed: whoever begins it anew has to know.
local led = memory[6] == '1'
local function note_led()
    if not led then
        led = true
        redis.call('HSET', KEYS[2], 'led', '1')
        publish('led')
    end
end

-- What every script returns: whether it did what it was asked, the node as it is now, and the script's own answer.
local function answer(accepted, body)
    owner = redis.call('GET', KEYS[1])
    return {
        accepted and 1 or 0, run, mark, (intact and 1 or 0) + (led and 2 or 0), promised,
        owner, owner and redis.call('PTTL', KEYS[1]) or 0,
        stand, stand and redis.call('PTTL', KEYS[4]) or 0,
        time[1], time[2], body or {},
    }
end

