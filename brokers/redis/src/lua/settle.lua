-- KEYS: queue, bell, delayed, dead.
-- ARGV: consumer, id, how (ack, nack or reject), delay in ms or reason, most dead letters.
-- Gives 1 when it is done or was done before, 2 when the oldest dead letter gave way as well, and 0
-- when the message has been taken over by somebody else.
local queue, me, id, how = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local pending = redis.pcall('XPENDING', queue, GROUP, id, id, 1)
if pending.err then
  if string.sub(pending.err, 1, 7) == 'NOGROUP' then return 1 end
  return pending
end
if #pending == 0 then return 1 end
local holder = pending[1][2]
if holder == DELAYED and how == 'nack' then return 1 end
if holder ~= me then return 0 end

local result = 1
if how == 'nack' and tonumber(ARGV[4]) > 0 then
  redis.call('XCLAIM', queue, GROUP, DELAYED, 0, id, 'JUSTID')
  redis.call('ZADD', KEYS[3], clock() + ARGV[4], id)
  -- whoever waits may have to wait for less
  ring(KEYS[2])
elseif how == 'nack' then
  to_end(queue, id)
else
  if how == 'reject' then
    local entry = redis.call('XRANGE', queue, id, id)[1]
    local most = tonumber(ARGV[5])
    if redis.call('XLEN', KEYS[4]) >= most then result = 2 end
    if entry then
      redis.call('XADD', KEYS[4], 'MAXLEN', most, '*', 'm', field(entry, 'm'), 'reason', ARGV[4])
    end
  end
  remove(queue, id)
end
return result
