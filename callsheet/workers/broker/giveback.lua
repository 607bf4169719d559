-- Puts messages back on their lists, those that are still registered under these tags.
--
-- KEYS: the unacked hash, its index, the zset of leases, then the list of each message.
-- ARGV: for each message its tag, "next" to have it delivered next, "last" to have it delivered last, or "lost" as "next"
--       from a worker that did not give it back itself, and will look whether it was taken from it; its text.
-- Returns how many went back.
local back = 0
for i = 1, #KEYS - 3 do
    local tag, place, message = ARGV[3 * i - 2], ARGV[3 * i - 1], ARGV[3 * i]
    if redis.call('HDEL', KEYS[1], tag) == 1 then
        redis.call(place == 'last' and 'LPUSH' or 'RPUSH', KEYS[3 + i], message)
        if place == 'lost' then redis.call('SET', KEYS[3] .. ':taken:' .. tag, 1, 'EX', 86400) end
        back = back + 1
    end
    redis.call('ZREM', KEYS[2], tag)
    redis.call('ZREM', KEYS[3], tag)
end
return back
