-- Puts messages that were put away back on their lists, once their time has come, to be delivered next.
--
-- KEYS: the zset and the hash of what is to start later, as in putaway.lua. ARGV: now, in unix seconds; most task ids.
-- Returns how many task ids had their time; and when the next one has, as text, "" where none waits.
redis.call('ZREM', KEYS[1], '')
local now = tonumber(ARGV[1])
local ids = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, tonumber(ARGV[2]))
for i = #ids, 1, -1 do  -- the last one pushed is the first to be delivered
    local id, left, first = ids[i], {}, nil
    local known = redis.call('HGET', KEYS[2], id)
    for _, entry in ipairs(known and cmsgpack.unpack(known) or {}) do
        if entry[1] <= now then
            redis.call('RPUSH', entry[2], entry[3])
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
return {#ids, next[2] or ''}
