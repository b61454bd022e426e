-- KEYS: nodes, payloads. Gives {node, payload, ...} of those that are there, and forgets the others.
local now = clock()
for _, node in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now)) do
  redis.call('ZREM', KEYS[1], node)
  redis.call('HDEL', KEYS[2], node)
end
return redis.call('HGETALL', KEYS[2])
