-- The state of limits, for the functions that take from them and give back. Put in front of them.
--
-- A limit's sort says how its hash is kept; `left` is what may still be taken, below 0 a debt:
--   0 rate    level, capacity, refill (units a minute), updated (Unix us). It holds whole units. A
--             credit advances `updated` by the time it took, rounded up, so fractions are never
--             lost and never paid twice. Full again means the same as absent: its lifetime is that.
--   1 slots   in_use, capacity
--   2 period  spent, reserved, capacity (micro-dollars); the key carries the period
--   3 window  the same, with a field for what was spent in each slot of the window; `slot` is the
--             last one in which anything was spent

local RATE, SLOTS, PERIOD, WINDOW = 0, 1, 2, 3
local WINDOW_SLOTS = 30
local DAY_S = 86400

local function clock_us()
  local clock = redis.call('TIME')
  return clock[1] * 1000000 + clock[2]
end

local function whole(number)
  return string.format('%.0f', number)
end

-- Return the capacity that counts, and whether the hash says another one. `kept`: what the hash says
-- of itself counts, as a limit may have changed since it was taken from.
local function capacity_of(stored, capacity, kept)
  stored = tonumber(stored)
  if stored == nil or stored == capacity then return capacity, false end
  if kept then return stored, false end
  return capacity, true
end

local function load_rate(key, capacity, refill, now, kept)
  local stored = redis.call('HMGET', key, 'level', 'updated', 'capacity', 'refill')
  local level, updated = tonumber(stored[1]), tonumber(stored[2])
  if level == nil or updated == nil then
    return {left = capacity, updated = now, capacity = capacity, more = refill}
  end
  if kept then
    capacity, refill = tonumber(stored[3]) or capacity, tonumber(stored[4]) or refill
  end
  local seen = updated
  local credit = math.floor((now - updated) * refill / 60000000)
  if credit > 0 then
    level = level + credit
    updated = updated + math.ceil(credit * 60000000 / refill)
  end
  local set_back = updated > now  -- the clock was: else it refilled not before that moment comes again
  if level >= capacity or set_back then
    level, updated = math.min(level, capacity), now
  end
  return {left = level, changed = set_back, updated = updated, capacity = capacity, more = refill,
    fresh = math.floor(seen / 1000000) == math.floor(now / 1000000)}
end

