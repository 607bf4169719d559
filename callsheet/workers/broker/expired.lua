-- Lists messages whose lease has run out, and reserves them for the caller for a moment.
--
-- KEYS: the unacked hash, its index, the zset of leases. ARGV: most messages, most bytes, seconds to reserve them.
-- Returns a flat list: the tag, the hash's value, and so on.
--
-- A script that has begun to write may go on where memory is short, and this one takes none: hence the first ZREM.
redis.call('ZREM', KEYS[3], '')
local bytes = tonumber(ARGV[2])
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local out = {}
for _, tag in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now, 'LIMIT', 0, tonumber(ARGV[1]))) do
    if bytes <= 0 then break end
    local value = redis.call('HGET', KEYS[1], tag)
    if value then
        redis.call('ZADD', KEYS[3], now + tonumber(ARGV[3]), tag)
        out[#out + 1] = tag
        out[#out + 1] = value
        bytes = bytes - #value
    else
        redis.call('ZREM', KEYS[2], tag)
        redis.call('ZREM', KEYS[3], tag)
    end
end
return out
