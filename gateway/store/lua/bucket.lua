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
  local credit = math.floor((now - updated) * refill / 60000000)
  if credit > 0 then
    level = level + credit
    updated = updated + math.ceil(credit * 60000000 / refill)
  end
  if level >= capacity or updated > now then
    level, updated = math.min(level, capacity), now
  end
  return {key = key, level = level, updated = updated, capacity = capacity, refill = refill}
end

local function save_bucket(bucket)
  redis.call('HSET', bucket.key, 'level', string.format('%.0f', bucket.level),
    'capacity', bucket.capacity, 'refill', bucket.refill,
    'updated', string.format('%.0f', bucket.updated))
  local full_ms = math.ceil((bucket.capacity - bucket.level) * 60000 / bucket.refill)
  redis.call('PEXPIRE', bucket.key, full_ms + 60000)
end

