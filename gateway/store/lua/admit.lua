-- Decide over a batch of requests of one tenant: all of a request's limits, or none of them.
--
-- KEYS[1]   zset of the tenant's open leases: lease id -> deadline (Unix ms)
-- KEYS[2]   hash of what each open lease holds: lease id -> JSON
-- KEYS[3..] limits (see limits.lua), and last the zset of leases that are marked as settled
-- ARGV[1]   msgpack [lease_ms, [[sort, capacity, more, shadow], ...], [request, ...]], a request
--           being [lease id, holding JSON, [[limit number, amount], ...], forced]; limits count
--           from 1. Forced: a worker has admitted it by itself, so no limit refuses it.
--           Without a lease id, and amounts of 0, it only asks how the limits stand.
-- returns   msgpack [now_us, [verdict, ...]], a verdict being
--           [refusing limit or 0, microseconds until it would admit or -1 for never, left, ...]
--
-- A lease is taken once, however often it is asked for: what a worker believed lost may arrive late,
-- even after the same was asked again on another connection, and was settled.
--
-- A limit in shadow refuses nobody. Slots and money are taken from it like from any other, beyond
-- its capacity if need be; a rate is not, where it would have refused: then its `left` is what it
-- would be, below 0, and the request has nothing of it. What is forced has taken all it asks for.

local input = cmsgpack.unpack(ARGV[1])
local lease_ms, specs, requests = input[1], input[2], input[3]
local now = clock_us()

local looks = true  -- a Redis that takes nothing can still be asked
for _, request in ipairs(requests) do looks = looks and request[1] == '' end

local limits = {}
for i, spec in ipairs(specs) do
  limits[i] = load_limit(KEYS[i + 2], spec, now, false, looks)
end

local ids = {}
for r, request in ipairs(requests) do ids[r] = request[1] end
local open = redis.call('ZMSCORE', KEYS[1], unpack(ids))
local settled = redis.call('ZMSCORE', KEYS[#specs + 3], unpack(ids))

local verdicts, deadlines, holdings = {}, {}, {}
for r, request in ipairs(requests) do
  local forced = request[4]
  local asks = request[1] ~= '' and not open[r] and not settled[r]
  local refusing, wait = 0, 0
  for _, want in ipairs(request[3]) do
    local limit = limits[want[1]]
    if asks and want[2] > limit.left and not forced and not specs[want[1]][4] then
      local needed = wait_us(limit, want[2], now)
      if needed == -1 or (wait ~= -1 and needed > wait) then
        refusing, wait = want[1], needed
      end
    end
  end
  local verdict = {refusing, wait}
  for n, want in ipairs(request[3]) do
    local limit = limits[want[1]]
    local spec, left = specs[want[1]], limit.left
    if refusing == 0 and asks then
      left = left - want[2]
      if left >= 0 or forced or not spec[4] or spec[1] ~= RATE then take(limit, want[2]) end
    end
    verdict[n + 2] = left
  end
  if refusing == 0 and asks then
    deadlines[#deadlines + 1] = math.floor(now / 1000) + lease_ms
    deadlines[#deadlines + 1] = request[1]
    holdings[#holdings + 1] = request[1]
    holdings[#holdings + 1] = request[2]
  end
  verdicts[r] = verdict
end

for _, limit in ipairs(limits) do
  if limit.changed and not looks then save_limit(limit, now) end
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
