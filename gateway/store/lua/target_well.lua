-- Take back that a target is left alone, unless something else was told of it since.
--
-- KEYS[1]  what is told of targets; ARGV[1] the target; ARGV[2] what was told of it
-- returns  how much was taken back

if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
return redis.call('HDEL', KEYS[1], ARGV[1])
