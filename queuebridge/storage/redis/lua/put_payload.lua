-- key, body, keep.

redis.call('SET', PAYLOAD .. ARGV[2], ARGV[3])
redis.call('ZADD', PAYLOAD_UNTIL, 'GT', text(now + ARGV[4]), ARGV[2])
