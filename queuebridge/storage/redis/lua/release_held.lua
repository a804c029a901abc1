-- Returns how many held copies there were.

local released = 0
for _, id in ipairs(redis.call('ZRANGE', HELD, 0, -1)) do
  local key = DISPATCH .. id
  for _, side in ipairs(SIDES) do
    if redis.call('HGET', key, side .. '.state') == 'held' then
      redis.call('HSET', key, side .. '.due_at_ms', text(now))
      released = released + 1
    end
  end
  redis.call('ZADD', HELD, text(now), id)
  if redis.call('HGET', key, 'state') == 'accepted' then
    set_next_check(id, now)
  end
end
return released
