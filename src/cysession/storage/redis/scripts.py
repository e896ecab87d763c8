"""What has to happen in one step on the server: Lua scripts of one key each, so they run on any node of a cluster.

A script that writes sets the time to live in the same step, so no key is ever without one, whoever is killed when.
None writes before it has made sure that it may; whatever is not ours to write answers instead of raising.
Offsets are those of records.py and hash.py, counted from 0 in GETRANGE and from 1 in string.sub.
"""

from .wire import Script

__all__ = [
    "FORGET",
    "HASH_CREATE",
    "HASH_REMOVE",
    "HASH_SWAP",
    "HASH_TOUCH",
    "NOTE",
    "REMOVE",
    "SWAP",
    "TOUCH",
]

# ---- one string a session (records.py) -----------------------------------------------------------------

# session, what was read from its token on or the SHA-1 of it, the new string or "" to delete, ms to live
SWAP = Script("""\
local stored = redis.call('GETRANGE', KEYS[1], 8, -1)
if stored == ARGV[1] or (#ARGV[1] == 40 and redis.sha1hex(stored) == ARGV[1]) then
  if ARGV[2] == '' then
    redis.call('DEL', KEYS[1])
  else
    redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
  end
  return 1
end
if stored == '' then return 0 end
return redis.call('GET', KEYS[1])
""")

# session, its flags, birth, created and cap (and own ttl), ms to live, and its last use if a clock decides
TOUCH = Script("""\
if string.sub(redis.call('GETRANGE', KEYS[1], 45, 79), 1, #ARGV[1]) ~= ARGV[1] then return 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
if ARGV[3] then redis.call('SETRANGE', KEYS[1], 0, ARGV[3]) end
return 1
""")

# session, its birth or "", "1" to remove an alias too
REMOVE = Script("""\
local head = redis.call('GETRANGE', KEYS[1], 0, 87)
if head == '' or (ARGV[1] ~= '' and string.sub(head, 49, 56) ~= ARGV[1]) then return 0 end
if string.byte(head, 46) == 2 and ARGV[2] == '' then return redis.call('GET', KEYS[1]) end
redis.call('DEL', KEYS[1])
return head
""")

# ---- one hash a session (hash.py) ----------------------------------------------------------------------

# session, ms to live, the field with its head, then fields and values
HASH_CREATE = Script("""\
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('HSET', KEYS[1], '', ARGV[2])
for n = 3, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[n], ARGV[n + 1]) end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 1
""")

# session, its head as it was read from the token on, ms to live, its new head or "" to delete, "1" to replace all,
# how many fields to remove, these, then fields and values
HASH_SWAP = Script("""\
local head = redis.call('HGET', KEYS[1], '')
if not head then return 0 end
if string.sub(head, 9) ~= ARGV[1] then return redis.call('HGETALL', KEYS[1]) end
if ARGV[3] == '' then
  redis.call('DEL', KEYS[1])
  return 1
end
if ARGV[4] == '1' then redis.call('DEL', KEYS[1]) end
local first = 6 + tonumber(ARGV[5])
for n = 6, first - 1 do redis.call('HDEL', KEYS[1], ARGV[n]) end
redis.call('HSET', KEYS[1], '', ARGV[3])
for n = first, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[n], ARGV[n + 1]) end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
""")

# as TOUCH
HASH_TOUCH = Script("""\
local head = redis.call('HGET', KEYS[1], '')
if not head or string.sub(head, 46, 45 + #ARGV[1]) ~= ARGV[1] then return 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
if ARGV[3] then redis.call('HSET', KEYS[1], '', ARGV[3] .. string.sub(head, 9)) end
return 1
""")

# as REMOVE; what has no head is no session and goes too
HASH_REMOVE = Script("""\
local head = redis.call('HGET', KEYS[1], '')
if not head then
  redis.call('DEL', KEYS[1])
  return 0
end
if ARGV[1] ~= '' and string.sub(head, 49, 56) ~= ARGV[1] then return 0 end
if string.byte(head, 46) ~= 2 or ARGV[2] ~= '' then redis.call('DEL', KEYS[1]) end
return {'', head}
""")

# ---- the sessions of a user (users.py) -----------------------------------------------------------------

# index, the time in s, a session's key, ms that the index has to live at least
NOTE = Script("""\
redis.call('ZADD', KEYS[1], ARGV[1], ARGV[2])
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[3]) then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
return redis.call('ZRANGE', KEYS[1], 0, 3, 'WITHSCORES')
""")

# index, then a session's key and the time it was noted, if that is still the last one
FORGET = Script("""\
for n = 1, #ARGV, 2 do
  if redis.call('ZSCORE', KEYS[1], ARGV[n]) == ARGV[n + 1] then redis.call('ZREM', KEYS[1], ARGV[n]) end
end
return 1
""")
