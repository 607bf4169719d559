-- A call asks a question, or asks whether it is answered.
-- KEYS: questions(job), answers(job), waiting(), events(job), job(job), others that the rest of the job needs
-- ARGV: question's id, question, member of waiting(), unix time, ms that questions and answers are kept, that events
--       are, that job(job) and the others are
-- Gives the answer; false if there is none yet: then the question stands there, and waits.
local answer = redis.call('HGET', KEYS[2], ARGV[1])
if answer then
  return answer
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[5])
redis.call('ZADD', KEYS[3], 'NX', ARGV[4], ARGV[3])
redis.call('PEXPIRE', KEYS[4], ARGV[6])
for i = 5, #KEYS do
  local left = redis.call('PTTL', KEYS[i])
  if left > 0 and left < tonumber(ARGV[7]) then
    redis.call('PEXPIRE', KEYS[i], ARGV[7])
  end
end
return false
