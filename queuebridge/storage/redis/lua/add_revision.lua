-- after, the revision as JSON. Returns the number of the latest revision and the time; the number is that of the
-- new one if it was added.

local latest = redis.call('LLEN', REVISIONS)
if latest ~= tonumber(ARGV[2]) then
  return {0, text(latest), text(now)}
end
redis.call('RPUSH', REVISIONS, table.concat({text(latest + 1), text(now), ARGV[3]}, ' '))
return {1, text(latest + 1), text(now)}
