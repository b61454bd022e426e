-- Lets others have at once what a consumer of a foreign stream holds; without any it is forgotten.
-- KEYS: stream. ARGV: group, consumer, ms for which a message must have been idle to be taken over.
local stream, group, me, idle = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local start, held = '-', false
repeat
  local page = redis.call('XPENDING', stream, group, start, '+', 100, me)
  for _, pending in ipairs(page) do
    redis.call('XCLAIM', stream, group, me, 0, pending[1], 'IDLE', idle, 'JUSTID')
    held, start = true, '(' .. pending[1]
  end
until #page < 100
if not held then redis.call('XGROUP', 'DELCONSUMER', stream, group, me) end
