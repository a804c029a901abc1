-- id, token, retry_in, grace, then fields to set. Returns 1 if the attempt has ended as this token wants it.

local id, token, retry_in, grace = unpack(ARGV, 2, 5)
local key = DISPATCH .. id
local state, current = unpack(redis.call('HMGET', key, 'state', 'token'))
if not state then
  return 0
end
if current == token and state == 'waiting' then
  return 1
end
if current ~= token or state ~= 'running' then
  redis.call('HINCRBY', key, 'stale_settles', 1)
  return 0
end
local at = now + retry_in
redis.call('HDEL', key, 'lease_until_ms', 'traceback')
redis.call('HSET', key, 'state', 'waiting', 'retry_at_ms', text(at), unpack(ARGV, 6))
set_next_check(id, at + grace)
return 1
