-- One batch of one process: all of it, or nothing. `counters.py` and `notes.py` are the same in Python.
--
-- KEYS[1] stands before the name of every key, with the hash tag that keeps all of them together.
-- ARGV[1] is the call, packed; names and values of records follow.
--
--   <prefix>:o:<owner>  hash  n: last call, e: when its lease ends, r: which of its takes were granted
--   <prefix>:r:<name>   text  "level at", a rate; expires when it has drained
--   <prefix>:p:<name>   hash  l: level, a: at, a provisional rate, and what each owner has of it
--   <prefix>:h:<name>   hash  what each owner holds
--   <prefix>:s:<name>   hash  the same, and w: first second of the window, s: what is spent in it
--   <prefix>:k:<name>   text  a record
--   <prefix>:l:<name>   list  entries

local prefix = KEYS[1]
local owner, number, lease, operations = unpack(cmsgpack.unpack(ARGV[1]))
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local garbage = 0

local DAY = 86400
local TINY, SLACK = 1e-9, 1e-6
local LONGEST = 400 * DAY -- no key outlives its last use by more
local REMEMBERED = 3600 -- how long the last call of a process is known

local function exact(value)
  return string.format('%.17g', value)
end

local function finite(text)
  local value = tonumber(text)
  if value and value >= 0 and value < 1e300 then return value end
  return nil
end

-- A foreign value under a key of ours is as good as none, and does not stay.
local function discard(key)
  redis.call('UNLINK', key)
  garbage = garbage + 1
end

local function milliseconds(seconds)
  return string.format('%.0f', math.max(1, math.ceil(seconds * 1000)))
end

-- Who is there?

local own = prefix .. ':o:' .. owner
local known = redis.pcall('HMGET', own, 'n', 'e', 'r')
if known.err then
  discard(own)
  known = {}
end
local last = finite(known[1] or '') or 0
if last >= number then
  -- It is this call again, or one that was overtaken. What it did is done.
  return {cmsgpack.pack({owner, number, 'done', last == number and known[3] or '', garbage})}
end
if number > 1 and (finite(known[2] or '') or 0) <= now then
  return {cmsgpack.pack({owner, number, 'gone', '', garbage})}
end
-- The first that is written: what a server refuses to write, it refuses here.
redis.call('HSET', own, 'n', exact(number), 'e', exact(now + lease), 'r', '')
redis.call('EXPIRE', own, REMEMBERED)

local living = {[owner] = true}
local function lives(who)
  local answer = living[who]
  if answer == nil then
    local ends = redis.pcall('HGET', prefix .. ':o:' .. who, 'e')
    answer = type(ends) == 'string' and (finite(ends) or 0) > now
    living[who] = answer
  end
  return answer
end

-- Windows

local function month_begins(months) -- counted from January of the year 0
  local year, month = math.floor(months / 12), months % 12
  if month < 2 then year = year - 1 end
  local era = math.floor(year / 400)
  local in_era = year - era * 400
  local day = math.floor((153 * ((month + 10) % 12) + 2) / 5)
  local days = in_era * 365 + math.floor(in_era / 4) - math.floor(in_era / 100) + day
  return (era * 146097 + days - 719468) * DAY
end

local function window_at(window)
  if window == 'total' then return 0, math.huge end
  if window == 'hour' or window == 'day' then
    local length = window == 'day' and DAY or 3600
    local begins = math.floor(now / length) * length
    return begins, begins + length
  end
  -- About the right month, and then the right one.
  local months = math.floor(now / DAY / 30.436875) + 1970 * 12 - 1
  while month_begins(months + 1) <= now do months = months + 1 end
  return month_begins(months), month_begins(months + 1)
end

-- Meters: {kind, name, limit, period or window, hard}

local function drains_in(level, limit, period)
  if level <= 0 then return 0 end
  return limit > 0 and level * period / limit or math.huge
end

local function load_rate(meter)
  local key = prefix .. ':r:' .. meter[2]
  local state = {key = key, used = 0}
  local text = redis.pcall('GET', key)
  if not text then return state end
  local level, at
  if type(text) == 'string' then
    level, at = string.match(text, '^(%S+) (%S+)$')
    level, at = finite(level or ''), finite(at or '')
  end
  if not level or not at then
    discard(key)
    return state
  end
  local elapsed = now - at
  if elapsed < 0 then -- the clock was set back: start again from here, do not wait for it
    redis.call('SET', key, exact(level) .. ' ' .. exact(now), 'KEEPTTL')
    elapsed = 0
  end
  state.used = math.max(0, level - elapsed * math.max(meter[3], 0) / meter[4])
  return state
end

