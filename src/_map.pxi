# SessionTable: 64 shards of (table, wheel, lock), chosen by the top bits of the id's hash. See _table.pxd for one shard.

cdef enum:
    SHARDS = 64
    SHARD_SHIFT = 58            # hash >> 58: the shard; low bits: the slot

cdef inline int key_from(Key *key, object session_id) except -1:
    """1: a key; 0: no stored id looks like this. TypeError if it is not a str at all."""
    if type(session_id) is not str:
        raise TypeError(f"a session id is a str, not {type(session_id).__name__}")
    key.len = PyUnicode_GET_LENGTH(session_id)
    if not PyUnicode_IS_COMPACT_ASCII(session_id) or not 0 < key.len <= ID_MAX:
        return 0
    key.id = <const char *>PyUnicode_1BYTE_DATA(session_id)
    key.hash = <uint64_t><size_t>text_hash(session_id)     # keyed SipHash: no crafted id meets another's slot
    return 1


cdef struct Map:                # a SessionTable's C side; whoever holds the table may use it without counting references
    Shard *shards
    int64_t ttl
    int64_t live                # nodes in all shards, dead but unswept included
    int64_t births
    int64_t max_sessions
    PyObject *clock             # borrowed from the SessionTable; NULL: the native clock
    PyObject *on_expire         # likewise; NULL: nobody is told
    PyObject *wake              # owned; called once, by the first `add` to come


