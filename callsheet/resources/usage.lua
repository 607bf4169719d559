-- Adds counts to hashes, once for each batch.
-- KEYS[1]    the batch's mark, so that one whose answer was lost is not added again
-- KEYS[2..]  hashes: label -> numbers, joined with commas
-- ARGV       seconds that the mark is kept, most fields of a hash; then for each hash: seconds that it is kept, number of
--            labels, and for each label: itself, the one to count under where the hash is full, the numbers
if not redis.call('SET', KEYS[1], 1, 'NX', 'EX', ARGV[1]) then
  return 0
end
local at = 3
for k = 2, #KEYS do
  local expires, labels = ARGV[at], tonumber(ARGV[at + 1])
  at = at + 2
  for _ = 1, labels do
    local label, numbers = ARGV[at], ARGV[at + 2]
    local known = redis.call('HGET', KEYS[k], label)
    if not known and redis.call('HLEN', KEYS[k]) >= tonumber(ARGV[2]) then
      label = ARGV[at + 1]
      known = redis.call('HGET', KEYS[k], label)
    end
    if known then
      local sums, more = {}, string.gmatch(known, '[^,]+')
      for number in string.gmatch(numbers, '[^,]+') do
        sums[#sums + 1] = string.format('%.0f', tonumber(number) + tonumber(more() or 0))
      end
      numbers = table.concat(sums, ',')
    end
    redis.call('HSET', KEYS[k], label, numbers)
    at = at + 3
  end
  redis.call('EXPIRE', KEYS[k], expires)
end
return 1
