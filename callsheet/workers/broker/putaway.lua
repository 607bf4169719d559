-- Puts messages under delivery away until later, as they came, and ends their delivery.
--
-- KEYS: the unacked hash, its index, the zset of leases; of what is to start later the zset (task id -> when it goes
--       back to its queue, the earliest of its messages) and the hash (task id -> msgpack list of {when, list, message}).
-- ARGV: for each message its tag, its task id, when it goes back, its list, what follows it in the unacked hash.
-- Returns how many were put away: those that are still registered under their tag.
--
-- A script that has begun to write may go on where memory is short, and this one takes little: hence the first ZREM.
redis.call('ZREM', KEYS[4], '')
local away = 0
for i = 1, #ARGV, 5 do
    local tag, id, at, list, rest = unpack(ARGV, i, i + 4)
    local value = redis.call('HGET', KEYS[1], tag)
    if value and string.sub(value, -#rest) == rest then
        local entries = entries_of(redis.call('HGET', KEYS[5], id))
        entries[#entries + 1] = {tonumber(at), list, string.sub(value, 2, -#rest - 1)}
        redis.call('HSET', KEYS[5], id, cmsgpack.pack(entries))
        redis.call('ZADD', KEYS[4], 'LT', at, id)
        redis.call('HDEL', KEYS[1], tag)
        redis.call('ZREM', KEYS[2], tag)
        redis.call('ZREM', KEYS[3], tag)
        away = away + 1
    end
end
return away
