-- Returns {'settled', state, first, owner}, {'busy', until, now, epoch} or {'granted', token, attempt, now}.

local id, job, task, owner, lease, grace, enqueued_at, not_before, backend, role, digest, described, deadline_in =
  unpack(ARGV, 2, 14)
local key = DISPATCH .. id

local function read()
  return unpack(redis.call('HMGET', key, 'state', 'owner', 'expires_at_ms', 'lease_until_ms', 'retry_at_ms',
    'attempts', 'max_attempts', 'token'))
end

local state, last_owner, expires_at, lease_until, retry_at, attempts, max_attempts, last_token = read()
if not state then
  create(id, job, task, tonumber(deadline_in), 15, #ARGV, 0)
  state, last_owner, expires_at, lease_until, retry_at, attempts, max_attempts, last_token = read()
end
attempts = tonumber(attempts) or 0

local function answer_settled(final, first)
  deliver(id, described, enqueued_at, not_before, 'suppressed', '-')
  return {'settled', final, first, last_owner}
end

local function answer_busy(till)
  deliver(id, described, enqueued_at, not_before, 'busy', '-')
  return {'busy', till, text(now), text(redis.call('HINCRBY', key, 'epoch', 1))}
end

if ENDS[state] then
  return answer_settled(state, '0')
end
local running = is_running(state, lease_until)
if expires_at and not running and tonumber(expires_at) < now then
  finish(id, 'expired')
  return answer_settled('expired', '1')
end
if running then
  return answer_busy(lease_until)
end
if state == 'waiting' and tonumber(retry_at) > now then
  return answer_busy(retry_at)
end
if attempts >= tonumber(max_attempts) then
  finish(id, 'quarantined')
  return answer_settled('quarantined', '1')
end

local attempt = text(attempts + 1)
local token = text(math.max((tonumber(last_token) or 0) + 1, now_us))
local till = now + lease
redis.call('HSET', key, 'state', 'running', 'attempts', attempt, 'token', token, 'owner', owner,
  'lease_until_ms', text(till), 'started_at_ms', text(now), 'executed_by', backend)
redis.call('HDEL', key, 'retry_at_ms')
for name, value in pairs({executed_role = role, digest = digest}) do
  if value ~= '' then
    redis.call('HSET', key, name, value)
  else
    redis.call('HDEL', key, name)
  end
end
set_next_check(id, till + grace)
deliver(id, described, enqueued_at, not_before, 'granted', attempt)
return {'granted', token, attempt, text(now)}
