-- Move the deadline of leases that are still open, on behalf of the worker that serves them.
--
-- KEYS[1]  zset of the tenant's open leases
-- ARGV[1]  lease_ms; ARGV[2..] lease ids
-- returns  how many were open

local clock = redis.call('TIME')
local deadline = clock[1] * 1000 + math.floor(clock[2] / 1000) + ARGV[1]
local args = {}
for i = 2, #ARGV do
  args[#args + 1] = deadline
  args[#args + 1] = ARGV[i]
end
return redis.call('ZADD', KEYS[1], 'XX', 'CH', unpack(args))