@cython.final
cdef class SessionTable:
    """A concurrent map from session ids to records, with idle and absolute expiry to the nanosecond of its clock.

    `ttl`: idle time in seconds for calls that name none. `clock`: a callable that returns seconds; None reads the
    native monotonic clock. `on_expire(list of (id, record))` is called outside every lock for what the wheel took
    out. `max_sessions` (0: no limit) bounds the live sessions: beyond it `add` raises StorageFull.

    Every method may be called from any thread. Calls never block on I/O and never run user code under a lock.
    """
    cdef object __weakref__
    cdef Map map
    cdef void *memory           # what `map.shards` was aligned into
    cdef unsigned int next_shard
    cdef object clock
    cdef object on_expire       # every one there ever was: another thread may just be calling an old one

    def __cinit__(self, ttl=86400.0, *, clock=None, on_expire=None, max_sessions=0):
        cdef int i
        cdef int64_t now
        self.map.ttl = ns_of(ttl, "ttl")
        self.map.max_sessions = max_sessions
        self.map.births = 1                     # EMPTY's
        self._set_on_expire(on_expire)
        self.clock = clock
        self.map.clock = NULL if clock is None else <PyObject *>clock
        self.memory = calloc(1, SHARDS * sizeof(Shard) + 128)
        if self.memory == NULL:
            raise MemoryError()
        self.map.shards = <Shard *>((<size_t>self.memory + 127) & ~<size_t>127)     # no two shards share a cache line
        now = map_now(&self.map)
        for i in range(SHARDS):
            if shard_init(&self.map.shards[i], now) < 0:
                raise MemoryError()

    def __dealloc__(self):
        cdef int i
        cdef Node *dead = NULL
        if self.map.shards == NULL:
            return
        for i in range(SHARDS):
            if self.map.shards[i].slots != NULL:
                shard_clear_locked(&self.map.shards[i], &dead)
                free(self.map.shards[i].slots)
        free_nodes(dead)
        Py_CLEAR(self.map.wake)
        free(self.memory)

    # ---- one session -------------------------------------------------------------------------------------------

    def get(self, session_id):
        """The live record of this id, its idle time begun anew; None: there is none. A rotated id leads to the new one."""
        return map_load(&self.map, session_id, map_now(&self.map), self.map.ttl, True)

    def peek(self, session_id):
        """Like `get`, without touching."""
        return map_load(&self.map, session_id, map_now(&self.map), self.map.ttl, False)

    def load(self, session_id, int64_t ttl):
        """`get` with an idle time of the caller's, in ns."""
        return map_load(&self.map, session_id, map_now(&self.map), ttl, True)

    def is_current(self, session_id):
        """Whether a live session has this very id: not one that was rotated away and leads on. Touches nothing."""
        cdef Key key
        cdef PyObject *out = NULL
        cdef Node *dead = NULL
        cdef Outcome outcome
        if not key_from(&key, session_id):
            return False
        outcome = shard_get_locked(shard_of(&self.map, &key), &key, map_now(&self.map), 0, False, &out, &dead)
        if out != NULL:
            Py_DECREF(<object>out)
        return outcome == DONE

    def touch(self, session_id):
        """Begin the idle time anew. False: no such live session."""
        return map_load(&self.map, session_id, map_now(&self.map), self.map.ttl, True) is not None

    def add(self, session_id, Record record=None, ttl=None):
        """Store a new session. False: that id is live already, nothing changed."""
        return map_add(&self.map, session_id, record, map_now(&self.map), self._ttl_or(ttl), False)

    def put(self, session_id, Record record=None, ttl=None):
        """Store a session, replacing a live one of that id."""
        map_add(&self.map, session_id, record, map_now(&self.map), self._ttl_or(ttl), True)

    def replace(self, session_id, Record expected not None, Record record not None, ttl=None):
        """Swap `expected` for `record`; False: the session is gone or holds another record by now."""
        cdef PyObject *out = NULL
        cdef int outcome = map_swap(&self.map, session_id, expected, record, map_now(&self.map),
                                          self._ttl_or(ttl), &out)
        if out != NULL:
            Py_DECREF(<object>out)
        return outcome == DONE

    def commit(self, session_id, Record base not None, Delta delta not None, int64_t ttl):
        """Apply `delta` onto what is stored now, if that is still the session `base` is a state of.

        The record stored, or None if it was emptied and so removed. `ttl` in ns. Raises SessionGone.
        """
        return map_merge(&self.map, session_id, base, None, delta, map_now(&self.map), ttl)

    def pop(self, session_id):
        """Remove a session. True: it was live. Final: no later commit brings it back."""
        return map_delete(&self.map, session_id, map_now(&self.map))

    def rename(self, old_id, new_id, grace=0.0, birth=0, ttl=None):
        """Move a session to a fresh id, which the old one follows for `grace` seconds; the record moved, or None.

        `birth`, if given, must be the record's: another one under the same id stays where it is.
        """
        cdef Record record = map_load(&self.map, old_id, map_now(&self.map), self.map.ttl, False)
        if record is None or (birth and birth != record._birth):
            return None
        return map_rename(&self.map, old_id, new_id, record, map_now(&self.map), self._ttl_or(ttl),
                          ns_of_or_zero(grace, "grace"))

    def __contains__(self, session_id):
        return map_load(&self.map, session_id, map_now(&self.map), self.map.ttl, False) is not None

    def _ttl_or(self, ttl):
        return self.map.ttl if ttl is None else ns_of(ttl, "ttl")

    # ---- all sessions ------------------------------------------------------------------------------------------

    def __len__(self):
        """Stored sessions: live ones, and expired ones that the wheel has not reached yet."""
        return counter_read(&self.map.live)

    def expire(self, budget=256):
        """One slice of sweeping: look at no more than `budget` due sessions. Returns (removed, whether more are due)."""
        cdef int left = min(<int64_t>budget, 1 << 30), share, i
        cdef int64_t now = map_now(&self.map), removed = 0
        cdef bint more = False
        cdef Node *dead
        for i in range(SHARDS):
            while True:
                share = min(left, 32)               # one lock hold: about 3 us
                dead = NULL
                left -= share
                more = shard_expire_locked(&self.map.shards[(self.next_shard + i) % SHARDS], now, &share, &dead)
                left += share
                removed += bury(&self.map, dead)
                if not more or left <= 0:
                    break
            if left <= 0:
                self.next_shard = (self.next_shard + i) % SHARDS
                return removed, more or i < SHARDS - 1
        return removed, False

    def next_due(self):
        """Seconds until the wheel has something to look at (0.0: now); None: it is empty."""
        cdef int64_t now = map_now(&self.map), best = -1, tick
        cdef int i
        for i in range(SHARDS):
            tick = shard_next_tick_locked(&self.map.shards[i])
            if tick >= 0 and (best < 0 or tick < best):
                best = tick
        return None if best < 0 else max(0.0, ((best << TICK_BITS) - now) / 1e9)

    def snapshot(self, shard):
        """(id, record or None) of the live sessions of one shard (0 to 63), as they are at this moment."""
        return shard_snapshot(&self.map, &self.map.shards[<unsigned int>shard % SHARDS])

    def clear(self):
        """Remove every session."""
        cdef int i
        cdef Node *dead
        for i in range(SHARDS):
            dead = NULL
            shard_clear_locked(&self.map.shards[i], &dead)
            counter_add(&self.map.live, -free_nodes(dead))

    def stats(self):
        """Counts since creation, as a dict: live created expired destroyed hits misses resizes refiled largest_slice."""
        cdef Counters c, sum
        cdef int i
        memset(&sum, 0, sizeof(sum))
        for i in range(SHARDS):
            c = shard_counters_locked(&self.map.shards[i])
            sum.created += c.created
            sum.expired += c.expired
            sum.destroyed += c.destroyed
            sum.hits += c.hits
            sum.misses += c.misses
            sum.resizes += c.resizes
            sum.refiled += c.refiled
            sum.largest_slice = max(sum.largest_slice, c.largest_slice)
        return {"live": counter_read(&self.map.live), **sum}

    def now_ns(self):
        """The table's clock, in ns."""
        return map_now(&self.map)

    def _wake_on_add(self, wake):
        """Call `wake()` once, when the next session is added: there is something to expire from then on."""
        replace_ref(&self.map.wake, wake)

    def _set_on_expire(self, on_expire):
        self.on_expire = (self.on_expire, on_expire)
        self.map.on_expire = NULL if on_expire is None else <PyObject *>on_expire

    def _set_clock(self, clock):
        """Before the first session: deadlines of another clock mean nothing."""
        cdef int i
        if counter_read(&self.map.live):
            raise errors.StorageMisconfigured("the clock of a storage can only be set while it is empty")
        self.clock = clock
        self.map.clock = NULL if clock is None else <PyObject *>clock
        for i in range(SHARDS):
            wheel_init(&self.map.shards[i].wheel, map_now(&self.map))

    def _after_fork_child(self):
        """A thread that waited for a shard when the process forked does not exist in the child: renew the locks."""
        cdef int i
        for i in range(SHARDS):
            shard_lock_init(&self.map.shards[i].lock)

    def _check(self):
        """Walk everything and raise AssertionError where an invariant of _table.pxd or _wheel.pxd is broken. For tests."""
        cdef int i
        cdef int64_t nodes = 0
        cdef const char *broken
        for i in range(SHARDS):
            broken = shard_check(&self.map.shards[i])
            assert broken == NULL, broken.decode()
            nodes += shard_sessions(&self.map.shards[i])
        assert nodes == counter_read(&self.map.live), f"live says {counter_read(&self.map.live)}, the shards hold {nodes}"


