-- One exchange of a gate (a process's queue for one endpoint) with the fleet's limiter. messages.py describes what is
-- said, local.py has the same rules for one process. All three limits are decided here, in one step.
--
-- KEYS  1 state   hash: tat_r, tat_t (when the paced budget is used up to), sum_r, sum_t (in the window), r<k>, t<k> (of
--                 bucket k), first (oldest bucket counted), seq (arrivals), grants, fixed (grant number of the last
--                 correction), pause (until), held (calls under way), held:<gate>, qt (tokens that wait), lr, lt, lra, lta
--                 (learned limits, and when), woken:<gate>
--       2 queue   zset: waiting calls; score = priority and fair share, member = arrival:gate:id:tokens
--       3 seen    zset: gate -> when it was last heard
--       4 shares  hash: <priority>:<tenant> -> where its next call queues, V<priority> -> where the queue stands
--       5 own     zset: this gate's part of the queue
-- ARGV  1 the message, JSON   2 unix time, or "" for the server's   3 what the channels that wake gates begin with
--       4 channel of pauses   5 what the keys of the gates' own queues begin with

local BUCKETS, SPARE = 200, 3      -- a window in buckets, and those that are counted beyond it
local STALE, LEASE = 3, 15         -- seconds of silence after which a gate's waiting calls, its calls under way, are void
local MOST = 2000                  -- entries looked at in one exchange
local LEARNED = 600                -- seconds that a learned limit holds
local EPS = 1e-6
local INF = math.huge

local m = cjson.decode(ARGV[1])
local now = tonumber(ARGV[2])
if not now then
  local t = redis.call('TIME')
  now = tonumber(t[1]) + tonumber(t[2]) / 1e6
end

local NAMES = {'tat_r', 'tat_t', 'sum_r', 'sum_t', 'first', 'seq', 'grants', 'fixed', 'pause', 'held', 'qt', 'lr',
               'lt', 'lra', 'lta'}
local s = {}
local values = redis.call('HMGET', KEYS[1], unpack(NAMES))
for i, name in ipairs(NAMES) do s[name] = tonumber(values[i]) or 0 end
local changed, removed = {}, {}    -- other fields of the state: to set, to delete

local width = m.window / BUCKETS
local bucket = math.floor(now / width)
local oldest = bucket - BUCKETS - SPARE

-- Learned limits

for i, kind in ipairs({'lr', 'lt'}) do
  local told, at = m.learned and m.learned[i] or 0, kind .. 'a'
  if s[at] + LEARNED < now then s[kind] = 0 end
  -- The narrowest that was told holds: of several models behind one endpoint, some may have wider ones.
  if told > 0 and (s[kind] == 0 or told <= s[kind]) then s[kind], s[at] = told, now end
end
local NR, NT, NC = m.r or INF, m.t or INF, m.c or INF
if s.lr > 0 then NR = math.min(NR, s.lr) end
if s.lt > 0 then NT = math.min(NT, s.lt) end
local rate_r, rate_t = NR / m.window, NT / m.window
local tol_r = NR < INF and math.max(0, math.floor(NR * m.burst) - 1) / rate_r or 0
local tol_t = m.window * m.burst

-- The window moves on

local buckets = nil
local function load_buckets()
  if buckets then return end
  buckets = {r = {}, t = {}}
  local names, index = {}, {}
  for k = s.first, s.first + BUCKETS + SPARE do
    names[#names + 1], names[#names + 2] = 'r' .. k, 't' .. k
    index[#index + 1] = k
  end
  local found = redis.call('HMGET', KEYS[1], unpack(names))
  for i, k in ipairs(index) do
    buckets.r[k], buckets.t[k] = tonumber(found[2 * i - 1]) or 0, tonumber(found[2 * i]) or 0
  end
end

local function add(k, r, t)
  if k < s.first then return end
  s.sum_r, s.sum_t = s.sum_r + r, s.sum_t + t
  if r ~= 0 then redis.call('HINCRBY', KEYS[1], 'r' .. k, r) end
  if t ~= 0 then redis.call('HINCRBY', KEYS[1], 't' .. k, t) end
  buckets = nil
end

if s.first == 0 then
  s.first = oldest
elseif bucket < s.first then       -- the server's clock was set back by more than the window
  local names = {}
  for k = s.first, s.first + BUCKETS + SPARE do names[#names + 1], names[#names + 2] = 'r' .. k, 't' .. k end
  redis.call('HDEL', KEYS[1], unpack(names))
  s.first, s.sum_r, s.sum_t, s.pause = oldest, 0, 0, 0
  s.tat_r, s.tat_t = now + tol_r, now + tol_t
elseif s.first < oldest then
  local last = math.min(oldest - 1, s.first + BUCKETS + SPARE)
  local names = {}
  for k = s.first, last do names[#names + 1], names[#names + 2] = 'r' .. k, 't' .. k end
  local found = redis.call('HMGET', KEYS[1], unpack(names))
  for i = 1, #found, 2 do
    s.sum_r = s.sum_r - (tonumber(found[i]) or 0)
    s.sum_t = s.sum_t - (tonumber(found[i + 1]) or 0)
  end
  redis.call('HDEL', KEYS[1], unpack(names))
  s.first = oldest
end

-- Who is there

local me = m.gate
local seen = {}
local function heard(gate)
  if seen[gate] == nil then seen[gate] = tonumber(redis.call('ZSCORE', KEYS[3], gate)) or 0 end
  return seen[gate]
end

for _, gate in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', string.format('(%.6f', now - LEASE))) do
  s.held = s.held - (tonumber(redis.call('HGET', KEYS[1], 'held:' .. gate)) or 0)
  redis.call('HDEL', KEYS[1], 'held:' .. gate, 'woken:' .. gate)
  redis.call('ZREM', KEYS[3], gate)
end

local others = s.held - (tonumber(redis.call('HGET', KEYS[1], 'held:' .. me)) or 0)
s.held = others + m.held
seen[me] = now

local function strike(member)
  if redis.call('ZREM', KEYS[2], member) == 1 then
    s.qt = s.qt - (tonumber(string.match(member, ':(%d+)$')) or 0)
    return true
  end
  return false
end

-- What was used in truth, and what is given up

for _, one in ipairs(m.settles or {}) do
  add(one[1], one[2], one[3])
  if one[2] ~= 0 and NR < INF then s.tat_r = s.tat_r + one[2] / rate_r end
  if one[3] ~= 0 and NT < INF then s.tat_t = s.tat_t + one[3] / rate_t end
end
for _, member in ipairs(m.cancels or {}) do
  redis.call('ZREM', KEYS[5], member)
  strike(member)
end

local answer = {grants = {}, queued = {}, refused = {}}

if m.resync or redis.call('ZCARD', KEYS[5]) ~= m.queued then
  for _, member in ipairs(redis.call('ZRANGE', KEYS[5], 0, -1)) do strike(member) end
  redis.call('DEL', KEYS[5])
  if not m.resync then
    answer.resync = true
    m.asks = {}
  end
end

-- The provider says that less is left than we know of: others use the same key. Spread over the window as its use was.

if m.foreign and m.foreign[1] >= s.fixed then
  local r, t = m.foreign[2], m.foreign[3]
  local parts = 20
  for i = 0, parts - 1 do
    local k = bucket - math.floor(i * BUCKETS / parts)
    add(k, math.floor(r * (i + 1) / parts) - math.floor(r * i / parts),
        math.floor(t * (i + 1) / parts) - math.floor(t * i / parts))
  end
  s.fixed = s.grants + 1
end

if m.pause and m.pause > 0 then
  local till = now + m.pause
  if till > s.pause then
    s.pause = till
    redis.call('PUBLISH', ARGV[4], cjson.encode({m.name, m.pause}))
  end
  -- No credit for the time of the pause: what comes after it is spread.
  if NR < INF then s.tat_r = math.max(s.tat_r, s.pause + tol_r) end
  if NT < INF then s.tat_t = math.max(s.tat_t, s.pause + tol_t) end
end

-- May a call go?

local function blocked(x, tokens)
  if s.pause > now + EPS then return 'pause' end
  if x.held + 1 > NC then return 'max_concurrency' end
  if NR < INF then
    if x.sum_r + 1 > NR then return 'rpm', true end
    if x.tat_r > now + tol_r + EPS then return 'rpm' end
  end
  if NT < INF then
    if x.sum_t + tokens > NT then return 'tpm', true end
    if x.tat_t > now + tol_t + EPS then return 'tpm' end
  end
  return nil
end

local function charge(x, tokens)
  x.held = x.held + 1
  if NR < INF then x.tat_r = math.max(x.tat_r, now) + 1 / rate_r end
  if NT < INF then x.tat_t = math.max(x.tat_t, now) + tokens / rate_t end
  if x ~= s then x.sum_r, x.sum_t = x.sum_r + 1, x.sum_t + tokens end
end

local function grant(id, tokens)
  charge(s, tokens)
  add(bucket, 1, tokens)
  s.grants = s.grants + 1
  answer.grants[#answer.grants + 1] = {id, bucket, s.grants, s.sum_r, s.sum_t}
end

-- What is asked for

local function share(tokens)
  local part = math.max(NR < INF and 1 / NR or 0, NT < INF and tokens / NT or 0)
  return part > 0 and part or 1e-4
end

local waiting = redis.call('ZCARD', KEYS[2])
local fresh = {}
for _, ask in ipairs(m.asks or {}) do
  local id, priority, tenant, weight, tokens = ask[1], ask[2], ask[3], ask[4], ask[5]
  if tokens > NT then
    answer.refused[#answer.refused + 1] = {id, 'size', NT}
  elseif waiting == 0 and not blocked(s, tokens) then
    grant(id, tokens)
  else
    local score = tonumber(ask[7])
    if not score then
      local field = string.format('%d:%s', priority, tenant)
      local found = redis.call('HMGET', KEYS[4], field, 'V' .. priority)
      local start = math.max(tonumber(found[1]) or 0, tonumber(found[2]) or 0)
      redis.call('HSET', KEYS[4], field, string.format('%.9f', start + share(tokens) / weight))
      score = priority * 1e7 + start
    end
    s.seq = s.seq + 1
    local member = string.format('%012d:%s:%d:%d', s.seq, me, id, tokens)
    local written = string.format('%.9f', score)
    redis.call('ZADD', KEYS[2], written, member)
    redis.call('ZADD', KEYS[5], written, member)
    s.qt = s.qt + tokens
    waiting = waiting + 1
    fresh[#fresh + 1] = {id, member, written, ask[6], tokens}
  end
end

-- The line, from its head: a gate takes what fits behind all that stands before it, whoever's that is.

local x = {tat_r = s.tat_r, tat_t = s.tat_t, sum_r = s.sum_r, sum_t = s.sum_t, held = s.held}
local at, looked, granted = 0, 0, {}
local wake = nil
while waiting > 0 and looked < MOST do
  local page = redis.call('ZRANGE', KEYS[2], at, at + 49, 'WITHSCORES')
  if #page == 0 then break end
  local stop = false
  for i = 1, #page, 2 do
    local member = page[i]
    local gate, id, tokens = string.match(member, '^%d+:(.-):(%d+):(%d+)$')
    tokens = tonumber(tokens)
    looked = looked + 1
    if heard(gate) < now - STALE then
      strike(member)
      redis.call('ZREM', ARGV[5] .. gate, member)  -- from which the gate will learn of it
      waiting = waiting - 1
    elseif tokens > NT then
      if gate == me then
        strike(member)
        redis.call('ZREM', KEYS[5], member)
        waiting = waiting - 1
        granted[member] = true
        answer.refused[#answer.refused + 1] = {tonumber(id), 'size', NT}
      else
        at = at + 1
      end
    else
      local reason, by_window = blocked(x, tokens)
      if reason then
        if by_window and at == 0 then  -- no credit for a time in which nothing was left either
          if reason == 'rpm' then s.tat_r = math.max(s.tat_r, now + tol_r)
          else s.tat_t = math.max(s.tat_t, now + tol_t) end
        end
        stop = true
        break
      end
      charge(x, tokens)
      if gate == me then
        strike(member)
        redis.call('ZREM', KEYS[5], member)
        waiting = waiting - 1
        grant(tonumber(id), tokens)
        granted[member] = true
        local score = tonumber(page[i + 1])
        local priority = math.floor(score / 1e7)
        redis.call('HSET', KEYS[4], 'V' .. priority, string.format('%.9f', score - priority * 1e7))
      else
        wake = wake or gate
        at = at + 1
      end
    end
  end
  if stop then break end
end

if wake then
  local field = 'woken:' .. wake
  local last = tonumber(redis.call('HGET', KEYS[1], field)) or 0
  if last + 0.05 < now then
    changed[field] = string.format('%.6f', now)
    redis.call('PUBLISH', ARGV[3] .. wake, '1')
  end
end

-- When is whose turn?

local function until_freed(field, need)
  if need <= 0 then return 0 end
  load_buckets()
  for k = s.first, bucket do
    need = need - (buckets[field][k] or 0)
    if need <= 0 then return (k + BUCKETS + SPARE + 1) * width - now end
  end
  return m.window
end

local near = nil
local function tokens_ahead(rank)
  if rank > 50 then return rank * s.qt / math.max(1, redis.call('ZCARD', KEYS[2])) end
  if not near then near = redis.call('ZRANGE', KEYS[2], 0, 49) end
  local sum = 0
  for i = 1, math.min(rank, #near) do sum = sum + tonumber(string.match(near[i], ':(%d+)$')) end
  return sum
end

local function turn(rank, tokens)
  local wait, limit = math.max(0, s.pause - now), 'pause'
  local ahead_t = NT < INF and tokens_ahead(rank) or 0
  if NR < INF then
    local paced = s.tat_r - tol_r + rank / rate_r - now
    local freed = until_freed('r', s.sum_r + rank + 1 - NR)
    local longest = math.max(paced, freed)
    if longest > wait then wait, limit = longest, 'rpm' end
  end
  if NT < INF then
    local paced = s.tat_t - tol_t + ahead_t / rate_t - now
    local freed = until_freed('t', s.sum_t + ahead_t + tokens - NT)
    local longest = math.max(paced, freed)
    if longest > wait then wait, limit = longest, 'tpm' end
  end
  if wait <= 0 and s.held + 1 > NC then limit = 'max_concurrency' end
  return wait, limit
end

for _, one in ipairs(fresh) do
  local id, member, score, longest, tokens = one[1], one[2], one[3], one[4], one[5]
  if not granted[member] then
    local refused = false
    if longest >= 0 then
      local wait, limit = turn(redis.call('ZRANK', KEYS[2], member), tokens)
      if wait > longest then
        strike(member)
        redis.call('ZREM', KEYS[5], member)
        near = nil
        waiting = waiting - 1
        answer.refused[#answer.refused + 1] = {id, limit, wait}
        refused = true
      end
    end
    if not refused then answer.queued[#answer.queued + 1] = {id, member, score} end
  end
end

local first = redis.call('ZRANGE', KEYS[5], 0, 0)[1]
if first then
  local wait, limit = turn(redis.call('ZRANK', KEYS[2], first) or 0, tonumber(string.match(first, ':(%d+)$')))
  answer.turn, answer.limit = wait, limit
end

-- Keep it

local held = NC < INF and m.held + #answer.grants or 0
s.held = others + held
if held > 0 or first then
  redis.call('ZADD', KEYS[3], string.format('%.6f', now), me)
  changed['held:' .. me] = held
else
  redis.call('ZREM', KEYS[3], me)
  removed[#removed + 1] = 'held:' .. me
end
if waiting <= 0 then
  redis.call('DEL', KEYS[4])
  s.qt = 0
end
local out = {}
for _, name in ipairs(NAMES) do
  out[#out + 1] = name
  out[#out + 1] = string.format('%.6f', s[name])
end
for name, value in pairs(changed) do
  out[#out + 1] = name
  out[#out + 1] = value
end
redis.call('HSET', KEYS[1], unpack(out))
if #removed > 0 then redis.call('HDEL', KEYS[1], unpack(removed)) end
local keep = math.ceil((3 * m.window + LEARNED) * 1000)
for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, keep) end

answer.paused = math.max(0, s.pause - now)
answer.waiting = waiting
return cjson.encode(answer)
