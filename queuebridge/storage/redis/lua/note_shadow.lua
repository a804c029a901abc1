-- id, job, task, enqueued_at, not_before, description of the delivery, deadline_in, then fields of a new dispatch.

local id, job, task, enqueued_at, not_before, described, deadline_in = unpack(ARGV, 2, 8)
if redis.call('EXISTS', DISPATCH .. id) == 0 then
  create(id, job, task, tonumber(deadline_in), 9, #ARGV, 0)
end
deliver(id, described, enqueued_at, not_before, 'shadowed', '-')
