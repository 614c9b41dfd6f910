-- Give a virtual key a new secret, unless somebody else has just done so or has revoked it.
--
-- KEYS[1]  the key's record
-- ARGV[1]  the SHA-256 it has now; ARGV[2] the new one; ARGV[3] until when the one before is good
-- returns  1, also where this has been done before; 0 where the record is another by now

local stored = redis.call('HMGET', KEYS[1], 'sha256', 'revoked')
if stored[1] == ARGV[2] then return 1 end  -- asked again, as the reply was lost
if stored[1] ~= ARGV[1] or stored[2] ~= '0' then return 0 end
redis.call('HSET', KEYS[1], 'sha256', ARGV[2], 'previous_sha256', ARGV[1], 'previous_until', ARGV[3])
return 1
