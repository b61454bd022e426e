-- Stands before every script. The time is the server's own, in milliseconds.
local GROUP, RETURNED, DELAYED = 'runcast', '~returned', '~delayed'

local function clock()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- The group is made on demand, also after the data was lost: it begins with the oldest message.
local function ensure_group(queue)
  local known = redis.pcall('XPENDING', queue, GROUP)
  if known.err then redis.call('XGROUP', 'CREATE', queue, GROUP, '0', 'MKSTREAM') end
end

local function ring(bell)
  redis.call('XADD', bell, 'MAXLEN', 1, '*', 'r', 1)
end

local function remove(queue, id)
  redis.call('XACK', queue, GROUP, id)
  redis.call('XDEL', queue, id)
end

-- The value of a field of an entry (id, {field, value, ...}); what is not there is empty.
local function field(entry, name)
  for i = 1, #entry[2], 2 do
    if entry[2][i] == name then return entry[2][i + 1] end
  end
  return ''
end

-- Moves a message that somebody held to the end of its queue, under a new id.
local function to_end(queue, id)
  local entry = redis.call('XRANGE', queue, id, id)[1]
  if entry then redis.call('XADD', queue, '*', 'm', field(entry, 'm'), 'r', 1) end
  remove(queue, id)
end
