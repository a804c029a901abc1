-- limit, lease, then the names of fields. Returns the time, and for each dispatch id, epoch and fields.

local limit, lease = ARGV[2], ARGV[3]
local names = {unpack(ARGV, 4)}
local answer = {text(now)}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', NEXT_CHECK, '-inf', text(now), 'LIMIT', 0, limit)) do
  local epoch = redis.call('HINCRBY', DISPATCH .. id, 'epoch', 1)
  set_next_check(id, now + lease)
  answer[#answer + 1] = {id, text(epoch), redis.call('HMGET', DISPATCH .. id, unpack(names))}
end
return answer
