#!lua name=tangram_cluster
-- The functions of many nodes on Redis: the registry of nodes, and the leases of placed plugins.
--
-- Keys, all of them in one slot of a Redis Cluster:
--   {tangram}:nodes         set of the ids of nodes
--   {tangram}:node:ID       hash, the record of one node; it expires unless the node renews it
--   {tangram}:born          random name of this storage: another name means that leases may be lost
--   {tangram}:lease:NAME    value of the holder, NODE:RANDOM; it expires unless the holder renews it
--   {tangram}:fence:NAME    fencing token of the newest holder; it only grows
--
-- Changes are published on tangram:cluster, so that other nodes act within one round trip.

local CHANGES = 'tangram:cluster'

local function text(number)
  return string.format('%.0f', number)
end

local function announce(what)
  redis.call('PUBLISH', CHANGES, cjson.encode(what))
end

local function storage(key, candidate)
  local born = redis.call('GET', key)
  if not born then
    born = candidate
    redis.call('SET', key, born)
  end
  return born
end

-- Return whether the value is renewed, the holder's value, and the milliseconds that its lease lasts.
local function renew(lease, value, ms)
  local holder = redis.call('GET', lease)
  if not holder then
    return {0, '', 0}
  end
  if value ~= '' and holder == value then
    redis.call('PEXPIRE', lease, ms)
    return {1, holder, tonumber(ms)}
  end
  return {0, holder, redis.call('PTTL', lease)}
end

local function records(nodes, prefix)
  local found = {}
  for _, id in ipairs(redis.call('SMEMBERS', nodes)) do
    local fields = redis.call('HGETALL', prefix .. id)
    if #fields == 0 then
      redis.call('SREM', nodes, id)
    else
      found[#found + 1] = {id, fields}
    end
  end
  return found
end

-- KEYS nodes, own record, storage, then a lease each
-- ARGV id, ms of the record, candidate for the storage, number of words of the record, those words;
-- then value ('' to look only) and ms of each lease
-- Return Redis' time, the storage, the run that owned the record before, a row for each lease, all records.
-- While the record of another run lasts, nothing is written and no lease renewed: two servers have one name.
local function beat(keys, args)
  local now = redis.call('TIME')
  local born = storage(keys[3], args[3])
  local before = redis.call('HGET', keys[2], 'run') or ''
  local count = tonumber(args[4])
  local words, run = {}, ''
  for i = 5, 4 + count do
    words[#words + 1] = args[i]
    if i % 2 == 1 and args[i] == 'run' then
      run = args[i + 1]
    end
  end
  local owns = before == '' or before == run
  if owns then
    redis.call('HSET', keys[2], unpack(words))
    redis.call('PEXPIRE', keys[2], args[2])
    if redis.call('SADD', keys[1], args[1]) == 1 then
      announce({what = 'joined', node = args[1]})
    end
  end
  local rows = {}
  for i = 4, #keys do
    local at = 5 + count + (i - 4) * 2
    rows[#rows + 1] = renew(keys[i], owns and args[at] or '', args[at + 1])
  end
  return {now, born, before, rows, records(keys[1], string.sub(keys[2], 1, -1 - #args[1]))}
end

-- KEYS own record; ARGV run that owns it and is dead, run that takes it
local function claim(keys, args)
  if redis.call('HGET', keys[1], 'run') ~= args[1] then
    return 0
  end
  redis.call('HSET', keys[1], 'run', args[2])
  return 1
end

-- KEYS nodes, own record; ARGV id, run
local function leave(keys, args)
  if redis.call('HGET', keys[2], 'run') ~= args[2] then
    return 0
  end
  redis.call('DEL', keys[2])
  redis.call('SREM', keys[1], args[1])
  announce({what = 'left', node = args[1]})
  return 1
end

-- KEYS lease, fence, storage
-- ARGV name, value, ms, storage that the node knows ('' for none), candidate for the storage
-- Return 1 and the token, or 0 and the holder's value ('' if the storage is another one); then the
-- milliseconds that the lease lasts, and the storage.
local function take(keys, args)
  -- The value is no name: the same one may try again after a second loss, and would know the new storage.
  local born = storage(keys[3], args[5] or args[2])
  local holder = redis.call('GET', keys[1])
  if holder and holder ~= args[2] then
    return {0, holder, redis.call('PTTL', keys[1]), born}
  end
  if args[4] ~= '' and args[4] ~= born then
    return {0, '', 0, born}
  end
  local now = redis.call('TIME')
  local clock = tonumber(now[1]) * 1000000 + tonumber(now[2])
  local token = math.max(tonumber(redis.call('GET', keys[2]) or '0') + 1, clock)
  redis.call('SET', keys[2], text(token))
  redis.call('SET', keys[1], args[2], 'PX', args[3])
  announce({what = 'taken', lease = args[1], by = args[2]})
  return {1, text(token), tonumber(args[3]), born}
end

-- KEYS lease; ARGV name, value, id of the node that shall take it or ''
local function give(keys, args)
  if redis.call('GET', keys[1]) ~= args[2] then
    return 0
  end
  redis.call('DEL', keys[1])
  announce({what = 'released', lease = args[1], by = args[2], to = args[3]})
  return 1
end

-- KEYS fence; ARGV token, channel, payload
local function fenced(keys, args)
  local newest = redis.call('GET', keys[1])
  if not newest then
    return redis.error_reply('UNFENCED redis does not know the lease any more')
  end
  if tonumber(newest) > tonumber(args[1]) then
    return redis.error_reply('FENCED another node holds the lease')
  end
  return redis.call('PUBLISH', args[2], args[3])
end

redis.register_function('tangram_beat', beat)
redis.register_function('tangram_claim', claim)
redis.register_function('tangram_leave', leave)
redis.register_function('tangram_take', take)
redis.register_function('tangram_give', give)
redis.register_function('tangram_fenced', fenced)
