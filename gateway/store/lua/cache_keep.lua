-- Keep an answer; whoever was getting it is done.
--
-- KEYS[1]  the answer, after 16 digits: when its provider was asked (Unix us, by the clock of whoever
--          keeps it); KEYS[2] who is getting it; KEYS[3] zset of the tenant's answers; KEYS[4], not
--          in a cluster, how often answers were purged
-- ARGV[1]  the answer with its digits, or these alone where it cannot be kept: then what is there
--          goes; ARGV[2] for how long (ms); ARGV[3] who was getting it; ARGV[4] its entry in the
--          zset, which is scored by when it is gone (Unix ms); ARGV[5] how often answers had been
--          purged when this one was asked for
-- returns  1, or 0 where nothing is changed: a purge has overtaken it, or what is there was asked
--          for later (but not by a clock that has since been set back)

if redis.call('GET', KEYS[2]) == ARGV[3] then redis.call('DEL', KEYS[2]) end
if KEYS[4] and (redis.call('GET', KEYS[4]) or '0') ~= ARGV[5] then return 0 end
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local there = tonumber(redis.call('GETRANGE', KEYS[1], 0, 15)) or 0
if there > tonumber(string.sub(ARGV[1], 1, 16)) and there / 1000 <= now + 1000 then return 0 end
if #ARGV[1] == 16 then
  redis.call('DEL', KEYS[1])
  return 1
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
local gone = now + tonumber(ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', string.format('%.0f', now))
redis.call('ZADD', KEYS[3], string.format('%.0f', gone), ARGV[4])
if redis.call('PTTL', KEYS[3]) < tonumber(ARGV[2]) then
  redis.call('PEXPIRE', KEYS[3], ARGV[2])
end
return 1
