-- check_in, then per mark: id, side, backend, role, state, due_in, message id, error.

local check_in = ARGV[2]

local function note(key, side, backend, role, state, due_in, message_id, problem)
  local known = redis.call('HMGET', key, side .. '.state', side .. '.role', 'sides')
  if known[1] == 'written' then
    if state == 'written' and message_id ~= '' then
      redis.call('HSET', key, side .. '.message_id', message_id)
    end
    return
  end
  if not known[1] then
    local others = known[3]
    redis.call('HSET', key, 'sides', others and others ~= '' and (others .. ' ' .. side) or side)
  end
  redis.call('HDEL', key, side .. '.due_at_ms', side .. '.message_id', side .. '.error')
  local fields = {side .. '.state', state, side .. '.backend', backend, side .. '.role', known[2] or role}
  local function add(name, value)
    fields[#fields + 1] = side .. name
    fields[#fields + 1] = value
  end
  if due_in ~= '' then
    add('.due_at_ms', text(now + due_in))
  end
  if message_id ~= '' then
    add('.message_id', message_id)
  end
  if problem ~= '' then
    add('.error', problem)
  end
  redis.call('HSET', key, unpack(fields))
end

local function held_until(key)
  local earliest
  for _, side in ipairs(SIDES) do
    local copy = redis.call('HMGET', key, side .. '.state', side .. '.due_at_ms')
    if copy[1] == 'held' and copy[2] then
      earliest = math.min(earliest or tonumber(copy[2]), tonumber(copy[2]))
    end
  end
  return earliest
end

local states = {}
for i = 3, #ARGV, 8 do
  local id = ARGV[i]
  local state = redis.call('HGET', DISPATCH .. id, 'state')
  if state then
    note(DISPATCH .. id, unpack(ARGV, i + 1, i + 7))
    states[id] = state
  end
end
for id, state in pairs(states) do
  if not ENDS[state] then
    local due = held_until(DISPATCH .. id)
    if due then
      redis.call('ZADD', HELD, text(due), id)
    else
      redis.call('ZREM', HELD, id)
    end
    if state == 'accepted' then
      set_next_check(id, check_in ~= '' and now + check_in or due)
    end
  end
end
