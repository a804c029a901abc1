-- What all scripts share. ARGV[1] is added to the clock, in milliseconds; arguments of the script follow it.
-- An empty argument stands for none.

local clock = redis.call('TIME')
local now_us = tonumber(clock[1]) * 1000000 + tonumber(clock[2]) + tonumber(ARGV[1]) * 1000
local now = math.floor(now_us / 1000)

local ENDS = {done = 1, failed = 1, retried = 1, cancelled = 1, expired = 1, quarantined = 1}
local SIDES = {'legacy', 'push'}
local DELIVERIES_KEPT = 100

-- Numbers as text: Lua's own conversion keeps 14 digits, and a token has 16.
local function text(number)
  return string.format('%.0f', number)
end

local function set_next_check(id, at)
  if at then
    redis.call('HSET', DISPATCH .. id, 'next_check_at_ms', text(at))
    redis.call('ZADD', NEXT_CHECK, text(at), id)
  else
    redis.call('HDEL', DISPATCH .. id, 'next_check_at_ms')
    redis.call('ZREM', NEXT_CHECK, id)
  end
end

-- Create a dispatch. `first` to `last` are the places in ARGV of its fields, each name followed by its value.
-- `position` keeps the order of those that are accepted in one script.
local function create(id, job, task, deadline_in, first, last, position)
  local at = now_us + position
  local fields = {unpack(ARGV, first, last)}
  local given = {
    'state', 'accepted', 'accepted_at_ms', text(math.floor(at / 1000)), 'deadline_ms', text(now + deadline_in),
  }
  for _, value in ipairs(given) do
    fields[#fields + 1] = value
  end
  redis.call('HSET', DISPATCH .. id, unpack(fields))
  redis.call('ZADD', ACCEPTED, text(at), id)
  redis.call('ZADD', ACCEPTED_BY_TASK .. task, text(at), id)
  redis.call('ZADD', JOB .. job, text(at), id)
  redis.call('ZADD', NOT_DONE, text(at), id)
end

-- Settle a dispatch; more fields to set may follow.
local function finish(id, state, ...)
  local key = DISPATCH .. id
  redis.call('HSET', key, 'state', state, 'finished_at_ms', text(now), ...)
  redis.call('HDEL', key, 'body', 'lease_until_ms', 'retry_at_ms', 'next_check_at_ms')
  redis.call('ZREM', NEXT_CHECK, id)
  redis.call('ZREM', HELD, id)
  redis.call('ZADD', SETTLED, text(now), id)
  if state == 'done' then
    redis.call('ZREM', NOT_DONE, id)
  end
end

-- Remove a dispatch and everything that leads to it.
local function forget(id)
  local job, task = unpack(redis.call('HMGET', DISPATCH .. id, 'job_id', 'task'))
  redis.call('DEL', DISPATCH .. id, DELIVERIES .. id)
  for _, index in ipairs({NEXT_CHECK, HELD, NOT_DONE, SETTLED, ACCEPTED, ACCEPTED_BY_TASK .. task, JOB .. job}) do
    redis.call('ZREM', index, id)
  end
end

-- Whether somebody runs a dispatch in this state now.
local function is_running(state, lease_until)
  return state == 'running' and tonumber(lease_until) > now
end

-- Record a delivery; `described` is what the caller knows of it, as JSON.
local function deliver(id, described, enqueued_at, not_before, outcome, attempt)
  local lag = now - math.max(tonumber(enqueued_at), tonumber(not_before) or 0)
  local words = {text(now), text(lag), outcome, attempt, described}
  redis.call('RPUSH', DELIVERIES .. id, table.concat(words, ' '))
  redis.call('LTRIM', DELIVERIES .. id, -DELIVERIES_KEPT, -1)
end
