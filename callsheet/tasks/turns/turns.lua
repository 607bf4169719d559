-- One agent's turns and state. Time is this server's, in ms.
--
-- KEYS  1 hash state: class "module:Name", format, version (token of the turn that wrote it last), base (id of the
--         stream's entry from which the memories are read), epoch (token of the turn that wrote the whole of it anew),
--         turns, created, updated; "s:<path>" a registered attribute as JSON
--       2 stream memory    3 hash turn: token (of the last turn), call (whose turn it is, ""), until, called ("1" while
--         the call has been sent its turn and has not come yet), waits (the jobs that the reply waits for), last (when
--         the last sent of the calls that had a turn was sent)
--       4 zset line        5 hash parked: "m:<call>" its message, "x:<call>" when it expires, "n:<call>" how often it
--         was sent its turn, and when it may be again, "j:<call>" the jobs in whose course it was made, "b:<call>" until
--         when it lets the call before it pass, when that was sent, and its id
--       6 zset lines       7 zset states       8 zset of cancelled calls       9 string replied
--       10 hash seats, see log.lua
-- ARGV  1 action, 2 agent's id, 3 call's id, 4 lease, and what the action says below
-- Every answer ends with the messages to publish: those of calls whose turn it is now.
local action, id, call, lease = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local STATE, MEMORY, TURN, LINE, PARKED = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local LINES, STATES, CANCELLED, REPLIED, SEATS = KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10]
local MOST_SENT, MOST_POLLED = 10, 3
local PATIENCE = 500  -- ms that a call waits for one that its sender sent before it, and that is still on its way
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local turn = redis.call('HMGET', TURN, 'token', 'call', 'until', 'called', 'waits', 'last')
local token, holder, till, called = tonumber(turn[1] or 0), turn[2] or '', tonumber(turn[3] or 0), turn[4] == '1'
local publish = {}

local function leave(one)
  redis.call('ZREM', LINE, one)
  redis.call('HDEL', PARKED, 'm:' .. one, 'x:' .. one, 'n:' .. one, 'j:' .. one, 'b:' .. one)
end

local function give(one, is_called)
  holder, till, called = one, one ~= '' and now + lease or 0, is_called
  redis.call('HSET', TURN, 'call', holder, 'until', till, 'called', called and '1' or '', 'waits', '')
end

local function look_after(when)
  if redis.call('EXISTS', LINE) == 1 then
    redis.call('ZADD', LINES, when, id)
  else
    redis.call('ZREM', LINES, id)
  end
end

-- Until when a call, which came by itself, lets the one before it pass; nothing where that has come.
local function lets_pass(before)
  if not before then return end
  local deadline, sent, id = string.match(before, '^(%d+) (%d+) (.*)$')
  deadline = tonumber(deadline)
  if deadline > now and tonumber(sent) > tonumber(turn[6] or 0) and holder ~= id
      and not redis.call('ZSCORE', LINE, id) and not redis.call('ZSCORE', CANCELLED, id) then
    return deadline
  end
end

