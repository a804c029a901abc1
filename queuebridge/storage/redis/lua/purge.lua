-- settled_before, limit of dispatches, limit of payloads. Returns how many dispatches and how many payloads were forgotten.

local before, limit, payload_limit = ARGV[2], ARGV[3], ARGV[4]
local ids = redis.call('ZRANGEBYSCORE', SETTLED, '-inf', '(' .. before, 'LIMIT', 0, limit)
for _, id in ipairs(ids) do
  forget(id)
end
local payloads = redis.call('ZRANGEBYSCORE', PAYLOAD_UNTIL, '-inf', '(' .. text(now), 'LIMIT', 0, payload_limit)
for _, key in ipairs(payloads) do
  redis.call('DEL', PAYLOAD .. key)
  redis.call('ZREM', PAYLOAD_UNTIL, key)
end
return {#ids, #payloads}
