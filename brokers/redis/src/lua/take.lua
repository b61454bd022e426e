-- KEYS: consumers, and for each queue in order of priority: queue, bell, delayed.
-- ARGV: consumer, lease in ms, most messages.
-- Gives {{queue number from 0, delivered before, id, message}, ...}, and when that is empty the ids
-- after which queue and bell of each queue have news, and the ms until a delayed message is due (-1: never).
local me, lease, most = ARGV[1], ARGV[2], tonumber(ARGV[3])
local now = clock()
redis.call('ZADD', KEYS[1], now + lease, me)

local taken = {}
local function take(number, before, entries)
  for _, entry in ipairs(entries) do
    local again = before or field(entry, 'r') ~= ''
    taken[#taken + 1] = {number, again and 1 or 0, entry[1], field(entry, 'm')}
  end
end

for k = 2, #KEYS, 3 do
  local queue, delayed, number = KEYS[k], KEYS[k + 2], (k - 2) / 3
  ensure_group(queue)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', delayed, '-inf', now, 'LIMIT', 0, 100)) do
    to_end(queue, id)
    redis.call('ZREM', delayed, id)
  end
  -- one at a time of a later queue: more could wait here while an earlier queue gets something
  if k > 2 then most = 1 end
  local claim = {'XCLAIM', queue, GROUP, me, 0}
  for _, returned in ipairs(redis.call('XPENDING', queue, GROUP, '-', '+', most, RETURNED)) do
    claim[#claim + 1] = returned[1]
  end
  if #claim > 5 then take(number, true, redis.call(unpack(claim))) end
  if #taken < most then
    local read = redis.call('XREADGROUP', 'GROUP', GROUP, me, 'COUNT', most - #taken, 'STREAMS', queue, '>')
    if read then take(number, false, read[1][2]) end
  end
  if #taken > 0 then return {taken, {}, -1} end
end

local function last_id(key)
  if redis.call('EXISTS', key) == 0 then return '0-0' end
  local info = redis.call('XINFO', 'STREAM', key)
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then return info[i + 1] end
  end
end

local news, due = {}, -1
for k = 2, #KEYS, 3 do
  news[#news + 1] = last_id(KEYS[k])
  news[#news + 1] = last_id(KEYS[k + 1])
  local next = redis.call('ZRANGE', KEYS[k + 2], 0, 0, 'WITHSCORES')
  if next[2] then
    local wait = math.max(next[2] - now, 0)
    if due < 0 or wait < due then due = wait end
  end
end
return {taken, news, due}
