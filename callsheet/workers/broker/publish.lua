-- Puts messages on their lists, unless they were put there before: whoever did not hear the answer sends them again.
--
-- KEYS: what the names of the sets of ids that were taken begin with; the lists. ARGV: for each message the number of its list,
-- its id, a number of 63 bits, and its text. Returns how many were put. Nothing is remembered of one that its list does not take.
--
-- Small sets of numbers take eight bytes each. Of 10,000 of them a new one is begun with 256 ids, and the one before kept: so
-- the last 2.5 million messages at least are known, for a day at most, in 41 MB at most.
local count = 0
for i = 1, #ARGV, 3 do
    local list, id = KEYS[1 + tonumber(ARGV[i])], ARGV[i + 1]
    local new = KEYS[1] .. string.sub(id, -4)
    local old = new .. ':old'
    if redis.call('SISMEMBER', old, id) == 0 and redis.call('SADD', new, id) == 1 then
        local put = redis.pcall('LPUSH', list, ARGV[i + 2])
        if type(put) == 'table' then
            redis.call('SREM', new, id)
            return put
        end
        redis.call('EXPIRE', new, 86400)
        if redis.call('SCARD', new) >= 256 then redis.call('RENAME', new, old) end
        count = count + 1
    end
end
return count
