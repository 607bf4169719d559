-- Puts messages that were put away back on their lists, once their time has come, to be delivered next.
--
-- KEYS: the zset and the hash of what is to start later, as in putaway.lua. ARGV: now, in unix seconds; most task ids.
-- Returns how many task ids had their time; when the next one has, as text, "" where none waits; and values of the hash
-- that are none of ours, which are dropped.
redis.call('ZREM', KEYS[1], '')
local now = tonumber(ARGV[1])
local odd = {}
local ids = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, tonumber(ARGV[2]))
for i = #ids, 1, -1 do  -- the last one pushed is the first to be delivered
    local id, left, first = ids[i], {}, nil
    local known = redis.call('HGET', KEYS[2], id)
    local entries, sound = entries_of(known)
    if known and not sound then odd[#odd + 1] = known end
    for _, entry in ipairs(entries) do
        if entry[1] <= now then
            local done = redis.pcall('RPUSH', entry[2], entry[3])
            if type(done) == 'table' and done.err then
                if not string.find(done.err, 'WRONGTYPE', 1, true) then return done end
                odd[#odd + 1] = entry[3]
            end
        else
            left[#left + 1] = entry
            first = first and math.min(first, entry[1]) or entry[1]
        end
    end
    if first then
        redis.call('HSET', KEYS[2], id, cmsgpack.pack(left))
        redis.call('ZADD', KEYS[1], first, id)
    else
        redis.call('HDEL', KEYS[2], id)
        redis.call('ZREM', KEYS[1], id)
    end
end
local next = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
return {#ids, next[2] or '', odd}
