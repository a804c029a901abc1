-- id, token, state, then fields to set. Returns 1 if the dispatch has ended as this token wants it.

local id, token, state = unpack(ARGV, 2, 4)
local key = DISPATCH .. id
local known, current, settled_by = unpack(redis.call('HMGET', key, 'state', 'token', 'settled_by'))
if not known then
  return 0
end
if known == state and settled_by == token then
  return 1
end
if ENDS[known] or current ~= token then
  redis.call('HINCRBY', key, 'stale_settles', 1)
  return 0
end
redis.call('HDEL', key, 'result', 'error', 'traceback')
finish(id, state, 'settled_by', token, unpack(ARGV, 5))
return 1
