-- What the script of hubs and that of turns share. Times are the server's, in ms. An id of an entry is
-- "<microseconds>-<seq>": seq counts the hub's entries from 1, and the time never goes back.
--
-- hub(name)      hash: name, epoch, seq and last (of the last entry), auto ("1" or ""), log, members and ids (keys),
--                exchange, channel, length, age and ttl (of the log, ms), eager (how many members are), touched, closed
--                (when, or ""), and what hub.lua says
-- log            stream: s sender's agent id or "", m message as JSON
-- seats(agent)   hash: "<epoch>:<number>" -> JSON {h hub's key, e epoch, n name, l log's key, c cursor, u ""}; of one
--                that has left, u is the last entry that it still has to hear; d: it hears nothing

local HUB_FIELDS = {'name', 'epoch', 'seq', 'last', 'auto', 'log', 'members', 'ids', 'exchange', 'channel', 'length',
                    'age', 'ttl', 'eager', 'touched', 'closed'}

local function hub_of(key)
  local values = redis.call('HMGET', key, unpack(HUB_FIELDS))
  if not values[2] then return nil end
  local hub = {key = key}
  for i, field in ipairs(HUB_FIELDS) do hub[field] = values[i] end
  return hub
end

local function seq_of(id)
  return tonumber(string.match(id, '%d+$'))
end

-- How long its keys are kept, in ms: until somebody has had a day's time to close it, so that its members keep their seats.
local function hub_kept(hub)
  return tonumber(hub.ttl) + 86400000
end

-- Keeps an agent's seats for as long as the hub at least.
local function keep_seats(hub, seats)
  if redis.call('PTTL', seats) < hub_kept(hub) then redis.call('PEXPIRE', seats, hub_kept(hub)) end
end

-- Prolongs what is kept of a hub; seldom, so that a broadcast need not.
local function hub_touch(hub, index, now)
  local ttl = tonumber(hub.ttl)
  if now - tonumber(hub.touched) < ttl / 20 then return end
  redis.call('HSET', hub.key, 'touched', now)
  for _, key in ipairs({hub.key, hub.log, hub.members, hub.ids}) do redis.call('PEXPIRE', key, hub_kept(hub)) end
  for _, text in ipairs(redis.call('HVALS', hub.members)) do keep_seats(hub, cjson.decode(text).seats) end
  if index then redis.call('ZADD', index, 'XX', now, hub.name) end
end

-- Appends a message, and publishes it in the form of kombu's fanout exchanges.
local function hub_append(hub, sender, text)
  local time = redis.call('TIME')
  local micros = time[1] * 1000000 + time[2]
  local seq = tonumber(hub.seq) + 1
  local id = string.format('%.0f-%.0f', math.max(micros, tonumber(string.match(hub.last, '^%d+'))), seq)
  local near = tonumber(hub.length) < 1000 and '=' or '~'
  redis.call('XADD', hub.log, 'MAXLEN', near, hub.length, id, 's', sender, 'm', text)
  if seq == 1 then redis.call('PEXPIRE', hub.log, hub_kept(hub)) end
  redis.call('XTRIM', hub.log, 'MINID', '=', string.format('%.0f', micros - 1000 * hub.age))
  redis.call('HSET', hub.key, 'seq', string.format('%.0f', seq), 'last', id)
  hub.seq, hub.last = seq, id
  local name, exchange = cjson.encode(hub.name), cjson.encode(hub.exchange)
  redis.call('PUBLISH', hub.channel, '{"body":' .. cjson.encode(text) .. ',"content-encoding":"utf-8",' ..
    '"content-type":"application/json","headers":{"hub":' .. name .. ',"epoch":"' .. hub.epoch .. '","id":"' .. id ..
    '","sender":' .. cjson.encode(sender) .. '},"properties":{"delivery_mode":1,"priority":0,"delivery_tag":"' .. id ..
    '","delivery_info":{"exchange":' .. exchange .. ',"routing_key":""}}}')
  return id
end

