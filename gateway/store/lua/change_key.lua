-- Change a virtual key's settings, unless somebody else has changed any since they were read.
--
-- KEYS[1]  the key's record
-- ARGV[1]  its edition as it was read; ARGV[2..] fields and values
-- returns  1; 0 where the record is another edition by now

if (redis.call('HGET', KEYS[1], 'edition') or '0') ~= ARGV[1] then return 0 end
if #ARGV > 1 then
  redis.call('HSET', KEYS[1], unpack(ARGV, 2))
  redis.call('HINCRBY', KEYS[1], 'edition', 1)
end
return 1
