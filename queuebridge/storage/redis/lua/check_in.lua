-- id, delay or nothing.

local state = redis.call('HGET', DISPATCH .. ARGV[2], 'state')
if state and not ENDS[state] then
  set_next_check(ARGV[2], ARGV[3] ~= '' and now + ARGV[3] or nil)
end
