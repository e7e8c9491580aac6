#!lua name=tangram
-- The functions of tangram on Redis: one history for each topic.
--
-- Keys of a topic: its messages (a stream, or a hash by event where only the newest counts) and its state, a hash:
--   e  epoch: a random name of one unbroken sequence of offsets
--   o  offset of the last message
--   n  1 once a message was published by tangram_publish
--   r  1 once a message of a plain PUBLISH was recorded
--   k  the mode, "stream" or "latest"
--   s, q  the values of the guard with which the epoch was made
-- Key of the guard, one for all topics, a hash:
--   i  identity of the storage; s  how often it may have lost messages
--   f  number of the recorder; q  how often messages of plain PUBLISH may have passed without a recorder
--
-- Each function publishes on to:phoenix:at in the same step, so that every node finds its place in the feed.

local AT = 'to:phoenix:at'
local KEPT = 604800 -- seconds for which the state of a topic outlives its last message
local UNUSED = 3600 -- seconds for which a topic without any message is remembered after a join

local function text(number)
  return string.format('%.0f', number)
end

local function announce(topic, epoch, top, more)
  redis.call('PUBLISH', AT, '{"t":' .. cjson.encode(topic) .. ',"e":"' .. epoch .. '","o":' .. text(top) .. more .. '}')
end

-- Return the state of a topic; begin a new epoch where the old one cannot be continued.
local function open_topic(messages, meta, guard, candidate, mode)
  local now = redis.call('HMGET', guard, 's', 'q')
  local s, q = now[1] or '0', now[2] or '0'
  local m = redis.call('HMGET', meta, 'e', 'o', 'n', 'r', 'k', 's', 'q')
  local topic = {epoch = m[1], top = tonumber(m[2] or '0'), native = m[3] == '1', recorded = m[4] == '1'}
  -- Messages of tangram_publish need no recorder, so its absence does not end their epoch.
  local certain = topic.native and not topic.recorded
  if not topic.epoch or m[5] ~= mode or m[6] ~= s or (m[7] ~= q and not certain) then
    -- A topic that plain messages were recorded of stays one that needs a recorder.
    topic = {epoch = candidate, top = 0, native = false, recorded = topic.recorded}
    redis.call('DEL', messages, meta)
    redis.call('HSET', meta, 'e', candidate, 'o', '0', 'k', mode, 's', s, 'q', q, 'r', topic.recorded and '1' or '0')
    redis.call('EXPIRE', meta, UNUSED)
  elseif m[7] ~= q then
    redis.call('HSET', meta, 'q', q)
  end
  return topic
end

local function forget_oldest(messages, size)
  local fields = redis.call('HGETALL', messages)
  local oldest, least = nil, nil
  for i = 1, #fields, 2 do
    local offset = tonumber(string.match(fields[i + 1], '^(%d+) '))
    if not least or offset < least then
      oldest, least = fields[i], offset
    end
  end
  if #fields / 2 > size then
    redis.call('HDEL', messages, oldest)
  end
end

local function store(messages, mode, offset, event, payload, size)
  if mode == 'latest' then
    local now = redis.call('TIME')
    local fresh = redis.call('HSET', messages, event, text(offset) .. ' ' .. now[1] .. ' ' .. payload)
    if fresh == 1 and redis.call('HLEN', messages) > size then
      forget_oldest(messages, size)
    end
  else
    redis.call('XADD', messages, 'MAXLEN', size, text(offset) .. '-0', event, payload)
  end
end

local function settle(messages, meta, top, ttl, field)
  redis.call('HSET', meta, 'o', text(top), field, '1')
  redis.call('EXPIRE', meta, KEPT)
  redis.call('PEXPIRE', messages, ttl)
end

-- KEYS messages, state, guard; ARGV topic, event, payload, candidate for an epoch, mode, size, ttl in ms
-- A placed plugin adds the key of its fence, and its token: see cluster/functions.lua.
local function publish(keys, args)
  if keys[4] then
    local newest = redis.call('GET', keys[4])
    if not newest then
      return redis.error_reply('UNFENCED redis does not know the lease any more')
    end
    if tonumber(newest) > tonumber(args[8]) then
      return redis.error_reply('FENCED another node holds the lease')
    end
  end
  local topic = open_topic(keys[1], keys[2], keys[3], args[4], args[5])
  local top = topic.top + 1
  store(keys[1], args[5], top, args[2], args[3], tonumber(args[6]))
  settle(keys[1], keys[2], top, args[7], 'n')
  announce(args[1], topic.epoch, top, '')
  local receivers = redis.call('PUBLISH', 'to:' .. args[1] .. ':' .. args[2], args[3])
  return {receivers, topic.epoch, text(top)}
end