local function save_rate(meter, state, level)
  local ttl = drains_in(level, meter[3], meter[4]) + 1
  redis.call('SET', state.key, exact(level) .. ' ' .. exact(now), 'PX', milliseconds(math.min(ttl, LONGEST)))
end

-- A hash in which owners have something: numbers go by one letter, owners by more.
local function load_owned(meter)
  local key = prefix .. ':' .. meter[1] .. ':' .. meter[2]
  local numbers, owners, held, lost = {}, {}, 0, 0
  local flat = redis.pcall('HGETALL', key)
  local spoilt = flat.err ~= nil
  for i = 1, spoilt and 0 or #flat, 2 do
    local field, value = flat[i], finite(flat[i + 1])
    if not value then
      spoilt = true
    elseif #field == 1 then
      numbers[field] = value
    elseif lives(field) then
      owners[field] = value
      held = held + value
    else
      redis.call('HDEL', key, field)
      lost = lost + value
    end
  end
  if spoilt then
    discard(key)
    numbers, owners, held, lost = {}, {}, 0, 0
  end
  return {key = key, owners = owners, held = held, lost = lost}, numbers
end

local function load_provisional(meter)
  local state, numbers = load_owned(meter)
  local level, at = numbers.l, numbers.a
  state.used = 0
  if level and at then
    local drained = math.max(0, now - at) * math.max(meter[3], 0) / meter[4]
    -- What the dead have left is given back, as if they had used nothing of it.
    state.used = math.max(0, level - drained - state.lost)
    if state.lost > 0 or now < at then
      redis.call('HSET', state.key, 'l', exact(state.used), 'a', exact(now))
    end
  end
  return state
end

local function save_provisional(meter, state, level, whose, mine)
  if mine then
    redis.call('HSET', state.key, 'l', exact(level), 'a', exact(now), whose, exact(mine))
  else
    redis.call('HSET', state.key, 'l', exact(level), 'a', exact(now))
  end
  local ttl = drains_in(level, meter[3], meter[4]) + 1
  -- Somebody may still settle when it has drained: not to know of it would be to charge it twice.
  if state.held > TINY then ttl = math.max(ttl, DAY) end
  redis.call('PEXPIRE', state.key, milliseconds(math.min(ttl, LONGEST)))
end

local function load_account(meter)
  local state, numbers = load_owned(meter)
  state.begins, state.spent, state.ends = numbers.w or 0, numbers.s or 0, math.huge
  if meter[1] == 's' then
    local begins, ends = window_at(meter[4])
    if begins > state.begins then
      state.begins, state.spent = begins, 0
    end
    state.ends = ends
  end
  state.used = state.spent + state.held
  return state
end

local function keep(meter, state)
  local ttl = DAY -- of what is only held: longer than any request
  if meter[1] == 's' then
    ttl = math.max(0, state.ends - now) + DAY
  end
  redis.call('PEXPIRE', state.key, milliseconds(math.min(ttl, LONGEST)))
end

local function is_rate(meter)
  return meter[1] == 'r' or meter[1] == 'p'
end

local function load(meter)
  if meter[1] == 'r' then return load_rate(meter) end
  if meter[1] == 'p' then return load_provisional(meter) end
  return load_account(meter)
end

local function reading(meter, state, used, wish)
  local limit = meter[3]
  local resets, retry = 0, 0
  if is_rate(meter) then
    resets = drains_in(used, limit, meter[4])
    if wish then retry = drains_in(used + wish - limit, limit, meter[4]) end
    if wish and wish > limit * (1 + TINY) + SLACK then retry = math.huge end
  else
    if meter[1] == 's' then
      resets = state.ends - now
      if wish then retry = limit > 0 and resets or math.huge end
    end
    if wish and wish > limit then retry = math.huge end
  end
  return limit - used, resets, retry
end

local function fits(meter, state, amount)
  local used, limit = state.used, meter[3]
  if is_rate(meter) then return used + amount <= limit * (1 + TINY) + SLACK end
  if meter[1] == 's' and amount <= 0 then return used < limit end
  return used + amount <= limit
end

local handlers = {}
local blobs = {}

handlers.take = function(meters, amounts)
  local states, refused, stopped = {}, {}, false
  for i, meter in ipairs(meters) do
    states[i] = load(meter)
    if meter[5] and not fits(meter, states[i], amounts[i]) then
      refused[i], stopped = true, true
    end
  end
  local result = {not stopped}
  for i, meter in ipairs(meters) do
    local state, amount = states[i], amounts[i]
    local used = state.used
    if not stopped then
      used = used + amount
      if meter[1] == 'r' then
        save_rate(meter, state, used)
      elseif meter[1] == 'p' then
        state.held = state.held + amount
        save_provisional(meter, state, used, owner, (state.owners[owner] or 0) + amount)
      else
        local mine = exact((state.owners[owner] or 0) + amount)
        if meter[1] == 's' then
          redis.call('HSET', state.key, owner, mine,
                     'w', exact(state.begins), 's', exact(state.spent))
        else
          redis.call('HSET', state.key, owner, mine)
        end
        keep(meter, state)
      end
    end
    local left, resets, retry = reading(meter, state, used, refused[i] and amount)
    local n = #result
    result[n + 1], result[n + 2], result[n + 3] = left, resets, retry
    result[n + 4] = refused[i] or false
  end
  return result, not stopped
