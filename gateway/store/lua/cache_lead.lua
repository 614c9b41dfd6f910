-- Go on getting an answer, or leave it to others.
--
-- KEYS[1]  who is getting it; ARGV[1] who asks; ARGV[2] for how much longer (ms), 0 for no more;
--          below 0: it got nothing that can be kept, and nobody is to wait for another's that long

if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] == '0' then return redis.call('DEL', KEYS[1]) end
if tonumber(ARGV[2]) < 0 then return redis.call('SET', KEYS[1], '-', 'PX', -ARGV[2]) end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
