-- Let a question be found by its meaning, for as long as its answer is kept.
--
-- KEYS[1]  the answer; KEYS[2] the question
-- ARGV[1]  what it has in common with those it is compared with; ARGV[2] its vector; ARGV[3] where
--          the answer is, sealed
-- returns  whether there is such an answer

local left = redis.call('PTTL', KEYS[1])
if left <= 0 then return 0 end
redis.call('HSET', KEYS[2], 'scope', ARGV[1], 'vector', ARGV[2], 'place', ARGV[3])
return redis.call('PEXPIRE', KEYS[2], left)
