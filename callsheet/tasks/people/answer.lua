-- Somebody answers a question.
-- KEYS: questions(job), answers(job), waiting()
-- ARGV: question's id, answer, member of waiting(), ms that answers are kept, channel of answers
-- Gives 'taken'; 'answered' if it was before; 'gone' if nobody asks it.
local before = redis.call('HGET', KEYS[2], ARGV[1])
if before then -- the same one again is one that was sent twice, as its connection broke; it has the time in it
  return before == ARGV[2] and 'taken' or 'answered'
end
if redis.call('HDEL', KEYS[1], ARGV[1]) == 0 then
  return 'gone'
end
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
redis.call('ZREM', KEYS[3], ARGV[3])
redis.call('PUBLISH', ARGV[5], ARGV[1])
return 'taken'
