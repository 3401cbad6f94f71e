"""The Lua scripts of the shared ledger. Redis runs each as one atomic step.

Redis' own clock counts, because a worker's may be wrong, except where a caller states the time. All keys have the same
hash tag, so a cluster would keep them together. The key `born` holds an epoch, which is drawn anew whenever Redis has
lost its data: for a moment after that nothing is held or booked, while every worker sends what it knows.
"""

from __future__ import annotations

from gateway.redis_wire import Script

_TIME = """
local function time_of(stated)
  if stated ~= '' then return tonumber(stated) end
  local t = redis.call('TIME')
  return tonumber(t[1]) + tonumber(t[2]) / 1e6
end
local function born_of(prefix, fresh, settle_s)
  local born = redis.call('HMGET', prefix .. 'born', 'epoch', 'at')
  local now = time_of('')
  if not born[1] then
    redis.call('HSET', prefix .. 'born', 'epoch', fresh, 'at', string.format('%.6f', math.floor(now * 1e3) / 1e3))
    return fresh, settle_s
  end
  return born[1], settle_s - (now - tonumber(born[2]))
end
"""
# A period begins only when its start has come by the clock that counts: a worker whose clock runs ahead doesn't begin
# it for the others. An account whose key holds something else has no row and takes no money until RAISE writes it anew
# from the journal; what was held before is then forgotten.
_ROW = """
local function count(word)
  return tonumber(string.match(word or '0', '^-?%d+$'))
end
local function row_of(key, start, now)
  local row = redis.pcall('HMGET', key, 'spent', 'held', 'start')
  local spent, held, begun = count(row[1]), count(row[2]), count(row[3] or '-1')
  if row.err or not (spent and held and begun) then return nil end
  start = tonumber(start)
  if start <= now and begun < start then
    redis.call('HSET', key, 'start', start, 'spent', 0)
    spent, begun = 0, start
  end
  return spent, held, begun
end
local function free(prefix, hold)
  local name = prefix .. 'hold:' .. hold
  local held = redis.pcall('HGETALL', name)
  for i = 1, #held, 2 do
    local left = redis.pcall('HINCRBY', held[i], 'held', string.format('%.0f', 0 - held[i + 1]))
    if type(left) == 'number' and left < 0 then redis.call('HSET', held[i], 'held', 0) end
  end
  redis.call('DEL', name)
  redis.call('ZREM', prefix .. 'leases', hold)
end
local function put(prefix, hold, keys, from, to, amount, ends)
  for i = from, to do
    redis.pcall('HINCRBY', keys[i], 'held', amount)
    redis.call('HSET', prefix .. 'hold:' .. hold, keys[i], amount)
  end
  redis.call('ZADD', prefix .. 'leases', string.format('%.3f', ends), hold)
end
"""
# Token buckets, which count in the same way as those of gateway/money/limits.py.
_BUCKETS = """
local function level(kept, capacity, passed_s)
  if capacity == '' then return nil end
  kept = tonumber(kept or nil)
  return kept and math.min(tonumber(capacity), kept + passed_s * capacity / 60) or tonumber(capacity)
end
local function fill(key, rpm, tpm, now)
  local row = redis.pcall('HMGET', key, 'r', 't', 'at')
  if row.err then redis.call('DEL', key) end
  local passed_s = math.max(0, now - (tonumber(row[3] or now) or now))
  return level(row[1], rpm, passed_s), level(row[2], tpm, passed_s)
end
local function is_short(held, capacity, amount)
  return held and held < amount and held < tonumber(capacity)
end
local function full_in_s(held, capacity)
  return held and (tonumber(capacity) - held) * 60 / capacity or 0
end
local function keep(key, r, t, rpm, tpm, now)
  local words = {'at', string.format('%.6f', now)}
  if r then words[#words + 1] = 'r'; words[#words + 1] = string.format('%.6f', r) end
  if t then words[#words + 1] = 't'; words[#words + 1] = string.format('%.6f', t) end
  redis.call('HSET', key, unpack(words))
  redis.call('PEXPIRE', key, math.ceil(1000 * math.max(full_in_s(r, rpm), full_in_s(t, tpm)) + 1000))
end
local function told(held) return held and string.format('%.6f', held) or '' end
"""

