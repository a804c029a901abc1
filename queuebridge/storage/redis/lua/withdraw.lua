-- id. Returns 1 if nothing is known of the dispatch any more.

local known = redis.call('HMGET', DISPATCH .. ARGV[2], 'state', 'epoch')
if not known[1] then
  return 1
end
if known[1] ~= 'accepted' or tonumber(known[2] or 0) ~= 0 then
  return 0
end
forget(ARGV[2])
return 1
