-- Let an open lease reserve more of its budgets: all of them, or none.
--
-- KEYS[1]   zset of the tenant's open leases; KEYS[2] hash of what they hold
-- KEYS[3..] budgets (see limits.lua)
-- ARGV[1]   msgpack [lease id, holding JSON with the new amounts, [[sort, capacity, more, shadow],
--           ...], forced, bare]; forced: a worker has given it by itself, so no budget refuses it;
--           bare: the holding without slots, for a lease that has been opened without, or ''
-- returns   {0, the budgets in shadow that do not cover it, ...} when it was taken; or one number:
--           of the budget that refuses, or -1: no such lease
--
-- A budget that has been changed meanwhile counts as it was last admitted by.
-- What is taken is what the lease does not hold yet: one that was asked for and believed lost may
-- arrive late, before or behind the next.

local input = cmsgpack.unpack(ARGV[1])
local lease, holding, specs, forced, bare = input[1], input[2], input[3], input[4], input[5]
if not redis.call('ZSCORE', KEYS[1], lease) then return {-1} end
local now = clock_us()
local before = redis.call('HGET', KEYS[2], lease)
local held, wanted = held_by(before), held_by(holding)
local limits, missing, grows = {}, {}, false
for i, spec in ipairs(specs) do
  local key = KEYS[i + 2]
  limits[i] = load_limit(key, spec, now, true)
  missing[i] = math.max((wanted[key] or 0) - (held[key] or 0), 0)
  grows = grows or missing[i] > 0
  if missing[i] > limits[i].left and missing[i] > 0 and not spec[4] and not forced then
    return {i}
  end
end
local taken = {0}
if not grows then return taken end
for i, limit in ipairs(limits) do
  take(limit, missing[i])
  save_limit(limit, now)
  if limit.left < 0 and specs[i][4] then taken[#taken + 1] = i end
end
if bare ~= '' and not has_slots(before) then holding = bare end
redis.call('HSET', KEYS[2], lease, holding)
return taken