-- Forget what was spent in slots that have left the window; return the rest.
local function roll(key, slot, look)
  local fields, total, gone = redis.call('HGETALL', key), 0, {}
  for i = 1, #fields, 2 do
    local number = tonumber(fields[i])
    if number ~= nil then
      if number < slot - WINDOW_SLOTS then  -- none before a whole window has passed
        gone[#gone + 1] = fields[i]
      else
        total = total + tonumber(fields[i + 1])
      end
    end
  end
  if look then return total end
  if #gone > 0 then redis.call('HDEL', key, unpack(gone)) end
  redis.call('HSET', key, 'spent', whole(total), 'slot', whole(slot))
  return total
end

local function load_limit(key, spec, now, kept, look)
  local sort, capacity, more = spec[1], spec[2], spec[3]
  local limit
  if sort == RATE then
    limit = load_rate(key, capacity, more, now, kept)
    limit.key, limit.sort = key, sort
    return limit
  end
  local changed
  if sort == SLOTS then
    local stored = redis.call('HMGET', key, 'in_use', 'capacity')
    local in_use = tonumber(stored[1]) or 0
    capacity, changed = capacity_of(stored[2], capacity, kept)
    limit = {left = capacity - in_use, in_use = in_use}
  else
    local stored = redis.call('HMGET', key, 'spent', 'reserved', 'slot', 'capacity')
    capacity, changed = capacity_of(stored[4], capacity, kept)
    local spent, reserved = tonumber(stored[1]) or 0, tonumber(stored[2]) or 0
    local slot = 0
    if sort == WINDOW then
      slot = math.floor(now / more)
      if stored[3] and tonumber(stored[3]) < slot then spent = roll(key, slot, look) end
    end
    limit = {left = capacity - spent - reserved, spent = spent, reserved = reserved, slot = slot,
      spent_now = 0}
  end
  limit.key, limit.sort, limit.capacity, limit.more = key, sort, capacity, more
  limit.changed = changed
  return limit
end

-- Microseconds until `amount` could be taken; -1 where waiting does not help.
local function wait_us(limit, amount, now)
  if amount > limit.capacity then return -1 end
  if limit.sort == RATE then
    local needed = math.ceil((amount - limit.left) * 60000000 / limit.more) - (now - limit.updated)
    return math.max(needed, 1)
  elseif limit.sort == SLOTS then
    return 1000000  -- nobody knows; a second is a fair guess
  elseif limit.sort == PERIOD then
    return limit.more > 0 and math.max(limit.more - now, 1) or -1
  end
  local oldest
  for _, field in ipairs(redis.call('HKEYS', limit.key)) do
    local number = tonumber(field)
    if number ~= nil and (oldest == nil or number < oldest) then oldest = number end
  end
  if oldest == nil then return 1000000 end  -- all of it is reserved, none spent yet
  return math.max((oldest + WINDOW_SLOTS + 1) * limit.more - now, 1)
end

-- Return what a lease holds of its slots and money, by key, out of its holding's JSON.
local function held_by(json)
  local amounts = {}
  for _, hold in ipairs(json and cjson.decode(json).holds or {}) do amounts[hold[1]] = hold[3] end
  return amounts
end

local function has_slots(json)
  for _, hold in ipairs(json and cjson.decode(json).holds or {}) do
    if hold[2][1] == SLOTS then return true end
  end
  return false
end

local function take(limit, amount)
  limit.left = limit.left - amount
  limit.changed = true
  if limit.sort == SLOTS then
    limit.in_use = limit.in_use + amount
  elseif limit.sort ~= RATE then
    limit.reserved = limit.reserved + amount
  end
end

-- Undo what a lease reserved, and count what was used of it instead.
local function give_back(limit, reserved, used)
  limit.changed = true
  if limit.sort == RATE then
    limit.left = math.min(limit.left + reserved - used, limit.capacity)
  elseif limit.sort == SLOTS then
    limit.in_use = math.max(limit.in_use - reserved, 0)
  else
    limit.reserved = math.max(limit.reserved - reserved, 0)
    limit.spent = limit.spent + used
    limit.spent_now = limit.spent_now + used
  end
end

local function save_limit(limit, now)
  local key = limit.key
  if limit.sort == RATE then
    redis.call('HSET', key, 'level', whole(limit.left), 'capacity', limit.capacity,
      'refill', limit.more, 'updated', whole(limit.updated))
    if not limit.fresh or limit.left < 0 then
      -- Once a second is enough for a lifetime that would do for an empty bucket.
      local missing = limit.capacity - math.min(limit.left, 0)
      redis.call('PEXPIRE', key, math.ceil(missing * 60000 / limit.more) + 60000)
    end
  elseif limit.sort == SLOTS then
    redis.call('HSET', key, 'in_use', whole(limit.in_use), 'capacity', limit.capacity)
    redis.call('EXPIRE', key, 2 * DAY_S)
  else
    redis.call('HSET', key, 'spent', whole(limit.spent), 'reserved', whole(limit.reserved),
      'capacity', whole(limit.capacity))
    if limit.sort == WINDOW then
      redis.call('HSET', key, 'slot', whole(limit.slot))
      if limit.spent_now ~= 0 then
        redis.call('HINCRBY', key, whole(limit.slot), whole(limit.spent_now))
      end
      redis.call('EXPIRE', key, math.ceil(limit.more * (WINDOW_SLOTS + 1) / 1000000) + 2 * DAY_S)
    elseif limit.more > 0 then
      redis.call('EXPIRE', key, math.ceil((limit.more - now) / 1000000) + 35 * DAY_S)
    end
  end
end

