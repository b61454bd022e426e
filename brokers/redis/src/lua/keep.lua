-- Renews the lease of a consumer, returns what is pending for it and not held by it, and takes over
-- what dead consumers held. Harmless at any time, any number of times.
-- KEYS: consumers, and for each queue: queue, bell.
-- ARGV: consumer, lease in ms, whether it leaves for good (1 or 0), and for each queue the number of
-- ids held and these ids.
local me, lease, leaves = ARGV[1], tonumber(ARGV[2]), ARGV[3] == '1'
local now = clock()
if leaves then redis.call('ZREM', KEYS[1], me) else redis.call('ZADD', KEYS[1], now + lease, me) end

local function give_back(queue, consumer, idle, held)
  local start, moved = '-', false
  repeat
    local page = redis.call('XPENDING', queue, GROUP, 'IDLE', idle, start, '+', 100, consumer)
    for _, pending in ipairs(page) do
      if not held[pending[1]] then
        redis.call('XCLAIM', queue, GROUP, RETURNED, 0, pending[1], 'JUSTID')
        moved = true
      end
      start = '(' .. pending[1]
    end
  until #page < 100
  return moved
end

local function alive(consumer)
  local ends = redis.call('ZSCORE', KEYS[1], consumer)
  return ends and tonumber(ends) > now
end

local at = 4
for k = 2, #KEYS, 2 do
  local queue, held = KEYS[k], {}
  ensure_group(queue)
  for i = 1, tonumber(ARGV[at]) do held[ARGV[at + i]] = true end
  at = at + tonumber(ARGV[at]) + 1

  local moved = give_back(queue, me, 0, held)
  for _, info in ipairs(redis.call('XINFO', 'CONSUMERS', queue, GROUP)) do
    local consumer = {}
    for i = 1, #info, 2 do consumer[info[i]] = info[i + 1] end
    local name = consumer.name
    if name ~= me and name ~= RETURNED and name ~= DELAYED and not alive(name) then
      if consumer.pending > 0 then
        moved = give_back(queue, name, lease, {}) or moved
      elseif consumer.idle >= lease then
        redis.call('XGROUP', 'DELCONSUMER', queue, GROUP, name)
      end
    end
  end
  if leaves then redis.call('XGROUP', 'DELCONSUMER', queue, GROUP, me) end
  if moved then ring(KEYS[k + 1]) end
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
