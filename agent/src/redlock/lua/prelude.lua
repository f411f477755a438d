-- Begins every script. KEYS: 1 lock, 2 node, 3 records, 4 stand. ARGV: 1 floor, 2 wake channel, then the script's own.
-- Numbers are kept as text: Lua writes large ones in floating point. Tokens stay below 2^53, so comparing is exact.
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
local time = redis.call('TIME')
local memory = redis.call('HMGET', KEYS[2], 'run', 'mark', 'promised')
local mark, promised = memory[2], tonumber(memory[3] or '0')

-- The node is new, or its server was started again: takes what it finds as its memory, with the promise raised to the
-- floor. A server that came back with less than it had acknowledged is believed here (PROTOCOL 7 and 8 are what does not).
local function adopt()
    mark = time[1] .. '.' .. time[2]
    local floor = tonumber(ARGV[1])
    if promised < floor then
        promised = floor
        redis.call('HSET', KEYS[2], 'promised', ARGV[1])
    end
    redis.call('HSET', KEYS[2], 'run', run, 'mark', mark)
    redis.call('HSETNX', KEYS[2], 'epoch', '0')
end
if memory[1] ~= run then
    adopt()
end

local owner = redis.call('GET', KEYS[1])
local stand = redis.call('GET', KEYS[4])

local function publish(message)
    redis.call('PUBLISH', ARGV[2], message)
end

-- What every script returns: whether it did what it was asked, the node as it is now, and the script's own answer.
local function answer(accepted, body)
    owner = redis.call('GET', KEYS[1])
    return {
        accepted and 1 or 0, run, mark, promised,
        owner, owner and redis.call('PTTL', KEYS[1]) or 0,
        stand, stand and redis.call('PTTL', KEYS[4]) or 0,
        time[1], time[2], body or {},
    }
end

