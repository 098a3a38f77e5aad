-- One atomic change of Nova's records: every precondition is checked before anything is written.
--
-- ARGV[1]: a JSON list of operations, carried out in order.  Answer: {'ok', taken item, ...} with what the `take`
-- operations took, in their order, or {'error', kind, key or name} with nothing changed.
--
--   create  key id fields indexes set [ttl]    the record must not exist
--   update  key id version fields drop indexes [ttl]   the record must have this version
--   delete  key id version indexes set         the same
--   expect  key version                        the same, and nothing is changed
--   require_exists / require_missing  key
--   require_empty  key                         a sorted set, set or list without members
--   take    pool owners owner name             moves the first item of the list `pool` to the hash `owners`
--   give    pool owners owner item             gives it back, if this owner has it
--   fill    pool items                         puts free items into the list `pool`
--   drop    keys                               removes them
--   add     key field by [max] name            a counter of a hash, kept within 0..max
--   zadd / zrem  key member                    a sorted set in byte order
--   xadd    key maxlen fields                  an entry of a stream
--
-- A field's value may be {take = N}: the item that the N-th take operation took.
-- indexes: a list of [field, prefix, 'one' or 'many']: the set prefix..value of the field holds the ids of the records
-- that have it; with 'many' the field is a list in JSON, and each of its members is such a value.

local operations = cjson.decode(ARGV[1])
local taken, pending_takes, pending_adds, seen = {}, {}, {}, {}

local function fail(kind, name) return {'error', kind, name} end

for _, op in ipairs(operations) do
  local kind = op.op
  if kind == 'create' or kind == 'require_missing' then
    if seen[op.key] or redis.call('EXISTS', op.key) == 1 then return fail('exists', op.key) end
    if kind == 'create' then seen[op.key] = true end
  elseif kind == 'update' or kind == 'delete' or kind == 'expect' then
    local version = redis.call('HGET', op.key, 'version')
    if not version then return fail('missing', op.key) end
    if version ~= op.version then return fail('conflict', op.key) end
  elseif kind == 'require_exists' then
    if redis.call('EXISTS', op.key) == 0 then return fail('missing', op.key) end
  elseif kind == 'require_empty' then
    if redis.call('EXISTS', op.key) == 1 then return fail('notempty', op.key) end
  elseif kind == 'take' then
    local item = redis.call('LINDEX', op.pool, pending_takes[op.pool] or 0)
    if not item then return fail('exhausted', op.name) end
    pending_takes[op.pool] = (pending_takes[op.pool] or 0) + 1
    taken[#taken + 1] = item
  elseif kind == 'add' and op.max then
    local counter = op.key .. '\0' .. op.field
    local now = pending_adds[counter] or tonumber(redis.call('HGET', op.key, op.field) or '0')
    if now + op.by > op.max then return fail('exhausted', op.name) end
    pending_adds[counter] = now + op.by
  end
end

local function value(v)
  if type(v) == 'table' then return taken[v.take] end
  return v
end

local function sets(index, v)
  if not v or v == '' then return {} end
  if index[3] == 'one' then return {index[2] .. v} end
  local keys = {}
  for n, member in ipairs(cjson.decode(v)) do keys[n] = index[2] .. member end
  return keys
end

local function unindex(op, fields)
  for _, index in ipairs(op.indexes) do
    if not fields or fields[index[1]] then
      for _, key in ipairs(sets(index, redis.call('HGET', op.key, index[1]))) do redis.call('SREM', key, op.id) end
    end
  end
end

local function write(op)
  local flat = {}
  for field, v in pairs(op.fields) do
    flat[#flat + 1] = field
    flat[#flat + 1] = value(v)
  end
  if #flat > 0 then redis.call('HSET', op.key, unpack(flat)) end
  for _, index in ipairs(op.indexes) do
    if op.fields[index[1]] then
      for _, key in ipairs(sets(index, value(op.fields[index[1]]))) do redis.call('SADD', key, op.id) end
    end
  end
  if op.ttl then redis.call('EXPIRE', op.key, op.ttl) end
end

for _, op in ipairs(operations) do
  local kind = op.op
  if kind == 'create' then
    write(op)
    if op.set then redis.call('SADD', op.set, op.id) end
  elseif kind == 'update' then
    local touched = {}
    for field, _ in pairs(op.fields) do touched[field] = true end
    for _, field in ipairs(op.drop) do touched[field] = true end
    unindex(op, touched)
    if #op.drop > 0 then redis.call('HDEL', op.key, unpack(op.drop)) end
    write(op)
  elseif kind == 'delete' then
    unindex(op)
    redis.call('DEL', op.key)
    if op.set then redis.call('SREM', op.set, op.id) end
  elseif kind == 'take' then
    redis.call('HSET', op.owners, redis.call('LPOP', op.pool), op.owner)
  elseif kind == 'give' then
    if redis.call('HGET', op.owners, op.item) == op.owner then
      redis.call('HDEL', op.owners, op.item)
      redis.call('RPUSH', op.pool, op.item)
    end
  elseif kind == 'fill' then
    for _, item in ipairs(op.items) do redis.call('RPUSH', op.pool, item) end
  elseif kind == 'drop' then
    redis.call('DEL', unpack(op.keys))
  elseif kind == 'add' then
    if redis.call('HINCRBY', op.key, op.field, op.by) < 0 then redis.call('HSET', op.key, op.field, '0') end
  elseif kind == 'zadd' then
    redis.call('ZADD', op.key, 0, op.member)
  elseif kind == 'zrem' then
    redis.call('ZREM', op.key, op.member)
  elseif kind == 'xadd' then
    local flat = {}
    for field, v in pairs(op.fields) do
      flat[#flat + 1] = field
      flat[#flat + 1] = value(v)
    end
    redis.call('XADD', op.key, 'MAXLEN', '~', op.maxlen, '*', unpack(flat))
  end
end
return {'ok', unpack(taken)}
