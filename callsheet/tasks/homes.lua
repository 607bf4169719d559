-- Which worker holds the sessions of which MCP clients, so that calls of agents that have them go there.
--
-- KEYS: the direct queues of all workers that hold any, zset, "direct queue\nown queue" -> ms until which the worker is known
--       to live; then the homes in question, hashes: worker (its direct queue), until (ms).
-- ARGV: what to do; direct queue of this worker; its own queue; lease in ms; further words.
--
-- claim:   all homes are this worker's, unless another one that lives has one. ARGV[5]: "1" takes them all the same.
--          -> {1, the worker that had one before or ""}, or {0, the worker that has one}
-- renew:   -> how many of them are still this worker's
-- release: none is this worker's any more. ARGV[5]: "gone" where the worker stops
-- sweep:   what waits in direct queues of workers that are gone goes back to their own queues. ARGV[5..]: what follows a
--          queue's name in the names of its lists -> how many messages
local time = redis.call("TIME")
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local what, direct, queue, lease = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local FORGET, MOST = 86400000, 1000

local function lives(score)
    redis.call("ZADD", KEYS[1], score, direct .. "\n" .. queue)
end

if what == "claim" then
    local before = ""
    for i = 2, #KEYS do
        local had = redis.call("HMGET", KEYS[i], "worker", "until")
        if had[1] and had[1] ~= direct then
            if ARGV[5] ~= "1" and tonumber(had[2]) > now then
                return {0, had[1]}
            end
            before = had[1]
        end
    end
    for i = 2, #KEYS do
        redis.call("HSET", KEYS[i], "worker", direct, "until", now + lease)
        redis.call("PEXPIRE", KEYS[i], FORGET)
    end
    lives(now + lease)
    return {1, before}
elseif what == "renew" then
    local kept = 0
    for i = 2, #KEYS do
        if redis.call("HGET", KEYS[i], "worker") == direct then
            redis.call("HSET", KEYS[i], "until", now + lease)
            redis.call("PEXPIRE", KEYS[i], FORGET)
            kept = kept + 1
        end
    end
    lives(now + lease)
    return kept
elseif what == "release" then
    for i = 2, #KEYS do
        if redis.call("HGET", KEYS[i], "worker") == direct then
            redis.call("DEL", KEYS[i])
        end
    end
    if ARGV[5] == "gone" then
        lives(now)
    end
    return 0
end

local moved = 0
for _, member in ipairs(redis.call("ZRANGEBYSCORE", KEYS[1], 0, now)) do
    local from, to = string.match(member, "^(.*)\n(.*)$")
    for i = 5, #ARGV do
        while moved < MOST and redis.call("LMOVE", from .. ARGV[i], to .. ARGV[i], "LEFT", "RIGHT") do
            moved = moved + 1
        end
    end
    -- Until then the leases of calls that it was at run out, and they come back to its direct queue.
    if tonumber(redis.call("ZSCORE", KEYS[1], member)) < now - FORGET then
        redis.call("ZREM", KEYS[1], member)
    end
end
return moved
