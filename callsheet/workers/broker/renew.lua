-- Renews the leases of tags that are still held, and keeps stock workers from taking them for abandoned.
--
-- KEYS: the index of unacked, the zset of leases. ARGV: seconds of lease, then the tags.
-- Returns a flat list: a tag whose lease is gone, 1 if it was taken for a lost worker's, or 0; and so on.
--
-- A script that has begun to write may go on where memory is short, and this one takes none: hence the first ZREM.
redis.call('ZREM', KEYS[2], '')
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local gone = {}
for i = 2, #ARGV do
    if redis.call('ZSCORE', KEYS[2], ARGV[i]) then
        redis.call('ZADD', KEYS[2], now + tonumber(ARGV[1]), ARGV[i])
        redis.call('ZADD', KEYS[1], 'XX', now, ARGV[i])
    else
        gone[#gone + 1] = ARGV[i]
        gone[#gone + 1] = redis.call('EXISTS', KEYS[2] .. ':taken:' .. ARGV[i])
    end
end
return gone