-- Whether a message is no news to an agent: it, or a replica of the group that it is, said it.
local function is_own(sender, agent)
  local replica = agent .. '/replica-'
  return sender == agent or string.sub(sender, 1, #replica) == replica
end

-- What an agent has not heard yet: {{seat, hub's name, epoch, cursor, up to which entry or "gone", id after which it is
-- given here, number of entries, id of the first, id of the last, {{id, sender, message} ...} of those that are not its
-- own, log} ...}. The caller has some already: from ARGV[have] on epoch, number of the first, id of the last, and so on.
local function hub_news(seats, agent, most, have)
  local found = {}
  local all = redis.call('HGETALL', seats)
  if #all == 0 then return found end
  local known = {}
  for i = have, #ARGV, 3 do known[ARGV[i]] = {tonumber(ARGV[i + 1]), ARGV[i + 2]} end
  for i = 1, #all, 2 do
    local seat = cjson.decode(all[i + 1])
    local upto, start = seat.u, seat.c
    if upto == '' then
      local hub = redis.call('HMGET', seat.h, 'epoch', 'last')
      upto = hub[1] == seat.e and hub[2] or 'gone'
    end
    if seat.d and upto ~= 'gone' then upto = seat.c end
    local entries, others = {}, {}
    if upto ~= 'gone' and seq_of(upto) > seq_of(start) then
      local here, heard = known[seat.e], seq_of(start)
      if here and heard >= here[1] - 1 and heard < seq_of(here[2]) then start = here[2] end
      if seq_of(upto) > seq_of(start) then
        entries = redis.call('XRANGE', seat.l, '(' .. start, upto, 'COUNT', most)
      end
    end
    for _, entry in ipairs(entries) do
      if not is_own(entry[2][2], agent) then others[#others + 1] = {entry[1], entry[2][2], entry[2][4]} end
    end
    found[#found + 1] = {all[i], seat.n, seat.e, seat.c, upto, start, #entries, #entries > 0 and entries[1][1] or '',
                         #entries > 0 and entries[#entries][1] or '', others, seat.l}
  end
  return found
end

-- Keeps that an agent has heard everything up to `cursor`.
local function hub_heard(seats, field, cursor)
  local text = redis.call('HGET', seats, field)
  if not text then return end
  local seat = cjson.decode(text)
  if cursor == 'gone' or (seat.u ~= '' and seq_of(cursor) >= seq_of(seat.u)) then
    redis.call('HDEL', seats, field)
  else
    seat.c = cursor
    redis.call('HSET', seats, field, cjson.encode(seat))
  end
end

-- The hub of a seat, if what the agent replies is said there.
local function hub_hears(seat)
  local hub = seat.u == '' and hub_of(seat.h)
  return hub and hub.epoch == seat.e and hub.auto == '1' and hub.closed == '' and hub
end

-- Names of the hubs with eager members that hear what an agent replies.
local function hub_eager(seats)
  local eager, all = {}, redis.call('HGETALL', seats)
  for i = 1, #all, 2 do
    local hub = hub_hears(cjson.decode(all[i + 1]))
    if hub and tonumber(hub.eager) > 0 then eager[#eager + 1] = hub.name end
  end
  return eager
end

-- Broadcasts messages of an agent to the hubs that it sits in; gives the names of those with eager members.
local function hub_said(seats, agent, texts, now)
  local eager = {}
  local all = #texts > 0 and redis.call('HGETALL', seats) or {}
  for i = 1, #all, 2 do
    local seat = cjson.decode(all[i + 1])
    local hub = hub_hears(seat)
    if hub then
      local before = hub.last
      for _, text in ipairs(texts) do hub_append(hub, agent, text) end
      hub_touch(hub, nil, now)
      if seat.c == before then  -- its own words are not news to it
        seat.c = hub.last
        redis.call('HSET', seats, all[i], cjson.encode(seat))
      end
      if tonumber(hub.eager) > 0 then eager[#eager + 1] = hub.name end
    end
  end
  return eager
end
