-- Turn a batch of one tenant's leases into usage, each exactly once.
--
-- KEYS[1]   zset of the tenant's open leases; KEYS[2] hash of what they hold
-- KEYS[3]   the capped stream of finished requests
-- KEYS[4..] first the token buckets, then the usage hashes
-- ARGV[1]   msgpack [[[capacity, per_minute], ...], day_ttl_s, month_ttl_s, stream length,
--           [stream field, ...], [settlement, ...]], one capacity a bucket, a settlement being
--           [lease id, [[bucket number, units to give back], ...], [counter number, ...],
--            [requests, errors, cache_hits, prompt, cached, completion, reasoning, cost_microusd],
--            [value, ...] of the stream's fields]
--           buckets count from 1; counters from 0, each of them two hashes: its day, its month
-- returns   msgpack [1 or 0, ...]: whether each settlement was the one that counted
--
-- Idempotent by lease id: a lease that is gone was settled before, by this worker or by the one
-- that found it expired. Giving back a negative amount takes it: a reply that used more than was
-- reserved leaves the bucket in debt.

local input = cmsgpack.unpack(ARGV[1])
local specs, day_ttl, month_ttl, kept, names, settlements = unpack(input)
local FIELDS = {'requests', 'errors', 'cache_hits', 'prompt_tokens', 'cached_tokens',
  'completion_tokens', 'reasoning_tokens', 'cost_microusd'}

local ids = {}
for s, settlement in ipairs(settlements) do ids[s] = settlement[1] end
local deadlines = redis.call('ZMSCORE', KEYS[1], unpack(ids))

local counted, returned, sums, closed, seen, line = {}, {}, {}, {}, {}, {}
for s, settlement in ipairs(settlements) do
  local id = settlement[1]
  if deadlines[s] and not seen[id] then
    seen[id] = true
    counted[s] = 1
    closed[#closed + 1] = id
    for _, give in ipairs(settlement[2]) do
      returned[give[1]] = (returned[give[1]] or 0) + give[2]
    end
    for _, number in ipairs(settlement[3]) do
      local sum = sums[number]
      if sum == nil then
        sum = {0, 0, 0, 0, 0, 0, 0, 0}
        sums[number] = sum
      end
      for f, amount in ipairs(settlement[4]) do sum[f] = sum[f] + amount end
    end
    for n, value in ipairs(settlement[5]) do
      line[2 * n - 1], line[2 * n] = names[n], value
    end
    redis.call('XADD', KEYS[3], 'MAXLEN', '~', kept, '*', unpack(line))
  else
    counted[s] = 0
  end
end

if #closed > 0 then
  redis.call('ZREM', KEYS[1], unpack(closed))
  redis.call('HDEL', KEYS[2], unpack(closed))
end
local now = clock_us()
for number, amount in pairs(returned) do
  if amount ~= 0 then
    -- Credited up to now first: what was used beyond the reservation is owed also where the
    -- bucket has filled up, or has been forgotten as full, in the meantime.
    local bucket = load_bucket(KEYS[number + 3], specs[number][1], specs[number][2], now)
    bucket.level = math.min(bucket.level + amount, bucket.capacity)
    save_bucket(bucket)
  end
end
local function add(key, ttl, sum)
  local fields = {}
  for f, amount in ipairs(sum) do
    if amount ~= 0 then fields[#fields + 1] = FIELDS[f] end
  end
  if #fields == 0 then return end
  local stored, values = redis.call('HMGET', key, unpack(fields)), {}
  local n = 0
  for f, amount in ipairs(sum) do
    if amount ~= 0 then
      n = n + 1
      values[2 * n - 1] = FIELDS[f]
      values[2 * n] = string.format('%.0f', (tonumber(stored[n]) or 0) + amount)
    end
  end
  redis.call('HSET', key, unpack(values))
  if not stored[1] then redis.call('EXPIRE', key, ttl) end
end
for number, sum in pairs(sums) do
  local day = 3 + #specs + 2 * number + 1
  add(KEYS[day], day_ttl, sum)
  add(KEYS[day + 1], month_ttl, sum)
end
return cmsgpack.pack(counted)
