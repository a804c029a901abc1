-- id, token, lease, grace. Returns 1 if the lease was extended.

local id, token, lease, grace = unpack(ARGV, 2, 5)
local known = redis.call('HMGET', DISPATCH .. id, 'state', 'token')
if known[1] ~= 'running' or known[2] ~= token then
  return 0
end
local till = now + lease
redis.call('HSET', DISPATCH .. id, 'lease_until_ms', text(till))
set_next_check(id, till + grace)
return 1
