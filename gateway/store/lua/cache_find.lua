-- Find a kept answer, or else become the one who gets it.
--
-- KEYS[1]  the answer; KEYS[2] who is getting it at the moment, or '-' where somebody just got
--          nothing that can be kept: then whoever asks gets it by itself
-- ARGV[1]  who asks, or nothing where it would not get the answer; ARGV[2] for how long (ms);
--          ARGV[3] how long an answer must still be kept to be good enough (ms)
-- returns  {answer or false, milliseconds until it is gone, 0 nobody | 1 you | 2 another gets it}

local found = redis.call('GET', KEYS[1])
local left = found and redis.call('PTTL', KEYS[1]) or 0
if ARGV[1] == '' then
  return {found, left, 0}
end
if found and left > tonumber(ARGV[3]) then
  return {found, left, 0}
end
if redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2]) then
  return {found, left, 1}
end
if redis.call('GET', KEYS[2]) == '-' then return {found, left, 0} end
return {found, left, 2}
