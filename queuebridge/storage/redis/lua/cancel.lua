-- job. Returns how many dispatches were cancelled, and how many run.

local cancelled, running = 0, 0
for _, id in ipairs(redis.call('ZRANGE', JOB .. ARGV[2], 0, -1)) do
  local state, lease_until = unpack(redis.call('HMGET', DISPATCH .. id, 'state', 'lease_until_ms'))
  if is_running(state, lease_until) then
    running = running + 1
  elseif state and not ENDS[state] then
    finish(id, 'cancelled')
    cancelled = cancelled + 1
  end
end
return {cancelled, running}
