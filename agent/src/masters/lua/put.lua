-- PROTOCOL 3 to 5. ARGV: 2 token, then for each record: id, whether it is a claim, seq, nonce, the record.
-- Answers for each: 1 stored, 0 something newer is there, or, for a refused claim, the record with the done result.
if not intact or promised ~= tonumber(ARGV[2]) then
    return answer(false)
end
note_led()
local token = tonumber(ARGV[2])

local function put(id, claim, seq, nonce, record)
    local stored = redis.call('HGET', KEYS[3], id)
    if stored then
        local known = cjson.decode(stored)
        if claim then
            for of, result in pairs(known.r) do
                if of ~= nonce and string.sub(result, 1, 1) == '1' then
                    return stored
                end
            end
        end
        local newest = tonumber(known.t)
        if newest > token or (newest == token and tonumber(known.s) > seq) then
            return 0
        end
        if next(known.r) then
            local new = cjson.decode(record)
            for of, result in pairs(known.r) do
                -- What is known stays, but done goes before given up.
                local brought = new.r[of]
                if not brought or string.sub(brought, 1, 1) ~= '1' or string.sub(result, 1, 1) == '1' then
                    new.r[of] = result
                end
            end
            record = cjson.encode(new)
        end
    end
    redis.call('HSET', KEYS[3], id, record)
    return 1
end

local verdicts = {}
for i = 3, #ARGV, 5 do
    verdicts[#verdicts + 1] = put(ARGV[i], ARGV[i + 1] == '1', tonumber(ARGV[i + 2]), ARGV[i + 3], ARGV[i + 4])
end
return answer(true, verdicts)
