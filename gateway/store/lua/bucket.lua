-- Token buckets, for the functions that take from them and give back. Put in front of both.
--
-- A bucket is a hash: level, capacity, refill (units a minute), updated (Unix us). It holds whole
-- units. A credit advances `updated` by the time it took, rounded up, so fractions are never lost
-- and never paid twice. A level below 0 is a debt. Once a bucket would be full again, an absent
-- one means the same: its lifetime is that.

local function clock_us()
  local clock = redis.call('TIME')
  return clock[1] * 1000000 + clock[2]
end

local function load_bucket(key, capacity, refill, now)
  local stored = redis.call('HMGET', key, 'level', 'updated')
  local level, updated = tonumber(stored[1]), tonumber(stored[2])
  if level == nil or updated == nil then
    return {key = key, level = capacity, updated = now, capacity = capacity, refill = refill}
  end
  local seen = updated
  local credit = math.floor((now - updated) * refill / 60000000)
  if credit > 0 then
    level = level + credit
    updated = updated + math.ceil(credit * 60000000 / refill)
  end
  if level >= capacity or updated > now then
    level, updated = math.min(level, capacity), now
  end
  return {key = key, level = level, updated = updated, capacity = capacity, refill = refill,
    fresh = math.floor(seen / 1000000) == math.floor(now / 1000000)}
end

local function save_bucket(bucket)
  redis.call('HSET', bucket.key, 'level', string.format('%.0f', bucket.level),
    'capacity', bucket.capacity, 'refill', bucket.refill,
    'updated', string.format('%.0f', bucket.updated))
  if not bucket.fresh or bucket.level < 0 then
    -- Once a second is enough for a lifetime that would do for an empty bucket.
    local missing = bucket.capacity - math.min(bucket.level, 0)
    local full_ms = math.ceil(missing * 60000 / bucket.refill)
    redis.call('PEXPIRE', bucket.key, full_ms + 60000)
  end
end

