-- One hub. Time is this server's, in ms.
--
-- More fields of hub(name): opened (auto as it was when the hub was opened), kept ("1": it outlives who opened it),
-- created, openers (how many have it open), "o:<opener>" (since when), seats (how many were ever given)
-- members   hash: agent id -> JSON {label, seat (field of its seats), seats (key), by {openers that brought it}, eager,
--           spec (of an eager one: what it is built of)}; replicas of an elastic group are "<its id>/replica-<number>"
-- ids       zset: ids of the last broadcasts -> seq, so that one that is sent twice is kept once
-- hubs      zset: name -> ms of the last use, about
--
-- KEYS  1 hub(name)  2 hubs
-- ARGV  1 action, 2 hub's name, 3 epoch that is meant or "" for any, and what the action says below
local action, name, epoch = ARGV[1], ARGV[2], ARGV[3]
local HUB, HUBS = KEYS[1], KEYS[2]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local MOST_IDS = 1000

local function leave(hub, agent, member)
  if member.eager then  -- it may be a group, whose replicas go with it
    for _, other in ipairs(redis.call('HKEYS', hub.members)) do
      if other ~= agent and is_own(other, agent) then
        local text = redis.call('HGET', hub.members, other)
        local replica = cjson.decode(text)
        redis.call('HDEL', replica.seats, replica.seat)
        redis.call('HDEL', hub.members, other)
      end
    end
  end
  local text = redis.call('HGET', member.seats, member.seat)
  if text then
    local seat = cjson.decode(text)
    if seat.d or seat.c == hub.last then
      redis.call('HDEL', member.seats, member.seat)
    else  -- what was said while it sat here it hears at its next turn
      seat.u = hub.last
      redis.call('HSET', member.seats, member.seat, cjson.encode(seat))
      keep_seats(hub, member.seats)
    end
  end
  redis.call('HDEL', hub.members, agent)
  if member.eager then hub.eager = redis.call('HINCRBY', HUB, 'eager', -1) end
end

local function close(hub)
  local all = redis.call('HGETALL', hub.members)
  for i = 1, #all, 2 do
    if redis.call('HEXISTS', hub.members, all[i]) == 1 then leave(hub, all[i], cjson.decode(all[i + 1])) end
  end
  redis.call('HSET', HUB, 'closed', now)
  redis.call('ZREM', HUBS, name)
  for _, key in ipairs({HUB, hub.log}) do redis.call('PEXPIRE', key, hub_kept(hub)) end
  redis.call('DEL', hub.members, hub.ids)
  redis.call('PUBLISH', hub.channel, '{"body":"null","content-encoding":"utf-8","content-type":"application/json",' ..
    '"headers":{"hub":' .. cjson.encode(name) .. ',"epoch":"' .. hub.epoch .. '","closed":true},"properties":' ..
    '{"delivery_mode":1,"priority":0,"delivery_tag":"closed","delivery_info":{"exchange":' ..
    cjson.encode(hub.exchange) .. ',"routing_key":""}}}')
end

-- Seats the agent at ARGV[i]: id, seats key, label, "1" if eager or "d" if deaf, spec.
local function join_one(hub, opener, i)
  local agent, seats = ARGV[i], ARGV[i + 1]
  local text = redis.call('HGET', hub.members, agent)
  local deaf = ARGV[i + 3] == 'd'
  if deaf and redis.call('HEXISTS', hub.members, string.match(agent, '^(.*)/replica%-%d+$')) == 0 then
    return  -- its group has left meanwhile
  end
  local member = text and cjson.decode(text)
  if not member then
    local seat = hub.epoch .. ':' .. redis.call('HINCRBY', HUB, 'seats', 1)
    member = {seat = seat, seats = seats, by = {}, eager = ARGV[i + 3] == '1'}
    redis.call('HSET', seats, seat, cjson.encode({h = HUB, e = hub.epoch, n = name, l = hub.log, c = hub.last, u = '',
                                                  d = deaf or nil}))
    keep_seats(hub, seats)
    if member.eager then hub.eager = redis.call('HINCRBY', HUB, 'eager', 1) end
  end
  member.label, member.by[opener] = ARGV[i + 2], true
  if ARGV[i + 4] ~= '' then member.spec = ARGV[i + 4] end
  redis.call('HSET', hub.members, agent, cjson.encode(member))
end

local function join(hub, opener, from)
  for i = from, #ARGV, 5 do join_one(hub, opener, i) end
end

-- The last entry of a broadcast that has come before.
local function entry_of(broadcast, hub)
  local seq = tonumber(redis.call('ZSCORE', hub.ids, broadcast) or 0)
  if seq == 0 then return end
  for _, entry in ipairs(redis.call('XREVRANGE', hub.log, '+', '-', 'COUNT', tonumber(hub.seq) - seq + 1)) do
    if seq_of(entry[1]) == seq then return entry[1] end
  end
  return hub.last
end