# ---- the C side of SessionTable, called by Session too ---------------------------------------------------------------

cdef int64_t clock_read(object clock) except -1:
    """A user's clock, in ns. Never negative: -1 is the error value, and no wheel turns backwards from zero."""
    cdef double seconds = clock()
    if seconds != seconds or seconds > 9.2e9:
        raise ValueError("the clock returned a time that is not a number of seconds below 292 years")
    return <int64_t>(seconds * 1e9) if seconds > 0 else 0


cdef void replace_ref(PyObject **place, object value) noexcept:
    """Own `value` (None: nothing) in place of what is owned there."""
    cdef PyObject *old = place[0]
    place[0] = NULL if value is None else <PyObject *>value
    Py_XINCREF(place[0])
    Py_XDECREF(old)


cdef inline int64_t map_now(Map *m) except -1:
    return clock_now() if m.clock == NULL else clock_read(<object>m.clock)


cdef inline PyObject *held_for(Record record) noexcept:
    """What a node holds for a record: nothing while the session has no data."""
    return NULL if record is None or record is EMPTY else <PyObject *>record


cdef inline Shard *shard_of(Map *m, const Key *key) noexcept:
    return &m.shards[key.hash >> SHARD_SHIFT]


cdef int64_t free_nodes(Node *dead) noexcept:
    """Free a list of unlinked nodes and drop what they held; how many were sessions. Outside every lock: it may run anything."""
    cdef int64_t n = 0
    cdef Node *next
    while dead != NULL:
        next = <Node *>dead.timer.next
        n += dead.kind == HOLDS_RECORD
        if dead.held != NULL:
            Py_DECREF(<object>dead.held)
        PyMem_Free(dead)
        dead = next
    return n


cdef int64_t bury(Map *m, Node *dead) noexcept:
    """Account for nodes that left, tell `on_expire`, free them. Returns how many."""
    cdef int64_t n
    if dead == NULL:
        return 0
    if m.on_expire != NULL:
        announce(m, dead)
    n = free_nodes(dead)
    counter_add(&m.live, -n)
    return n