local function missed_of_stream(messages, topic, since, everything)
  local missed = topic.top - since
  if missed == 0 then
    return {}, 'ok'
  end
  local found = redis.call('XRANGE', messages, text(since + 1) .. '-0', '+')
  -- Each offset is one entry, so that any entry that was trimmed, or has expired, shows in the count.
  if #found ~= missed and not everything then
    return {}, 'too_old'
  end
  local entries = {}
  for _, entry in ipairs(found) do
    entries[#entries + 1] = {entry[2][1], entry[2][2]}
  end
  return entries, #found == missed and 'ok' or 'too_old'
end

local function newest_of_each(messages, since, ttl)
  local fields = redis.call('HGETALL', messages)
  local oldest = tonumber(redis.call('TIME')[1]) - tonumber(ttl) / 1000
  local rows = {}
  for i = 1, #fields, 2 do
    local offset, at, payload = string.match(fields[i + 1], '^(%d+) (%d+) (.*)$')
    if tonumber(offset) > since and tonumber(at) >= oldest then
      rows[#rows + 1] = {fields[i], payload, tonumber(offset)}
    end
  end
  table.sort(rows, function(a, b) return a[3] < b[3] end)
  return rows
end

-- Keep the newest entries that fit into a number of bytes, and return whether all of them do.
local function fit(entries, limit)
  local size, first = 0, #entries + 1
  while first > 1 do
    size = size + #entries[first - 1][1] + #entries[first - 1][2]
    if size > limit then
      break
    end
    first = first - 1
  end
  local kept = {}
  for i = first, #entries do
    kept[#kept + 1] = {entries[i][1], entries[i][2]}
  end
  return kept, first == 1
end

-- KEYS messages, state, guard
-- ARGV topic, epoch, '' for none or '*' for everything, offset, candidate, mode, ttl in ms, bytes of one replay, nonce of the marker or ''
local function read(keys, args)
  local mode, since = args[5], tonumber(args[3])
  local topic = open_topic(keys[1], keys[2], keys[3], args[4], mode)
  if topic.top == 0 then
    redis.call('EXPIRE', keys[2], UNUSED)
  end
  local status, entries = 'new', {}
  if args[2] ~= '' then
    status = ((args[2] == topic.epoch or args[2] == '*') and since <= topic.top) and 'ok' or 'epoch'
  end
  if mode == 'latest' then
    entries = newest_of_each(keys[1], status == 'ok' and since or -1, args[6])
  elseif status == 'ok' then
    entries, status = missed_of_stream(keys[1], topic, since, args[2] == '*')
  end
  local kept, whole = fit(entries, tonumber(args[7]))
  if not whole then
    status = 'too_much'
    if mode ~= 'latest' then
      kept = {}
    end
  end
  if args[8] ~= '' then
    announce(args[1], topic.epoch, topic.top, ',"m":' .. cjson.encode(args[8]))
  end
  local certain = (topic.native and not topic.recorded) and 1 or 0
  return {status, topic.epoch, text(topic.top), certain, kept}
end

-- KEYS guard, then messages and state of each topic
-- ARGV number of the recorder, number of topics; topic, candidate, mode, size, ttl of each;
-- then index of the topic, event and payload of each message
local function record(keys, args)
  if redis.call('HGET', keys[1], 'f') ~= args[1] then
    return 0
  end
  local count = tonumber(args[2])
  local topics = {}
  for i = 1, count do
    local at = 3 + (i - 1) * 5
    local messages, meta = keys[2 * i], keys[2 * i + 1]
    local topic = open_topic(messages, meta, keys[1], args[at + 1], args[at + 2])
    topic.name, topic.mode, topic.size, topic.ttl = args[at], args[at + 2], tonumber(args[at + 3]), args[at + 4]
    topic.added = 0
    topics[i] = topic
  end
  for at = 3 + count * 5, #args, 3 do
    local i = tonumber(args[at])
    local topic = topics[i]
    topic.top = topic.top + 1
    topic.added = topic.added + 1
    store(keys[2 * i], topic.mode, topic.top, args[at + 1], args[at + 2], topic.size)
  end
  local rows = {}
  for i, topic in ipairs(topics) do
    settle(keys[2 * i], keys[2 * i + 1], topic.top, topic.ttl, 'r')
    rows[i] = '[' .. cjson.encode(topic.name) .. ',"' .. topic.epoch .. '",' .. text(topic.top) .. ',' .. text(topic.added) .. ']'
  end
  redis.call('PUBLISH', AT, '{"f":' .. args[1] .. ',"r":[' .. table.concat(rows, ',') .. ']}')
  return 1
end

-- KEYS lease, guard
-- ARGV node, ms, number of the recorder with which this node is in step or '', 'force' to ignore another holder
-- Return whether this node is the recorder, the recorder's number, and whether messages may have passed without one.
local function lease(keys, args)
  local holder = redis.call('GET', keys[1])
  local number = redis.call('HGET', keys[2], 'f') or '0'
  if holder == args[1] and args[3] == number then
    redis.call('PEXPIRE', keys[1], args[2])
    return {1, number, 0}
  end
  if holder and holder ~= args[1] and args[4] ~= 'force' then
    return {0, number, 0}
  end
  local broke = args[3] == number and 0 or 1
  if broke == 1 then
    redis.call('HINCRBY', keys[2], 'q', 1)
  end
  number = text(redis.call('HINCRBY', keys[2], 'f', 1))
  redis.call('SET', keys[1], args[1], 'PX', args[2])
  redis.call('PUBLISH', AT, '{"l":' .. number .. ',"n":' .. cjson.encode(args[1]) .. ',"b":' .. broke .. '}')
  return {1, number, broke}
end

-- KEYS lease; ARGV node
local function release(keys, args)
  if redis.call('GET', keys[1]) ~= args[1] then
    return 0
  end
  return redis.call('DEL', keys[1])
end

-- KEYS lease, guard; ARGV identity of the storage and of the settings
local function begin(keys, args)
  if redis.call('HGET', keys[2], 'i') == args[1] then
    return 0
  end
  redis.call('HSET', keys[2], 'i', args[1])
  redis.call('HINCRBY', keys[2], 's', 1)
  redis.call('DEL', keys[1])
  return 1
end

redis.register_function('tangram_publish', publish)
redis.register_function('tangram_read', read)
redis.register_function('tangram_record', record)
redis.register_function('tangram_lease', lease)
redis.register_function('tangram_release', release)
redis.register_function('tangram_begin', begin)
