-- One endpoint's circuit breaker, which all processes share. Time is this server's.
-- KEYS[1]  hash: state ("open", "probing"; no key or no state: closed), until (ms), probe (token), probe_until (ms);
--          while closed: f:<slot> and s:<slot>, failures and successes of each tenth of the window
-- ARGV     1 what to do, 2 channel for notices, 3 window (ms), 4 cooldown (ms), 5 failure rate, 6 minimum, and
--          report: 7 failures, 8 successes
--          ask, renew: 7 token, 8 lease (ms)
--          settle: 7 token, 8 "ok", "failed" or "unknown"
-- Answers  {state, ms}: "closed"; "open" and the time until a probe; "probe", to the one that is to probe, and its
--          lease; "wait" and the time that another's probe may take yet
local key, action, channel = KEYS[1], ARGV[1], ARGV[2]
local window, cooldown = tonumber(ARGV[3]), tonumber(ARGV[4])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local known = redis.call('HMGET', key, 'state', 'until', 'probe', 'probe_until')
local state, till, probe, probe_until = known[1], tonumber(known[2] or 0), known[3], tonumber(known[4] or 0)

local function open()
  redis.call('DEL', key)
  redis.call('HSET', key, 'state', 'open', 'until', now + cooldown)
  redis.call('PEXPIRE', key, cooldown + 3600000)
  redis.call('PUBLISH', channel, 'open ' .. cooldown)
  return {'open', cooldown}
end

local function close()
  redis.call('DEL', key)
  redis.call('PUBLISH', channel, 'closed')
  return {'closed', 0}
end

if action == 'report' then
  if state then
    return {'open', math.max(0, till - now)}
  end
  local width = window / 10
  local slot = math.floor(now / width)
  local failures, successes, old = 0, 0, {}
  local fields = redis.call('HGETALL', key)
  for i = 1, #fields, 2 do
    local kind, when = string.sub(fields[i], 1, 1), tonumber(string.sub(fields[i], 3))
    if when <= slot - 10 then
      old[#old + 1] = fields[i]
    elseif kind == 'f' then
      failures = failures + tonumber(fields[i + 1])
    else
      successes = successes + tonumber(fields[i + 1])
    end
  end
  if #old > 0 then
    redis.call('HDEL', key, unpack(old))
  end
  if failures == 0 and tonumber(ARGV[7]) > 0 then
    redis.call('PUBLISH', channel, 'suspect')
  end
  failures, successes = failures + tonumber(ARGV[7]), successes + tonumber(ARGV[8])
  if failures > 0 and failures + successes >= tonumber(ARGV[6])
      and failures >= tonumber(ARGV[5]) * (failures + successes) then
    return open()
  end
  redis.call('HINCRBY', key, 'f:' .. slot, ARGV[7])
  redis.call('HINCRBY', key, 's:' .. slot, ARGV[8])
  redis.call('PEXPIRE', key, window * 2)
  return {'closed', 0}
end

if not state then
  return {'closed', 0}
end
if action == 'ask' then
  if state == 'open' and now < till then
    return {'open', till - now}
  elseif probe and now < probe_until then
    return {'wait', probe_until - now}
  end
  redis.call('HSET', key, 'state', 'probing', 'probe', ARGV[7], 'probe_until', now + ARGV[8])
  redis.call('PEXPIRE', key, ARGV[8] + cooldown + 3600000)
  return {'probe', tonumber(ARGV[8])}
end
if probe ~= ARGV[7] then
  return {'open', math.max(0, till - now)}
end
if action == 'renew' then
  redis.call('HSET', key, 'probe_until', now + ARGV[8])
  return {'probe', tonumber(ARGV[8])}
end
if ARGV[8] == 'failed' then
  return open()
elseif ARGV[8] == 'ok' then
  return close()
end
redis.call('HDEL', key, 'probe', 'probe_until')
return {'open', 0}