cdef void announce(Map *m, Node *dead) noexcept:
    """What `on_expire` raises goes to sys.unraisablehook, as from every function that cannot raise."""
    cdef Node *n = dead
    gone = []
    while n != NULL:
        if n.kind == HOLDS_RECORD:
            gone.append((n.id[:n.id_len].decode("ascii"), <object>n.held if n.held != NULL else None))
        n = <Node *>n.timer.next
    if gone:
        (<object>m.on_expire)(gone)


cdef inline Record record_from(PyObject *held):
    """What a node held, its reference taken over."""
    return EMPTY if held == NULL else <Record>steal(held)


cdef Record map_load(Map *m, object session_id, int64_t now, int64_t ttl, bint touch):
    """The live record of an id, or None. A rotated id leads to the new one while its grace window lasts."""
    cdef Key key
    cdef PyObject *out = NULL
    cdef Node *dead = NULL
    cdef Outcome outcome
    if not key_from(&key, session_id):
        return None
    outcome = shard_get_locked(shard_of(m, &key), &key, now, ttl, touch, &out, &dead)
    if dead != NULL:
        bury(m, dead)
    if outcome == DONE:
        return record_from(out)
    if outcome == MISSING:
        return None
    return map_follow(m, steal(out), now, ttl, touch)


cdef Record map_follow(Map *m, object name, int64_t now, int64_t ttl, bint touch):
    """`map_load` of an id that was rotated: over as many signs as there were rotations within one grace window."""
    cdef Key key
    cdef PyObject *out = NULL
    cdef Node *dead
    cdef Outcome outcome = RENAMED
    while outcome == RENAMED:
        dead = NULL
        key_from(&key, name)
        outcome = shard_get_locked(shard_of(m, &key), &key, now, ttl, touch, &out, &dead)
        if dead != NULL:
            bury(m, dead)
        if outcome == RENAMED:
            name, out = steal(out), NULL
    return record_from(out) if outcome == DONE else None


cdef bint map_add(Map *m, object session_id, Record record, int64_t now, int64_t ttl, bint replace,
                  bint bounded=True) except -1:
    """Publish a session. False: the id is live and `replace` is false. Raises StorageFull, ValueError, MemoryError."""
    cdef Key key
    cdef Node *fresh
    cdef Node *dead = NULL
    cdef Outcome outcome
    cdef PyObject *held
    cdef PyObject *wake
    if not key_from(&key, session_id):
        raise ValueError(f"a session id has 1 to {ID_MAX} ASCII characters")
    if bounded and m.max_sessions > 0 and counter_read(&m.live) >= m.max_sessions:
        make_room(m)
    held = held_for(record)
    fresh = node_new(&key, held, HOLDS_RECORD)
    if fresh == NULL:
        raise MemoryError()
    Py_XINCREF(held)
    outcome = shard_add_locked(shard_of(m, &key), fresh, &key, now, ttl, replace, &dead)
    if outcome == DONE:
        counter_add(&m.live, 1)
    else:
        fresh.timer.next = NULL
        free_nodes(fresh)
    bury(m, dead)
    if outcome == NO_MEMORY:
        raise MemoryError()
    if m.wake != NULL:
        wake = take_pointer(&m.wake)
        if wake != NULL:
            steal(wake)()
    return outcome == DONE


cdef int make_room(Map *m) except -1:
    """Sweep what has expired; StorageFull if the limit is still reached."""
    cdef int i, budget
    cdef int64_t now = map_now(m)
    cdef Node *dead
    for i in range(SHARDS):
        budget = 1 << 30
        dead = NULL
        shard_expire_locked(&m.shards[i], now, &budget, &dead)
        bury(m, dead)
    if counter_read(&m.live) >= m.max_sessions:
        raise errors.StorageFull(
            f"the storage holds its limit of {m.max_sessions} sessions and none has expired; raise max_sessions")
    return 0


cdef int map_swap(Map *m, object session_id, Record expected, Record fresh, int64_t now, int64_t ttl,
                        PyObject **out) except -1:
    """Commit: replace `expected` by `fresh`; otherwise see shard_swap_locked."""
    cdef Key key
    cdef Outcome outcome
    if not key_from(&key, session_id):
        return MISSING
    Py_INCREF(fresh)
    outcome = shard_swap_locked(shard_of(m, &key), &key, held_for(expected), <PyObject *>fresh, now, ttl, out)
    if outcome == DONE:
        Py_XDECREF(held_for(expected))  # the shard's reference moved out
    else:
        Py_DECREF(fresh)
    return outcome


