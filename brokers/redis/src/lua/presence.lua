-- KEYS: nodes, payloads. ARGV: node, payload, time to live in ms.
redis.call('ZADD', KEYS[1], clock() + ARGV[3], ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
