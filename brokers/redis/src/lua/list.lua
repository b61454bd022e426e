-- Takes messages from a foreign list, and gives back what dead consumers held. All in one: who holds
-- something stands among the consumers.
-- KEYS: list, consumers.
-- ARGV: consumer, lease in ms (0: it leaves for good), whether it gives back all it holds (1 or 0), most
-- messages.
-- Gives the messages, oldest first.
local list, consumers, me, lease = KEYS[1], KEYS[2], ARGV[1], tonumber(ARGV[2])
local now = clock()

local function held_by(consumer)
  return list .. ':runcast:' .. consumer
end

-- The newest first, so that the oldest ends where it is taken next.
local function give_back(consumer)
  while redis.call('LMOVE', held_by(consumer), list, 'LEFT', 'RIGHT') do end
end

for _, dead in ipairs(redis.call('ZRANGEBYSCORE', consumers, '-inf', now, 'LIMIT', 0, 100)) do
  if dead ~= me then
    give_back(dead)
    redis.call('ZREM', consumers, dead)
  end
end
if ARGV[3] == '1' then give_back(me) end
if lease > 0 then
  redis.call('ZADD', consumers, now + lease, me)
else
  redis.call('ZREM', consumers, me)
end

local taken = {}
for _ = 1, tonumber(ARGV[4]) do
  local message = redis.call('LMOVE', list, held_by(me), 'RIGHT', 'LEFT')
  if not message then break end
  taken[#taken + 1] = message
end
return taken
