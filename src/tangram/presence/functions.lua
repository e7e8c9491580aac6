#!lua name=tangram_presence
-- The functions of presence on Redis: the members of each topic on all nodes.
--
-- Key of a topic, a hash:
--   agent, as JSON text -> session, a space, and the external id as JSON text
--   #v  version: rises by one with each change; begins with the time in microseconds
--   #k  1 while the topic shows the number of its members and not the list
-- Key of the sessions, a hash: session -> node; ' ended' behind it after a planned end
-- Key of one session, a set: the topics in which it has members
--
-- A session is the channels of one incarnation of a node. Each change is published on to:phoenix:who in the same
-- step, and behind it, unless only numbers are shown, the difference for browsers on to:<topic>:presence_diff.

local FEED = 'to:phoenix:who'

local function text(number)
  return string.format('%.0f', number)
end

-- Return external ids and their refs as JSON text, in the order of the first ref of each id.
local function metas(pairs_of_refs)
  local ids, refs = {}, {}
  for _, pair in ipairs(pairs_of_refs) do
    local agent, id = pair[1], pair[2]
    if not refs[id] then
      ids[#ids + 1] = id
      refs[id] = {}
    end
    table.insert(refs[id], '{"phx_ref":' .. agent .. '}')
  end
  local parts = {}
  for i, id in ipairs(ids) do
    parts[i] = id .. ':{"metas":[' .. table.concat(refs[id], ',') .. ']}'
  end
  return '{' .. table.concat(parts, ',') .. '}'
end

local function open_topic(who)
  local now = redis.call('HMGET', who, '#v', '#k')
  return {who = who, before = tonumber(now[1] or '0'), counting = now[2] == '1', joins = {}, leaves = {}}
end

local function remove(topic, agent)
  local value = redis.call('HGET', topic.who, agent)
  if value then
    redis.call('HDEL', topic.who, agent)
    table.insert(topic.leaves, {agent, string.match(value, '^%S+ (.*)$')})
  end
end

-- Return the agents of a session, except those of a table.
local function agents_of(who, session, kept)
  local prefix = session .. ' '
  local fields = redis.call('HGETALL', who)
  local found = {}
  for i = 1, #fields, 2 do
    if string.sub(fields[i + 1], 1, #prefix) == prefix and not kept[fields[i]] then
      found[#found + 1] = fields[i]
    end
  end
  return found
end

-- Store version and mode of a topic, and publish its change, if there is one.
local function settle(topic, name, session, limit, swept)
  local count = redis.call('HLEN', topic.who) - (topic.before > 0 and 1 or 0) - (topic.counting and 1 or 0)
  local over = false
  if limit ~= '' and count > 0 then
    local bound = tonumber(limit)
    over = count > (topic.counting and math.floor(bound * 9 / 10) or bound)
  end
  topic.count, topic.version, topic.over = count, topic.before, over
  if #topic.joins + #topic.leaves == 0 and over == topic.counting then
    return
  end
  topic.version = topic.before + 1
  if topic.before == 0 then
    local now = redis.call('TIME')
    topic.version = tonumber(now[1]) * 1000000 + tonumber(now[2])
  end
  if count == 0 then
    redis.call('DEL', topic.who)
  else
    redis.call('HSET', topic.who, '#v', text(topic.version))
    if over and not topic.counting then
      redis.call('HSET', topic.who, '#k', '1')
    elseif topic.counting and not over then
      redis.call('HDEL', topic.who, '#k')
    end
  end
  local listed = not over and not topic.counting
  redis.call('PUBLISH', FEED, '{"t":' .. cjson.encode(name) .. ',"s":' .. cjson.encode(session) ..
    ',"p":' .. text(topic.before) .. ',"v":' .. text(topic.version) .. ',"c":' .. text(count) ..
    ',"k":' .. (over and '1' or '0') .. ',"d":' .. (listed and '1' or '0') .. ',"x":' .. swept .. '}')
  if listed then
    redis.call('PUBLISH', 'to:' .. name .. ':presence_diff',
      '{"joins":' .. metas(topic.joins) .. ',"leaves":' .. metas(topic.leaves) .. '}')
  end
end

-- KEYS topic, sessions, the session
-- ARGV topic, session, node, nonce of the marker or '', limit or '', 1 if the joins are all members of the session,
-- 1 if it has no member now, number of joins; agent and id of each join; then the agents that leave
-- Return version, whether the number is shown, count, and with a marker all members.
local function who_flush(keys, args)
  local topic = open_topic(keys[1])
  local session, joining = args[2], tonumber(args[8])
  local kept = {}
  for at = 9, 8 + 2 * joining, 2 do
    kept[args[at]] = true
    if redis.call('HSET', keys[1], args[at], session .. ' ' .. args[at + 1]) == 1 then
      table.insert(topic.joins, {args[at], args[at + 1]})
    end
  end
  if args[6] == '1' then
    for _, agent in ipairs(agents_of(keys[1], session, kept)) do
      remove(topic, agent)
    end
  end
  for at = 9 + 2 * joining, #args do
    remove(topic, args[at])
  end
  settle(topic, args[1], session, args[5], '0')
  if args[7] == '1' then
    redis.call('SREM', keys[3], args[1])
  elseif joining > 0 then
    redis.call('HSET', keys[2], session, args[3])
    redis.call('SADD', keys[3], args[1])
  end
  local answer = {text(topic.version), topic.over and 1 or 0, topic.count}
  if args[4] ~= '' then
    redis.call('PUBLISH', FEED, '{"t":' .. cjson.encode(args[1]) .. ',"m":' .. cjson.encode(args[4]) .. '}')
    answer[4] = topic.over and {} or redis.call('HGETALL', keys[1])
  end
  return answer
end

-- KEYS topic; return all members
local function who_read(keys, args)
  return redis.call('HGETALL', keys[1])
end

-- KEYS topic; return its version
local function who_version(keys, args)
  return redis.call('HGET', keys[1], '#v') or '0'
end

-- KEYS topic, the session; ARGV topic, session, limit or '', members at once
-- Remove members of a session that has ended, and return whether some are left.
local function who_sweep(keys, args)
  local topic = open_topic(keys[1])
  local agents = agents_of(keys[1], args[2], {})
  local most = tonumber(args[4])
  for i = 1, math.min(#agents, most) do
    remove(topic, agents[i])
  end
  settle(topic, args[1], args[2], args[3], '1')
  if #agents > most then
    return 1
  end
  redis.call('SREM', keys[2], args[1])
  return 0
end

-- KEYS sessions; return all sessions
local function who_sessions(keys, args)
  return redis.call('HGETALL', keys[1])
end

-- KEYS sessions; ARGV session, node: note that the session has ended as planned
local function who_end(keys, args)
  if redis.call('HEXISTS', keys[1], args[1]) == 0 then
    return 0
  end
  redis.call('HSET', keys[1], args[1], args[2] .. ' ended')
  redis.call('PUBLISH', FEED, '{"e":' .. cjson.encode(args[1]) .. ',"n":' .. cjson.encode(args[2]) .. '}')
  return 1
end

-- KEYS sessions, the session, its lock, its node; ARGV session, sweeping node, ms of the lock, 1 if the node must be gone
-- Return 0 if the session need not be swept, 1 if another node sweeps it, else its topics.
local function who_claim(keys, args)
  if redis.call('HEXISTS', keys[1], args[1]) == 0 then
    return 0
  end
  if args[4] == '1' and redis.call('EXISTS', keys[4]) == 1 then
    return 0
  end
  if not redis.call('SET', keys[3], args[2], 'NX', 'PX', args[3]) then
    return 1
  end
  return redis.call('SMEMBERS', keys[2])
end

-- KEYS sessions, the session, its lock; ARGV session
-- Forget a session that was swept, unless it has members again because its node was not gone.
local function who_forget(keys, args)
  redis.call('DEL', keys[3])
  if redis.call('SCARD', keys[2]) > 0 then
    return 0
  end
  return redis.call('HDEL', keys[1], args[1])
end

redis.register_function('tangram_who_flush', who_flush)
redis.register_function('tangram_who_read', who_read)
redis.register_function('tangram_who_version', who_version)
redis.register_function('tangram_who_sweep', who_sweep)
redis.register_function('tangram_who_sessions', who_sessions)
redis.register_function('tangram_who_end', who_end)
redis.register_function('tangram_who_claim', who_claim)
redis.register_function('tangram_who_forget', who_forget)
