-- Stores results and tells who waits for them; counts the parts that they are of chords. Many in one call.
--
-- KEYS: the ids of cancelled calls; for each entry the result's key; with a part also the chord's parts, its size's difference, its size, the
--       parts counted, the saved shape of its results, and who finishes it.
-- ARGV: for each entry the text of the result ("" to store none), seconds that it is kept ("" for ever), the text of
--       the part ("" for none). With a part also its name, "1" where parts keep their order, its place, seconds that
--       parts and shape are kept (0 for ever), a token, seconds that the token holds, "1" to keep the result back
--       where the part completes the chord, the most bytes of parts to return.
-- Returns a list: for each entry 0; or 1 where the part was counted before and somebody else is finishing the chord;
--       or, where the token's owner has to finish the chord, a list of the saved shape and the parts. Either is nil:
--       there is no shape, or it says where the results are, or the parts are too many.
--
-- RETRY is told after the next try was sent, which may have ended by then: it overwrites no end.
-- The first end that is told stays: a success, and the cancellation or termination of a call, are not overwritten. A
-- task of Celery's that is merely flagged as revoked, or that failed, may yet end well: another worker may be running it.
-- Each worker tells of a cancellation; what the one says that ran the call, with where and when, takes the others' place.
-- Keys and parts are as in Celery's own script, so that its workers can count parts of the same chord.
local k, a, answers, cancelled = 1, 0, {}, KEYS[1]
local RAN = '"call": ?{'

local function key()
    k = k + 1
    return KEYS[k]
end

local function arg()
    a = a + 1
    return ARGV[a]
end

local function has_ended(result, value)
    local head = redis.call('GETRANGE', result, 0, 127)
    if string.find(head, '^{"status": ?"SUCCESS"') then return true end
    if string.find(head, '^{"status": ?"FAILURE"') then return string.find(value, '^{"status": ?"RETRY"') end
    if not string.find(head, '^{"status": ?"REVOKED"') then return false end
    if string.find(value, '^{"status": ?"REVOKED"') and string.find(value, RAN)
            and not string.find(redis.call('GET', result), RAN) then return false end
    local id = string.match(result, 'celery%-task%-meta%-(.+)$')
    return string.find(head, '["terminated"]', 1, true) or (id and redis.call('ZSCORE', cancelled, id))
end

local function parts_of(list, ordered, most)
    local count = redis.call(ordered and 'ZCARD' or 'LLEN', list)
    if count > 100 then return false end
    local parts, bytes = redis.call(ordered and 'ZRANGE' or 'LRANGE', list, 0, -1), 0
    for _, text in ipairs(parts) do bytes = bytes + #text end
    return bytes <= most and parts
end

local function count(part, keys, args)
    local list, diff, size, names, shape, finisher = unpack(keys)
    local name, ordered, place, kept, shape_kept, token, holds, most =
        args[1], args[2] == '1', args[3], tonumber(args[4]), tonumber(args[5]), args[6], args[7], tonumber(args[9])
    if redis.call('GET', finisher) == 'done' then return 0 end
    local again = redis.call('SISMEMBER', names, name)
    if again == 0 then
        if ordered then redis.call('ZADD', list, place, part) else redis.call('RPUSH', list, part) end
        redis.call('SADD', names, name)
    end
    if kept > 0 then
        for i = 1, 4 do redis.call('EXPIRE', keys[i], kept) end
        if shape_kept > 0 then redis.call('EXPIRE', shape, shape_kept) end
    end
    local wanted = redis.call('GET', size)
    if not wanted then return 0 end
    wanted = tonumber(wanted) + tonumber(redis.call('GET', diff) or 0)
    if redis.call(ordered and 'ZCARD' or 'LLEN', list) ~= wanted then return 0 end
    if not redis.call('SET', finisher, token, 'NX', 'EX', holds) then return again end
    local saved = redis.call('GET', shape)
    return {saved, not saved and parts_of(list, ordered, most)}
end

while a < #ARGV do
    local result, value, expires, part, answer, held = key(), arg(), arg(), arg(), 0, false
    if part ~= '' then
        local keys, args = {}, {}
        for i = 1, 6 do keys[i] = key() end
        for i = 1, 9 do args[i] = arg() end
        local well
        well, answer = pcall(count, part, keys, args)
        if not well then answer = {err = type(answer) == 'table' and answer.err or tostring(answer)} end
        held = well and args[8] == '1' and type(answer) == 'table' and not answer[1]
    end
    if value ~= '' and not held and not has_ended(result, value) then
        if expires ~= '' then
            redis.call('SET', result, value, 'EX', expires)
        else
            redis.call('SET', result, value)
        end
        redis.call('PUBLISH', result, value)
    end
    answers[#answers + 1] = answer
end
return answers