-- Sends the first in line that can have it its turn, which nobody has. `present` needs no message. Gives the time until
-- when the first lets another pass, and so all behind it.
local function advance(present)
  local from, soonest = 0, nil
  while true do
    local some = redis.call('ZRANGE', LINE, from, from + 49)
    if #some == 0 then break end
    for _, one in ipairs(some) do
      local known = redis.call('HMGET', PARKED, 'm:' .. one, 'x:' .. one, 'n:' .. one, 'b:' .. one)
      local sent, again = string.match(known[3] or '0 0', '^(%d+) (%d+)$')
      sent, again = tonumber(sent), tonumber(again)
      local pause = lets_pass(known[4])
      if redis.call('ZSCORE', CANCELLED, one) or sent >= (known[1] and MOST_SENT or MOST_POLLED) then
        leave(one)
      elseif known[2] and tonumber(known[2]) <= now then
        publish[#publish + 1] = known[1]  -- Celery says that it has expired
        leave(one)
      elseif pause then
        give('', false)
        look_after(pause)
        return pause
      elseif again <= now or one == present then
        give(one, true)
        redis.call('HSET', PARKED, 'n:' .. one, (sent + 1) .. ' ' .. (now + lease * 2 ^ (sent + 1)))
        if known[1] and one ~= present then publish[#publish + 1] = known[1] end
        look_after(till)
        return
      else
        from = from + 1
        soonest = math.min(soonest or again, again)
      end
    end
  end
  give('', false)
  look_after(soonest or now)
end

-- The job in whose course this call was made and for which the holder's reply waits, if there is one.
local function held_up(jobs)
  if turn[5] and turn[5] ~= '' and till > now then
    for job in string.gmatch(jobs, '[^ ]+') do
      if string.find(' ' .. turn[5] .. ' ', ' ' .. job .. ' ', 1, true) then return job end
    end
  end
end

-- What the call, as it was sent then, came to before: it is delivered again. "<token> <sent> <JSON>"; sent is 0 of one
-- whose id names its work, and which is the same whenever it was sent.
local function replied_to(sent)
  local text = redis.call('GET', REPLIED)
  if text then
    local by, when, reply = string.match(text, '^(%d+) (%d+) (.*)$')
    if when == sent or when == '0' then return reply, tonumber(by) end
  end
end

-- take: 5 class or "" for any, 6 format, 7 version known here or -1, 8 microseconds when it was sent, 9 "wait" in line, or "try"
--       10 message to park, 11 ms when it expires or "", 12 ms that the turn's key is kept, 13 entries at most,
--       14 the jobs in whose course it was made, 15 "<microseconds> <id>": when the call that its sender sent before it
--       was sent, and its id; or "", then what hub_news says of what the caller has
--   {"replied", text, hubs with eager members} {"class", its} {"format", its} {"busy", ms} {"pause", ms} {"waits", job}
--   {"turn", token, version, "1" if what is known must be forgotten, {field, value ...}, {{id, path, change} ...}, what hub_news gives}
if action == 'take' then
  local replied = replied_to(ARGV[8])
  if replied then
    leave(call)
    return {'replied', replied, hub_eager(SEATS), publish}
  end
  local stored = redis.call('HMGET', STATE, 'class', 'format', 'version', 'base', 'epoch')
  if (stored[1] or '') ~= '' and ARGV[5] ~= '' and stored[1] ~= ARGV[5] then return {'class', stored[1], publish} end
  if stored[2] and tonumber(stored[2]) > tonumber(ARGV[6]) then return {'format', stored[2], publish} end
  local mine = holder == call and called
  local micros = time[1] * 1000000 + time[2]
  local came = math.min(math.max(tonumber(ARGV[8]), micros - 60000000), micros)  -- clocks differ
  local before, pause = ARGV[15] ~= '' and (now + PATIENCE) .. ' ' .. ARGV[15], nil
  if not mine and (holder == '' or till <= now) then
    local first = redis.call('ZRANGE', LINE, 0, 0, 'WITHSCORES')
    if #first > 0 and first[1] ~= call and tonumber(first[2]) <= came then
      pause = advance(call)
    else
      holder, called = '', false
      pause = lets_pass(before)
    end
    mine = not pause and (holder == '' or holder == call)
  end
  if not mine then
    local job = held_up(ARGV[14])
    if job then return {'waits', job, publish} end
    if ARGV[9] == 'wait' then
      redis.call('ZADD', LINE, 'NX', came, call)
      redis.call('HSET', PARKED, 'j:' .. call, ARGV[14])
      if ARGV[10] ~= '' then redis.call('HSET', PARKED, 'm:' .. call, ARGV[10]) end
      if ARGV[11] ~= '' then redis.call('HSET', PARKED, 'x:' .. call, ARGV[11]) end
      if before then redis.call('HSET', PARKED, 'b:' .. call, before) end
      redis.call('ZADD', LINES, 'NX', pause or till, id)
      redis.call('PEXPIRE', LINE, ARGV[12])
      redis.call('PEXPIRE', PARKED, ARGV[12])
    end
    return {pause and 'pause' or 'busy', math.max(0, (pause or till) - now), publish}
  end
  leave(call)
  give(call, false)
  token = math.max(token, tonumber(stored[3] or 0)) + 1
  redis.call('HSET', TURN, 'token', token, 'last', math.max(tonumber(turn[6] or 0), tonumber(ARGV[8])))
  redis.call('PEXPIRE', TURN, ARGV[12])
  look_after(till)
  local version, known = tonumber(stored[3] or 0), tonumber(ARGV[7])
  local fields, entries, anew = {}, {}, ''
  if known >= 0 and (version < known or known < tonumber(stored[5] or 0)) then known, anew = -1, '1' end
  if version ~= known and version > 0 then
    local all = redis.call('HGETALL', STATE)
    for i = 1, #all, 2 do
      if string.sub(all[i], 1, 2) == 's:' then
        fields[#fields + 1] = string.sub(all[i], 3)
        fields[#fields + 1] = all[i + 1]
      end
    end
    local start = (known + 1) .. '-0'
    if stored[4] and tonumber(string.match(stored[4], '^%d+')) > known then start = stored[4] end
    for _, entry in ipairs(redis.call('XRANGE', MEMORY, start, '+', 'COUNT', ARGV[13])) do
      entries[#entries + 1] = {entry[1], entry[2][2], entry[2][4]}
    end
  end
  return {'turn', token, version, anew, fields, entries, hub_news(SEATS, id, tonumber(ARGV[13]), 16), publish}
end

-- end: 5 token, 6 class, 7 format, 8 ms that state is kept or 0, 9 ms that the turn's key is kept, 10 reply or "",
--      10: "<token> <sent> <JSON>"; 11 ms that it is kept, 12 number of fields, 13 number of entries, 14 which entry is the new base or -1,
--      15 "1" to drop what is before it, "all" to drop the whole state first; 16 number of hubs that were heard; then path and
--      value of each field, path and change of each entry, seat and cursor of each hub, and what was said
--   {"ok", version, hubs whose eager members are to be told} {"lost", 1 if the call runs, waits or has ended elsewhere}
if action == 'end' then
  local mine = tonumber(ARGV[5])
  if holder ~= call or token ~= mine or called then
    local replied, by = replied_to(string.match(ARGV[10], '^%d+ (%d+)') or '')
    if by == mine then  -- its answer was lost
      return {'ok', tonumber(redis.call('HGET', STATE, 'version') or 0), hub_eager(SEATS), publish}
    end
    local elsewhere = replied or holder == call or redis.call('ZSCORE', LINE, call)
    return {'lost', elsewhere and 1 or 0, publish}
  end
  local fields, entries, base = tonumber(ARGV[12]), tonumber(ARGV[13]), tonumber(ARGV[14])
  if ARGV[15] == 'all' then redis.call('DEL', STATE, MEMORY) end
  if fields + entries > 0 then
    if redis.call('EXISTS', STATE) == 0 then redis.call('HSET', STATE, 'created', now, 'epoch', mine) end
    if ARGV[6] ~= '' then redis.call('HSET', STATE, 'class', ARGV[6]) end
    redis.call('HSET', STATE, 'format', ARGV[7], 'version', mine, 'updated', now)
    redis.call('HINCRBY', STATE, 'turns', 1)
    for i = 17, 16 + 2 * fields, 2 do
      redis.call('HSET', STATE, 's:' .. ARGV[i], ARGV[i + 1])
    end
    for i = 0, entries - 1 do
      local at = 17 + 2 * fields + 2 * i
      redis.call('XADD', MEMORY, mine .. '-' .. i, 'p', ARGV[at], 'c', ARGV[at + 1])
    end
    if base >= 0 then
      redis.call('HSET', STATE, 'base', mine .. '-' .. base)
      if ARGV[15] == '1' then redis.call('XTRIM', MEMORY, 'MINID', mine .. '-' .. base) end
    end
  end
  if redis.call('EXISTS', STATE) == 1 then
    redis.call('ZADD', STATES, now, id)
    if ARGV[8] ~= '0' then
      redis.call('ZREMRANGEBYSCORE', STATES, '-inf', now - ARGV[8])
      redis.call('PEXPIRE', STATES, ARGV[8])
      redis.call('PEXPIRE', STATE, ARGV[8])
      redis.call('PEXPIRE', MEMORY, ARGV[8])
    end
  end
  local at = 17 + 2 * (fields + entries)
  local from, said = at + 2 * tonumber(ARGV[16]), {}
  for i = at, from - 1, 2 do hub_heard(SEATS, ARGV[i], ARGV[i + 1]) end
  for i = from, #ARGV do said[#said + 1] = ARGV[i] end
  local eager = hub_said(SEATS, id, said, now)
  redis.call('PEXPIRE', TURN, ARGV[9])
  if ARGV[10] ~= '' then
    redis.call('SET', REPLIED, ARGV[10], 'PX', ARGV[11])
    leave(call)
  end
  advance('')
  return {'ok', tonumber(redis.call('HGET', STATE, 'version') or 0), eager, publish}
end

-- renew: 5 token
--   {1 or 0}
if action == 'renew' then
  if holder ~= call or token ~= tonumber(ARGV[5]) then return {0, publish} end
  redis.call('HSET', TURN, 'until', now + lease)
  look_after(now + lease)
  return {1, publish}
end

-- waits: 5 token, 6 the jobs for which the reply waits from now on
--   {1 if calls in the course of one of them wait for the turn of this very reply, else 0}
if action == 'waits' then
  if holder ~= call or token ~= tonumber(ARGV[5]) then return {0, publish} end
  redis.call('HSET', TURN, 'waits', ARGV[6])
  turn[5] = ARGV[6]
  for _, one in ipairs(ARGV[6] ~= '' and redis.call('ZRANGE', LINE, 0, -1) or {}) do
    if held_up(redis.call('HGET', PARKED, 'j:' .. one) or '') then return {1, publish} end
  end
  return {0, publish}
end

-- copy: 5 token, 6 key of another state, 7 key of its memory: both are copied here, in place of what is there
--   {1 or 0}
if action == 'copy' then
  if holder ~= call or token ~= tonumber(ARGV[5]) then return {0, publish} end
  redis.call('DEL', STATE, MEMORY)
  redis.call('COPY', ARGV[6], STATE)
  redis.call('COPY', ARGV[7], MEMORY)
  -- Over all that is in the stream, and over all that may be known elsewhere of what was here before.
  local version = math.max(token, tonumber(redis.call('HGET', STATE, 'version') or 0))
  redis.call('HSET', STATE, 'version', version, 'epoch', version, 'created', now, 'updated', now)
  return {1, publish}
end

-- leave: the call does not want its turn any more
if action == 'leave' then
  leave(call)
  if holder == call then advance('') else look_after(till) end
  return {publish}
end

-- pass: the turn goes on, if its lease is over
if holder == '' or till <= now then advance('') else look_after(till) end
return {publish}
