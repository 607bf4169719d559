-- Adds counts to hashes, once for each batch.
-- KEYS[1]    the batch's mark, so that one whose answer was lost is not added again
-- KEYS[2..]  hashes: label, a JSON list of agent, tenant, endpoint and model -> numbers, joined with commas
-- ARGV       seconds that the mark is kept; most fields of a hash; what a label beyond that counts under for its agent,
--            tenant and model; JSON: for each hash a list of the seconds that it is kept and of labels, each followed
--            by its numbers
if not redis.call('SET', KEYS[1], 1, 'NX', 'EX', ARGV[1]) then
  return 0
end
local most, others = tonumber(ARGV[2]), ARGV[3]
for k, entry in ipairs(cjson.decode(ARGV[4])) do
  local key = KEYS[k + 1]
  for at = 2, #entry, 2 do
    local label, numbers = entry[at], entry[at + 1]
    local known = redis.call('HGET', key, label)
    if not known and redis.call('HLEN', key) >= most then
      local row = cjson.decode(label)
      label = cjson.encode({others, row[2] == '' and '' or others, row[3], others})
      known = redis.call('HGET', key, label)
    end
    if known then
      local sums, more = {}, string.gmatch(known, '[^,]+')
      for number in string.gmatch(numbers, '[^,]+') do
        sums[#sums + 1] = string.format('%.0f', tonumber(number) + tonumber(more() or 0))
      end
      numbers = table.concat(sums, ',')
    end
    redis.call('HSET', key, label, numbers)
  end
  redis.call('EXPIRE', key, entry[1])
end
return 1
