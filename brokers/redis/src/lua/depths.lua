-- KEYS: for each queue: queue, dead. Gives {messages, of these outstanding, dead letters} for each.
local depths = {}
for k = 1, #KEYS, 2 do
  local outstanding = 0
  if redis.call('EXISTS', KEYS[k]) == 1 then
    local summary = redis.pcall('XPENDING', KEYS[k], GROUP)
    for _, holder in ipairs(summary[4] or {}) do
      if holder[1] ~= RETURNED and holder[1] ~= DELAYED then outstanding = outstanding + holder[2] end
    end
  end
  depths[#depths + 1] = {redis.call('XLEN', KEYS[k]), outstanding, redis.call('XLEN', KEYS[k + 1])}
end
return depths
