-- The run of a call that asked a question does not wait for the answer any more.
-- KEYS: questions(job), waiting()
-- ARGV: question's id, member of waiting(), the run; "" whichever run asks
local text = redis.call('HGET', KEYS[1], ARGV[1])
if text and ARGV[3] ~= '' and cjson.decode(text).run ~= ARGV[3] then
  return 0
end
redis.call('ZREM', KEYS[2], ARGV[2])
return redis.call('HDEL', KEYS[1], ARGV[1])
