-- KEYS: queue, dead. ARGV: most messages, id of the letter.
-- Gives 1, 0 when there is no such letter, or -1 when the queue is full.
local letter = redis.call('XRANGE', KEYS[2], ARGV[2], ARGV[2])[1]
if not letter then return 0 end
if redis.call('XLEN', KEYS[1]) >= tonumber(ARGV[1]) then return -1 end
redis.call('XADD', KEYS[1], '*', 'm', field(letter, 'm'), 'r', 1)
redis.call('XDEL', KEYS[2], ARGV[2])
return 1
