-- Turn a batch of one tenant's leases into usage, each exactly once.
--
-- KEYS[1]   zset of the tenant's open leases; KEYS[2] hash of what they hold
-- KEYS[3]   the capped stream of finished requests
-- KEYS[4..] first the limits (see limits.lua), then the usage hashes, and where any settlement is
--           marked the zset of settled leases: lease id -> until when to remember it (Unix ms)
-- ARGV[1]   msgpack [[[sort, capacity, more], ...], day_ttl_s, month_ttl_s, stream length,
--           [stream field, ...], [settlement, ...]], a settlement being
--           [lease id, [[limit number, reserved (of a rate), used], ...], [counter number, ...],
--            [requests, errors, cache_hits, prompt, cached, completion, reasoning, cost_microusd,
--             saved_microusd],
--            [value, ...] of the stream's fields, or nothing for what is no request, mark]
--           limits count from 1; counters from 0, each of them two hashes: its day, its month;
--           mark is 1 where it is to be remembered that the lease was settled, also where there is
--           none: what Redis reads late must not open it; 2 where also that
--           its worker was taken for dead (as ~ and the lease id), 0 else
-- returns   msgpack [1, 2 or 0, ...]: 1 for each settlement that counted. Of those that are marked 2
--           where the lease's own worker has settled it before, or nobody knows of it any more
--
-- Idempotent by lease id: a lease that is gone was settled before, by this worker or by the one
-- that found it expired. A reply that used more than was reserved leaves the limit in debt.

local input = cmsgpack.unpack(ARGV[1])
local specs, day_ttl, month_ttl, kept, names, settlements = unpack(input)
local FIELDS = {'requests', 'errors', 'cache_hits', 'prompt_tokens', 'cached_tokens',
  'completion_tokens', 'reasoning_tokens', 'cost_microusd', 'saved_microusd'}

local MARKED_MS = 2 * DAY_S * 1000

local ids = {}
for s, settlement in ipairs(settlements) do ids[s] = settlement[1] end
local deadlines = redis.call('ZMSCORE', KEYS[1], unpack(ids))

local counted, returned, sums, closed, marked, seen, lines = {}, {}, {}, {}, {}, {}, {}
for s, settlement in ipairs(settlements) do
  local id = settlement[1]
  if deadlines[s] and not seen[id] then
    seen[id] = true
    local held
    counted[s] = 1
    closed[#closed + 1] = id
    if settlement[6] > 0 then marked[#marked + 1] = id end
    if settlement[6] == 2 then marked[#marked + 1] = '~' .. id end
    for _, give in ipairs(settlement[2]) do
      local sum = returned[give[1]]
      if sum == nil then
        sum = {0, 0}
        returned[give[1]] = sum
      end
      local reserved = give[2]
      if specs[give[1]][1] ~= RATE then
        -- Slots and money are given back as the lease says: nobody else knows for sure.
        held = held or held_by(redis.call('HGET', KEYS[2], id))
        reserved = held[KEYS[give[1] + 3]] or 0
      end
      sum[1], sum[2] = sum[1] + reserved, sum[2] + give[3]
    end
    for _, number in ipairs(settlement[3]) do
      local sum = sums[number]
      if sum == nil then
        sum = {0, 0, 0, 0, 0, 0, 0, 0, 0}
        sums[number] = sum
      end
      for f, amount in ipairs(settlement[4]) do sum[f] = sum[f] + amount end
    end
    if #settlement[5] > 0 then lines[#lines + 1] = settlement[5] end
  else
    -- It may yet be asked for, by what Redis reads late.
    if settlement[6] == 1 then marked[#marked + 1] = id end
    local own = settlement[6] == 1 and not redis.call('ZSCORE', KEYS[#KEYS], '~' .. id)
    counted[s] = own and 2 or 0
  end
end

local now = clock_us()

-- What Redis takes nothing of it refuses at the first write: then nothing has been done, and all of
-- it is asked again. What it refuses later, as a key is of another type, takes nothing else along.
local wrote = false
local function attempt(action, ...)
  if wrote then
    pcall(action, ...)
  elseif action(...) then
    wrote = true
  end
end

local function credit(number, sum)
  -- Credited up to now first: what was used beyond the reservation is owed also where the
  -- bucket has filled up, or has been forgotten as full, in the meantime.
  local limit = load_limit(KEYS[number + 3], specs[number], now, true)
  give_back(limit, sum[1], sum[2])
  save_limit(limit, now)
  return true
end
for number, sum in pairs(returned) do attempt(credit, number, sum) end
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
  return true
end
for number, sum in pairs(sums) do
  local day = 3 + #specs + 2 * number + 1
  attempt(add, KEYS[day], day_ttl, sum)
  attempt(add, KEYS[day + 1], month_ttl, sum)
end
local function tell(values)
  local line = {}
  for n, value in ipairs(values) do
    line[2 * n - 1], line[2 * n] = names[n], value
  end
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', kept, '*', unpack(line))
  return true
end
for _, values in ipairs(lines) do attempt(tell, values) end
if #closed > 0 then
  redis.call('ZREM', KEYS[1], unpack(closed))
  redis.call('HDEL', KEYS[2], unpack(closed))
end
if #marked > 0 then
  local key, now_ms, args = KEYS[#KEYS], math.floor(now / 1000), {}
  for n, id in ipairs(marked) do
    args[2 * n - 1], args[2 * n] = whole(now_ms + MARKED_MS), id
  end
  redis.call('ZREMRANGEBYSCORE', key, '-inf', whole(now_ms))
  redis.call('ZADD', key, unpack(args))
  redis.call('PEXPIRE', key, MARKED_MS)
end
return cmsgpack.pack(counted)