end

handlers.settle = function(meters, amounts, actuals, whose)
  for i, meter in ipairs(meters) do
    local state = load(meter)
    if meter[1] == 'r' then
      save_rate(meter, state, math.max(0, state.used + actuals[i] - amounts[i]))
    elseif meter[1] == 'p' then
      local mine = state.owners[whose]
      local rest = mine and mine - amounts[i] > TINY and mine - amounts[i] or 0
      local back = (mine or 0) - rest
      state.held = state.held - back
      -- Who has nothing left stays there with 0: to delete it would be one more command.
      local level = math.max(0, state.used + actuals[i] - back)
      save_provisional(meter, state, level, whose, mine and rest)
    else
      local mine = state.owners[whose]
      if mine and mine - amounts[i] > TINY then
        redis.call('HSET', state.key, whose, exact(mine - amounts[i]))
      elseif mine then
        redis.call('HDEL', state.key, whose)
      end
      if meter[1] == 's' then
        redis.call('HSET', state.key, 'w', exact(state.begins),
                   's', exact(math.max(0, state.spent + actuals[i])))
      end
      keep(meter, state)
    end
  end
  return true
end

handlers.read = function(meters)
  local result = {}
  for _, meter in ipairs(meters) do
    local state = load(meter)
    local n = #result
    result[n + 1], result[n + 2] = reading(meter, state, state.used)
  end
  return result
end

-- Records: names and values are numbers of arguments.

local function record(name)
  local key = prefix .. ':k:' .. ARGV[name]
  local value = redis.pcall('GET', key)
  if type(value) == 'table' then
    discard(key)
    value = false
  end
  return key, value
end

local function handed_out(value)
  blobs[#blobs + 1] = value
  return #blobs
end

handlers.get = function(name)
  local _, value = record(name)
  return value and handed_out(value) or 0
end

handlers.put = function(name, value, within, new)
  local key, old = record(name)
  if new and old then return false end
  if within >= 0 then
    redis.call('SET', key, ARGV[value], 'PX', milliseconds(within))
  else
    redis.call('SET', key, ARGV[value])
  end
  return true
end

handlers.replace = function(name, before, value)
  local key, old = record(name)
  if old ~= ARGV[before] then return false end
  redis.call('SET', key, ARGV[value], 'KEEPTTL')
  return true
end

handlers.delete = function(name)
  local key, old = record(name)
  redis.call('UNLINK', key)
  return old ~= false
end

handlers.names = function(start, cursor)
  local before = prefix .. ':k:'
  local pattern = string.gsub(before .. ARGV[start], '[%*%?%[%]\\]', '\\%0') .. '*'
  local step = redis.call('SCAN', ARGV[cursor], 'MATCH', pattern, 'COUNT', 1000)
  local result = {handed_out(step[1])}
  for _, key in ipairs(step[2]) do
    result[#result + 1] = handed_out(string.sub(key, #before + 1))
  end
  return result
end

local function list(name)
  local key = prefix .. ':l:' .. ARGV[name]
  if type(redis.pcall('LLEN', key)) == 'table' then discard(key) end
  return key
end

handlers.append = function(name, entry, most)
  local key = list(name)
  redis.call('RPUSH', key, ARGV[entry])
  redis.call('LTRIM', key, -most, -1)
  return true
end

handlers.entries = function(name, count)
  local result = {0} -- never empty, so that it is packed as a list
  for _, entry in ipairs(redis.call('LRANGE', list(name), -count, -1)) do
    result[#result + 1] = handed_out(entry)
  end
  return result
end

handlers.leave = function()
  redis.call('UNLINK', own)
  return true
end

local results, granted = {}, {}
local took = false
for i, operation in ipairs(operations) do
  local handler = handlers[operation[1]]
  granted[i] = '0'
  if handler then
    local result, was_granted = handler(unpack(operation, 2))
    results[i] = result
    if was_granted then
      granted[i], took = '1', true
    end
  else
    results[i] = true -- nobody waits for it any more
  end
end
if took then
  redis.call('HSET', own, 'r', table.concat(granted))
end
table.insert(blobs, 1, cmsgpack.pack({owner, number, 'new', results, garbage}))
return blobs
