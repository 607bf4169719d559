-- Writes a message under delivery anew, if it is still registered. KEYS: the unacked hash. ARGV: its tag, its entry.
-- Returns 1, or 0 where it is another worker's by now.
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1
