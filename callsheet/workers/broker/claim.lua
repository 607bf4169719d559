-- Takes messages off the lists and registers each as unacknowledged, under a tag of its own and a lease.
--
-- KEYS: the unacked hash, its index, the zset of leases; then for each priority step the list of each queue.
-- ARGV: the tags' prefix, most messages, most bytes, seconds of lease, "1" to take from the queues in turn,
--       the number of queues; then for each queue what follows a message in the unacked hash, "" where its
--       messages need no acknowledgement.
-- Returns a flat list: the number of the queue, the message, and so on; the nth message has the tag prefix..n.
local prefix, most, bytes = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local lease, in_turn, width = tonumber(ARGV[4]), ARGV[5] == '1', tonumber(ARGV[6])
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local order, out, index, leases, count = {}, {}, {}, {}, 0
for i = 1, width do order[i] = i end

local function used(queue)
    for i = 1, #order do
        if order[i] == queue then
            table.remove(order, i)
            order[#order + 1] = queue
            return
        end
    end
end

for step = 3, #KEYS - 1, width do
    local line = {unpack(order)}
    while count < most and bytes > 0 and #line > 0 do
        local queue = line[1]
        local message = redis.call('RPOP', KEYS[step + queue])
        if not message then
            table.remove(line, 1)
        else
            count = count + 1
            local rest = ARGV[6 + queue]
            if rest ~= '' then
                local tag = prefix .. count
                local done = redis.pcall('HSET', KEYS[1], tag, '[' .. message .. rest)
                if type(done) == 'table' and done.err then
                    redis.call('RPUSH', KEYS[step + queue], message)
                    return done
                end
                index[#index + 1] = now
                index[#index + 1] = tag
                leases[#leases + 1] = now + lease
                leases[#leases + 1] = tag
            end
            out[#out + 1] = queue
            out[#out + 1] = message
            bytes = bytes - #message
            if in_turn then
                table.remove(line, 1)
                line[#line + 1] = queue
                used(queue)
            end
        end
    end
end
if #index > 0 then
    redis.call('ZADD', KEYS[2], unpack(index))
    redis.call('ZADD', KEYS[3], unpack(leases))
end
return out