cdef int map_remove(Map *m, object session_id, Record expected, int64_t now, PyObject **out) except -1:
    """Remove an id while it holds `expected`; otherwise see shard_remove_locked."""
    cdef Key key
    cdef Node *dead = NULL
    cdef Outcome outcome
    if not key_from(&key, session_id):
        return MISSING
    outcome = shard_remove_locked(shard_of(m, &key), &key, held_for(expected), now, out, &dead)
    counter_add(&m.live, -free_nodes(dead))
    return outcome


cdef bint map_delete(Map *m, object session_id, int64_t now) except -1:
    """Remove an id whatever it holds, and the record it was rotated to. True: there was a record."""
    cdef PyObject *out = NULL
    cdef int outcome = map_remove(m, session_id, None, now, &out)
    while outcome == RENAMED:
        name, out = steal(out), NULL
        outcome = map_remove(m, name, None, now, &out)
    return outcome == DONE


cdef Record map_rename(Map *m, object old_id, object new_id, Record record, int64_t now, int64_t ttl,
                         int64_t grace):
    """Move `record`, or what was committed onto it since, to `new_id`. None: the old id is gone.

    The new id is published first and nobody knows it yet, so at every moment one of the two answers. If a commit
    lands on the old id meanwhile, its record is carried over and the step is tried again.
    """
    cdef Key old_key
    cdef PyObject *out
    cdef int outcome
    cdef Record current = record, newer
    cdef uint64_t birth = record._birth
    old_id = map_resolve(m, old_id, now)
    if not key_from(&old_key, old_id):
        return None
    if not map_add(m, new_id, current, now, ttl, False, bounded=False):      # the count stays as it is
        raise ValueError("the new session id is in use already")
    while True:
        out = NULL
        outcome = map_leave(m, &old_key, current, new_id, now, grace, &out)
        if outcome == DONE:
            return current
        newer = record_from(out) if outcome == CHANGED else None
        if newer is None or newer._birth != birth:      # destroyed, reborn, or rotated by somebody else
            if outcome == RENAMED:
                Py_XDECREF(out)
            map_delete(m, new_id, now)
            return None
        out = NULL
        map_swap(m, new_id, current, newer, now, ttl, &out)
        Py_XDECREF(out)
        current = newer


cdef object map_resolve(Map *m, object session_id, int64_t now):
    """The id that a rotated one leads to, else the id itself."""
    cdef Key key
    cdef PyObject *out = NULL
    cdef Node *dead = NULL
    name = session_id
    while key_from(&key, name) and shard_get_locked(shard_of(m, &key), &key, now, 0, False, &out, &dead) == RENAMED:
        name, out = steal(out), NULL
    Py_XDECREF(out)
    return name


cdef int map_leave(Map *m, const Key *key, Record expected, object new_id, int64_t now, int64_t grace,
                         PyObject **out) except -1:
    """End an old id that holds `expected`: at once, or as a sign to `new_id` for `grace` ns."""
    cdef Node *dead = NULL
    cdef Outcome outcome
    if grace <= 0:
        outcome = shard_remove_locked(shard_of(m, key), key, held_for(expected), now, out, &dead)
        counter_add(&m.live, -free_nodes(dead))
        return outcome
    Py_INCREF(new_id)
    outcome = shard_rename_locked(shard_of(m, key), key, held_for(expected), <PyObject *>new_id, now, grace, out)
    if outcome == DONE:
        counter_add(&m.live, -1)        # it is a sign now, not a session
        Py_XDECREF(held_for(expected))  # the node's reference moved out
    else:
        Py_DECREF(new_id)
    return outcome


cdef object shard_snapshot(Map *m, Shard *s):
    """Copy ids and take references under the lock into raw memory, build the Python objects after it."""
    cdef int64_t now = map_now(m)
    cdef SnapshotRow *rows = NULL
    cdef Py_ssize_t n = shard_copy_locked(s, now, &rows), i
    if n < 0:
        raise MemoryError()
    try:
        return [(rows[i].id[:rows[i].id_len].decode("ascii"),
                 <object>rows[i].held if rows[i].held != NULL else None) for i in range(n)]
    finally:
        for i in range(n):
            Py_XDECREF(rows[i].held)
        free(rows)
