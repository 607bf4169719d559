-- Puts a message on its list, unless it was put there before: whoever did not hear the answer sends it again.
--
-- KEYS: the list; what the names of the sets of ids that were taken begin with. ARGV: the id, a number of 63 bits; the message.
-- Returns 1, or 0 where it was there before. Nothing is remembered of a message that the list does not take.
--
-- Small sets of numbers take eight bytes each. Of 10,000 of them a new one is begun with 256 ids, and the one before kept: so
-- the last 2.5 million messages at least are known, for a day at most, in 41 MB at most.
local new = KEYS[2] .. string.sub(ARGV[1], -4)
local old = new .. ':old'
if redis.call('SISMEMBER', new, ARGV[1]) == 1 or redis.call('SISMEMBER', old, ARGV[1]) == 1 then return 0 end
redis.call('LPUSH', KEYS[1], ARGV[2])
if redis.call('SCARD', new) >= 256 then redis.call('RENAME', new, old) end
redis.call('SADD', new, ARGV[1])
redis.call('EXPIRE', new, 86400)
return 1
