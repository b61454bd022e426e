-- KEYS: queue. ARGV: most messages, message. Gives 0 when the queue is full.
if redis.call('XLEN', KEYS[1]) >= tonumber(ARGV[1]) then return 0 end
redis.call('XADD', KEYS[1], '*', 'm', ARGV[2])
return 1
