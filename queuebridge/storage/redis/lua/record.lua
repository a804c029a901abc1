-- Per dispatch: id, job, task, check_in, deadline_in, due time of its held copy, number of fields, fields.
-- First the number of the names of fields by which a known dispatch is described, and the names.

local answer = {}
local names = {unpack(ARGV, 3, 2 + ARGV[2])}
local i = 3 + ARGV[2]
local position = 0
while i <= #ARGV do
  local id, job, task, check_in, deadline_in, due, count = unpack(ARGV, i, i + 6)
  local first = i + 7
  local last = first + 2 * count - 1
  if redis.call('EXISTS', DISPATCH .. id) == 1 then
    answer[#answer + 1] = redis.call('HMGET', DISPATCH .. id, unpack(names))
  else
    create(id, job, task, tonumber(deadline_in), first, last, position)
    position = position + 1
    local check = now + tonumber(check_in)
    if due ~= '' then
      redis.call('ZADD', HELD, due, id)
      check = math.min(check, tonumber(due))
    end
    set_next_check(id, check)
    answer[#answer + 1] = false
  end
  i = last + 1
end
return answer
