-- within. Forgets older processes; returns id, time and what it says of each of the others, the latest first.

local since = text(now - ARGV[2])
for _, process in ipairs(redis.call('ZRANGEBYSCORE', PROCESS_SEEN, '-inf', '(' .. since)) do
  redis.call('ZREM', PROCESS_SEEN, process)
  redis.call('HDEL', PROCESSES, process)
end
local answer = {}
for _, process in ipairs(redis.call('ZREVRANGE', PROCESS_SEEN, 0, -1)) do
  local seen_at = redis.call('ZSCORE', PROCESS_SEEN, process)
  answer[#answer + 1] = {process, seen_at, redis.call('HGET', PROCESSES, process)}
end
return answer
