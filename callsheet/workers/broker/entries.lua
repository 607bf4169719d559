-- What the hash of messages that are to start later has of one task, see putaway.lua; {} of what is none of ours, and nil.
local function entries_of(value)
    local read, found = pcall(cmsgpack.unpack, value or '')
    if not read or type(found) ~= 'table' then return {}, false end
    for _, entry in ipairs(found) do
        if type(entry) ~= 'table' or type(entry[1]) ~= 'number' or entry[1] ~= entry[1] or type(entry[2]) ~= 'string'
            or type(entry[3]) ~= 'string' then return {}, false end
    end
    return found, true
end
