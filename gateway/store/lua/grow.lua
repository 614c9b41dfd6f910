-- Let an open lease reserve more of its budgets: all of them, or none.
--
-- KEYS[1]   zset of the tenant's open leases; KEYS[2] hash of what they hold
-- KEYS[3..] budgets (see limits.lua)
-- ARGV[1]   msgpack [lease id, holding JSON with the new amounts, [[sort, capacity, more, shadow],
--           ...], amount]
-- returns   0 when it was taken, the number of the budget that refuses, or -1: no such lease

local input = cmsgpack.unpack(ARGV[1])
local lease, holding, specs, amount = input[1], input[2], input[3], input[4]
if not redis.call('ZSCORE', KEYS[1], lease) then return -1 end
local now = clock_us()
local limits = {}
for i, spec in ipairs(specs) do
  limits[i] = load_limit(KEYS[i + 2], spec, now)
  if amount > limits[i].left and not spec[4] then return i end
end
for _, limit in ipairs(limits) do
  take(limit, amount)
  save_limit(limit, now)
end
redis.call('HSET', KEYS[2], lease, holding)
return 0
