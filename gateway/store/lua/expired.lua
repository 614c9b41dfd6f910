-- List leases whose deadline has passed: nobody serves them any more.
--
-- KEYS[1]  zset of the tenant's open leases; KEYS[2] hash of what they hold
-- ARGV[1]  how many at the most
-- returns  id, holding JSON, id, holding JSON, ...

-- Also renews the lifetime of both keys, which `admit` sets when it makes them. A server that takes
-- no data has taken no signs of life either: there this fails.

local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
redis.call('ZADD', KEYS[1], 'XX', 0, '')
local ids = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])
redis.call('EXPIRE', KEYS[1], 86400)
redis.call('EXPIRE', KEYS[2], 86400)
local found = {}
for _, id in ipairs(ids) do
  found[#found + 1] = id
  found[#found + 1] = redis.call('HGET', KEYS[2], id) or ''
end
return found
