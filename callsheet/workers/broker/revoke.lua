-- Puts the messages of revoked tasks that were put away back on their lists at once, marked, to be dropped by a worker.
--
-- KEYS: the zset and the hash of what is to start later, as in putaway.lua.
-- ARGV: JSON to put first into a message's headers; the task ids.
-- Returns how many task ids there were.
redis.call('ZREM', KEYS[1], '')
local found = 0
for i = 2, #ARGV do
    local known = redis.call('HGET', KEYS[2], ARGV[i])
    if known then
        for _, entry in ipairs((entries_of(known))) do
            -- Inside a JSON string the quotes would be escaped, so that the first match is the headers' beginning.
            local _, brace = string.find(entry[3], '"headers"%s*:%s*{')
            local message = entry[3]
            if brace then
                local rest = string.sub(message, brace + 1)
                local comma = string.find(rest, '^%s*}') and '' or ', '
                message = string.sub(message, 1, brace) .. ARGV[1] .. comma .. rest
            end
            redis.call('RPUSH', entry[2], message)
        end
        redis.call('HDEL', KEYS[2], ARGV[i])
        redis.call('ZREM', KEYS[1], ARGV[i])
        found = found + 1
    end
end
return found
