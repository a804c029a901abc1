-- process, what it says. Returns the latest revision.

redis.call('ZADD', PROCESS_SEEN, text(now), ARGV[2])
redis.call('HSET', PROCESSES, ARGV[2], ARGV[3])
-- Some processes end without a word, and perhaps nobody ever asks for the list.
local long_ago = '(' .. text(now - 7 * 86400 * 1000)
for _, process in ipairs(redis.call('ZRANGEBYSCORE', PROCESS_SEEN, '-inf', long_ago, 'LIMIT', 0, 10)) do
  redis.call('ZREM', PROCESS_SEEN, process)
  redis.call('HDEL', PROCESSES, process)
end
return redis.call('LINDEX', REVISIONS, -1)
