-- process.

redis.call('ZREM', PROCESS_SEEN, ARGV[2])
redis.call('HDEL', PROCESSES, ARGV[2])