# KEYS: leases, the accounts, the limits. ARGV: prefix, hold, now or '', seconds of the lease, amount, an epoch
# to draw, seconds to settle down, tokens, the epoch its sender knows, how many accounts; each account's limit and
# period start; each limit's requests and tokens a minute. Answers the epoch and the seconds to wait before trying
# again. Where these are empty, there follow the number of the account that refuses (from 1; 0: none; negative: that
# account can't be read), the number of the limit that refuses (from 1; 0: none), spent and held of each account, and
# the two levels of each limit.
HOLD = Script(
    _TIME
    + _ROW
    + _BUCKETS
    + """
local prefix, hold, now, amount, tokens = ARGV[1], ARGV[2], time_of(ARGV[3]), tonumber(ARGV[5]), tonumber(ARGV[8])
local n = tonumber(ARGV[10])
local epoch, wait_s = born_of(prefix, ARGV[6], tonumber(ARGV[7]))
if wait_s > 0 or epoch ~= ARGV[9] then return {epoch, tostring(math.max(0, wait_s))} end
for _, lapsed in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, 64)) do free(prefix, lapsed) end
local answer, poor, short = {epoch, '', 0, 0}, 0, 0
for i = 1, n do
  local key, limit = KEYS[1 + i], ARGV[9 + 2 * i]
  local spent, held = row_of(key, ARGV[10 + 2 * i], now)
  answer[#answer + 1] = spent or 0
  answer[#answer + 1] = held or 0
  if not spent then poor = -i
  elseif poor == 0 and limit ~= '' and spent + held + amount > tonumber(limit) then poor = i end
end
local levels = {}
for j = 1, #KEYS - 1 - n do
  local rpm, tpm = ARGV[9 + 2 * n + 2 * j], ARGV[10 + 2 * n + 2 * j]
  local r, t = fill(KEYS[1 + n + j], rpm, tpm, now)
  levels[j] = {r, t, rpm, tpm}
  if short == 0 and (is_short(r, rpm, 1) or is_short(t, tpm, tokens)) then short = j end
end
for j, one in ipairs(levels) do
  local r, t = one[1], one[2]
  if short == 0 and poor == 0 then
    r, t = r and r - 1, t and t - tokens
    keep(KEYS[1 + n + j], r, t, one[3], one[4], now)
  end
  answer[#answer + 1] = told(r)
  answer[#answer + 1] = told(t)
end
if short == 0 and poor == 0 and n > 0 then put(prefix, hold, KEYS, 2, 1 + n, ARGV[5], now + ARGV[4]) end
answer[3], answer[4] = short == 0 and poor or 0, short
return answer
"""
)
# KEYS: settled marker, leases, the accounts. ARGV: prefix, hold, now or '', amount, seconds to remember, the
# epoch its sender knows, seconds to settle down, period starts. Answers 1 where it was booked, 0 where it had been
# before, and -1 where the sender must first send a Redis of another epoch what it knows.
SETTLE = Script(
    _TIME
    + _ROW
    + """
local born = redis.call('HMGET', ARGV[1] .. 'born', 'epoch', 'at')
if born[1] ~= ARGV[6] or time_of('') < tonumber(born[2]) + ARGV[7] then return -1 end
if not redis.call('SET', KEYS[1], '1', 'NX', 'EX', ARGV[5]) then return 0 end
free(ARGV[1], ARGV[2])
for i = 3, #KEYS do
  if row_of(KEYS[i], ARGV[5 + i], time_of(ARGV[3])) then redis.call('HINCRBY', KEYS[i], 'spent', ARGV[4]) end
end
return 1
"""
)
# KEYS: the hold's accounts. ARGV: prefix, hold, amount to keep.
SHRINK = Script("""
local name = ARGV[1] .. 'hold:' .. ARGV[2]
for _, key in ipairs(KEYS) do
  local held = tonumber(redis.pcall('HGET', name, key) or nil)
  if held and held > tonumber(ARGV[3]) then
    redis.pcall('HINCRBY', key, 'held', string.format('%.0f', ARGV[3] - held))
    redis.call('HSET', name, key, ARGV[3])
  end
end
return 1
""")
# KEYS: the limits. ARGV: now or '', tokens to give back, each limit's requests and tokens a minute.
CORRECT = Script(
    _TIME
    + _BUCKETS
    + """
local now = time_of(ARGV[1])
for j, key in ipairs(KEYS) do
  local rpm, tpm = ARGV[1 + 2 * j], ARGV[2 + 2 * j]
  local r, t = fill(key, rpm, tpm, now)
  if t then keep(key, r, math.min(tonumber(tpm), t + ARGV[2]), rpm, tpm, now) end
end
return 1
"""
)
# KEYS: accounts. ARGV: now or '', then for each what it has spent at least and its period's start. Answers how many
# accounts it changed.
RAISE = Script(
    _TIME
    + _ROW
    + """
local raised, now = 0, time_of(ARGV[1])
for i, key in ipairs(KEYS) do
  local least, start = tonumber(ARGV[2 * i]), ARGV[2 * i + 1]
  local spent, _, begun = row_of(key, start, now)
  if not spent then
    redis.call('DEL', key)
    spent, _, begun = row_of(key, start, now)
    raised = raised + 1
  end
  if begun == tonumber(start) and spent < least then
    redis.call('HSET', key, 'spent', ARGV[2 * i])
    raised = raised + 1
  end
end
return raised
"""
)
# KEYS: leases, the accounts. ARGV: prefix, hold, now or '', seconds of the lease, amount. Makes a hold that Redis has
# forgotten again; one that it knows stays as it is.
REHOLD = Script(
    _TIME
    + _ROW
    + """
if redis.call('EXISTS', ARGV[1] .. 'hold:' .. ARGV[2]) == 1 then return 0 end
put(ARGV[1], ARGV[2], KEYS, 2, #KEYS, ARGV[5], time_of(ARGV[3]) + ARGV[4])
return 1
"""
)
# KEYS: leases, workers. ARGV: now or '', seconds of the lease, worker, seconds after which a silent worker is
# gone, then the holds to prolong. Answers how many workers there are, then the holds that Redis has forgotten.
PULSE = Script(
    _TIME
    + """
local now = time_of(ARGV[1])
redis.call('ZADD', KEYS[2], now, ARGV[3])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - ARGV[4])
local told = {redis.call('ZCARD', KEYS[2])}
for i = 5, #ARGV do
  if not redis.call('ZSCORE', KEYS[1], ARGV[i]) then told[#told + 1] = ARGV[i] end
  redis.call('ZADD', KEYS[1], 'XX', string.format('%.3f', now + ARGV[2]), ARGV[i])
end
return told
"""
)