local hub = hub_of(HUB)
if hub and (hub.closed ~= '' or (epoch ~= '' and epoch ~= hub.epoch)) and action ~= 'open' then hub = nil end

-- open: 4 opener or "" for nobody, 5 "1" or "" (auto-broadcast) or "?" (as it is; "1" for a new one), 6 "1" if kept,
--       7 epoch of a new one, 8 log, 9 members, 10 ids (keys), 11 exchange, 12 channel, 13 length, 14 age, 15 ttl,
--       then members, see `join`
--   {"ok", epoch, auto} {"differs", opened}
if action == 'open' then
  local new = not hub or hub.closed ~= ''
  local auto = ARGV[5] == '?' and '1' or ARGV[5]
  if new then
    redis.call('DEL', HUB)
    redis.call('HSET', HUB, 'name', name, 'epoch', ARGV[7], 'seq', 0, 'last', string.format('%.0f-0', time[1] * 1000000 + time[2]),
      'auto', auto, 'opened', auto, 'kept', '', 'created', now, 'openers', 0, 'seats', 0, 'eager', 0, 'touched', 0,
      'closed', '', 'log', ARGV[8], 'members', ARGV[9], 'ids', ARGV[10], 'exchange', ARGV[11], 'channel', ARGV[12],
      'length', ARGV[13], 'age', ARGV[14], 'ttl', ARGV[15])
    redis.call('ZADD', HUBS, now, name)
    hub = hub_of(HUB)
  elseif ARGV[5] ~= '?' then
    local opened = redis.call('HGET', HUB, 'opened')
    if opened ~= ARGV[5] then return {'differs', opened} end
  end
  if ARGV[6] == '1' then redis.call('HSET', HUB, 'kept', '1') end
  if ARGV[4] ~= '' and redis.call('HSETNX', HUB, 'o:' .. ARGV[4], now) == 1 then
    redis.call('HINCRBY', HUB, 'openers', 1)
  end
  join(hub, ARGV[4], 16)
  hub_touch(hub, HUBS, now)
  return {'ok', hub.epoch, redis.call('HGET', HUB, 'auto')}
end

-- expired: the epoch's hub has not been used for its ttl
if action == 'expired' then
  if not hub then
    redis.call('ZREM', HUBS, name)
  elseif now - tonumber(hub.touched) > tonumber(hub.ttl) then
    close(hub)
  else
    redis.call('ZADD', HUBS, hub.touched, name)
  end
  return {'ok'}
end

if not hub then return {'missing'} end

-- add: 4 opener, 5 nothing, then members
if action == 'add' then
  hub_touch(hub, HUBS, now)
  join(hub, ARGV[4], 6)
  redis.call('PEXPIRE', hub.members, hub_kept(hub))
  return {'ok'}
end

-- delete: 4 ids ...
--   {"ok", {those that are no members}}
if action == 'delete' then
  local strangers = {}
  for i = 4, #ARGV do
    local text = redis.call('HGET', hub.members, ARGV[i])
    if text then leave(hub, ARGV[i], cjson.decode(text)) else strangers[#strangers + 1] = ARGV[i] end
  end
  return {'ok', strangers}
end

-- auto: 4 "1" or ""
if action == 'auto' then
  redis.call('HSET', HUB, 'auto', ARGV[4])
  return {'ok'}
end

-- say: 4 id of the broadcast, 5 sender's agent id or "", 6 messages ...
--   {"ok", id of the last entry, eager members}
if action == 'say' then
  local id = entry_of(ARGV[4], hub)
  if not id then
    for i = 6, #ARGV do id = hub_append(hub, ARGV[5], ARGV[i]) end
    redis.call('ZADD', hub.ids, hub.seq, ARGV[4])
    redis.call('ZREMRANGEBYSCORE', hub.ids, '-inf', hub.seq - MOST_IDS)
    redis.call('PEXPIRE', hub.ids, hub_kept(hub))
    hub_touch(hub, HUBS, now)
  end
  return {'ok', id, tonumber(hub.eager)}
end

-- leave: 4 opener, then ids of agents that it brought; the last one's leaving closes a hub that is not kept
if action == 'leave' then
  local gone = redis.call('HDEL', HUB, 'o:' .. ARGV[4]) == 1
  local left = gone and redis.call('HINCRBY', HUB, 'openers', -1) or tonumber(redis.call('HGET', HUB, 'openers'))
  if gone and left <= 0 and redis.call('HGET', HUB, 'kept') ~= '1' then
    close(hub)
    return {'ok'}
  end
  for i = 5, #ARGV do
    local text = redis.call('HGET', hub.members, ARGV[i])
    if text then
      local member = cjson.decode(text)
      member.by[ARGV[4]] = nil
      if next(member.by) then
        redis.call('HSET', hub.members, ARGV[i], cjson.encode(member))
      else
        leave(hub, ARGV[i], member)
      end
    end
  end
  return {'ok'}
end

-- close
close(hub)
return {'ok'}
