-- Decide over a batch of requests of one tenant: all of a request's buckets, or none of them.
--
-- KEYS[1]   zset of the tenant's open leases: lease id -> deadline (Unix ms)
-- KEYS[2]   hash of what each open lease holds: lease id -> JSON
-- KEYS[3..] token buckets (see bucket.lua)
-- ARGV[1]   msgpack [lease_ms, [[capacity, per_minute], ...], [request, ...]], a request being
--           [lease id, holding JSON, [[bucket number, amount], ...]]; buckets count from 1.
--           Without a lease id, and amounts of 0, it only asks how the limits stand.
-- returns   msgpack [now_us, [verdict, ...]], a verdict being
--           [refusing bucket or 0, microseconds until it would admit or -1 for never, level, ...]

local input = cmsgpack.unpack(ARGV[1])
local lease_ms, specs, requests = input[1], input[2], input[3]
local now = clock_us()

local buckets = {}
for i, spec in ipairs(specs) do
  buckets[i] = load_bucket(KEYS[i + 2], spec[1], spec[2], now)
end

local verdicts, deadlines, holdings = {}, {}, {}
for r, request in ipairs(requests) do
  local refusing, wait = 0, 0
  for _, want in ipairs(request[3]) do
    local bucket = buckets[want[1]]
    if request[1] ~= '' and want[2] > bucket.level then
      local needed = -1
      if want[2] <= bucket.capacity then
        needed = math.ceil((want[2] - bucket.level) * 60000000 / bucket.refill)
          - (now - bucket.updated)
        needed = math.max(needed, 1)
      end
      if needed == -1 or (wait ~= -1 and needed > wait) then
        refusing, wait = want[1], needed
      end
    end
  end
  local verdict = {refusing, wait}
  for n, want in ipairs(request[3]) do
    local bucket = buckets[want[1]]
    if refusing == 0 then
      bucket.level = bucket.level - want[2]
      bucket.changed = bucket.changed or request[1] ~= ''
    end
    verdict[n + 2] = bucket.level
  end
  if refusing == 0 and request[1] ~= '' then
    deadlines[#deadlines + 1] = math.floor(now / 1000) + lease_ms
    deadlines[#deadlines + 1] = request[1]
    holdings[#holdings + 1] = request[1]
    holdings[#holdings + 1] = request[2]
  end
  verdicts[r] = verdict
end

for _, bucket in ipairs(buckets) do
  if bucket.changed then save_bucket(bucket) end
end
if #deadlines > 0 then
  redis.call('ZADD', KEYS[1], unpack(deadlines))
  redis.call('HSET', KEYS[2], unpack(holdings))
  if redis.call('ZCARD', KEYS[1]) * 2 == #deadlines then  -- the first ones: the keys are new
    redis.call('EXPIRE', KEYS[1], 86400)
    redis.call('EXPIRE', KEYS[2], 86400)
  end
end
return cmsgpack.pack({now, verdicts})
