# Session: one request's view of one session. Its methods, how it starts, and what reads and writes of its data do.
#
# A session is a snapshot, `base`, and a vector of changes (_changes.pxi) that a commit (_commit.pxi) lays over whatever
# is stored by then. Finalizers of the user's values may run wherever a reference is dropped and may use the session: so
# everything is detached before it is dropped, and what a step needs of the session is read before the first such place.

cdef enum State:
    HANDLE = 0                  # nothing was read yet
    OPEN = 1
    CLOSED = 2

cdef enum ChangeKind:
    WRITTEN = 0
    TAKEN_AWAY = 1
    LENT = 2                    # a container handed out by a read: changed in place, or not, by the time of the commit

cdef struct Change:
    PyObject *key               # owned
    PyObject *value             # owned; NULL for TAKEN_AWAY
    PyObject *origin            # LENT: what the container was copied from, owned
    ChangeKind kind

cdef enum:
    CHANGES_INLINE = 2

cdef struct Taken:              # see changes_take
    Change *changes
    Py_ssize_t count
    Change few[CHANGES_INLINE]


@cython.final
@cython.freelist(64)
cdef class Session:
    """One request's view of one session: the data committed when it started, plus its own changes.

    A handle from `manager.new()` costs nothing until the first access, which starts it with one read. `save()` and
    `close()` commit the changed keys onto what is stored by then. As a context manager it closes on a clean exit
    and discards its changes on an exception. It is a MutableMapping of str to the supported types (docs/semantics).
    """
    cdef object __weakref__
    cdef Policy policy
    cdef readonly object presented      # what the client sent, unchecked, or None
    cdef object name            # the id this session answers to by now, or None
    cdef object id_func
    cdef Record base            # what is stored as far as this session knows; None: nothing
    cdef Change *changes
    cdef Change few[CHANGES_INLINE]
    cdef Py_ssize_t count
    cdef Py_ssize_t room
    cdef uint64_t edits         # grows with every change: a save tells by it what came in while it was under way
    cdef uint64_t cleared_at    # the edit that was the last remove_all
    cdef object saving          # the lock of saves that do I/O, made by the first
    cdef object asaving         # the same for awaited ones
    cdef unsigned int saving_forks      # how often this process had been forked off when `saving` was made
    cdef int64_t touched        # when the idle time was last begun anew
    cdef int64_t new_ttl        # ns; -1: unchanged
    cdef State state
    cdef bint looked            # something was read: the response depends on the session
    cdef bint cleared
    cdef bint own_name          # the server chose the id
    cdef bint ended             # this handle destroyed or emptied what it had
    cdef bint binds             # the next commit notes the session for its user

    def __cinit__(self):
        self.changes = self.few
        self.room = CHANGES_INLINE
        self.new_ttl = -1

    # ---- identity ----------------------------------------------------------------------------------------------

    @property
    @cython.critical_section
    def id(self):
        """The session's id. A new session draws one here; nothing is stored by that."""
        session_read(self)
        if self.name is None:
            session_draw_name(self)
        return self.name

    @cython.critical_section
    def set_id(self, session_id, /):
        """Choose the id on the server's behalf, before the session starts (GoFrame's SetId)."""
        if self.state != HANDLE:
            raise started_already()
        if not well_formed(session_id):
            raise ValueError("a session id has 1 to 128 characters of A-Z a-z 0-9 _ -")
        self.name = session_id
        self.own_name = True

    @cython.critical_section
    def set_id_func(self, func, /):
        """Let `func() -> str` draw this session's fresh ids, before the session starts (GoFrame's SetIdFunc)."""
        if self.state != HANDLE:
            raise started_already()
        if not callable(func):
            raise TypeError("set_id_func() needs a callable that returns a str")
        self.id_func = func

    @property
    @cython.critical_section
    def is_new(self):
        """Whether no record stood behind this session when it was last loaded or saved."""
        session_read(self)
        return self.base is None

    @property
    @cython.critical_section
    def created_at(self):
        """When the session was first stored, in seconds since the epoch; None for a new one."""
        session_read(self)
        return None if self.base is None else session_wall(self, self.base._created)

    @property
    @cython.critical_section
    def expires_at(self):
        """When it ends if it is not used again, in seconds since the epoch; None for a new one."""
        session_read(self)
        if self.base is None:
            return None
        return session_wall(self, min(self.touched + session_ttl(self), self.base._cap))

    @property
    @cython.critical_section
    def handle(self):
        """What to call this session in public, for life: see `Manager.sessions_of`. None for a new one."""
        session_read(self)
        return None if self.base is None else record_handle(self.base)

    @property
    @cython.critical_section
    def user(self):
        """The user this session is bound to, or None."""
        return session_get(self, USER_KEY, None)

    @cython.critical_section
    def bind(self, user):
        """Note whose session this is (a str; None: nobody's), so that `Manager.revoke(user)` finds it. Call it at login.

        The user stands in the session's data, under "_bound_user"; the next commit notes the session in the user's
        index first. `remove_all()` unbinds too.
        """
        if user is None:
            session_write(self)
            session_remove(self, USER_KEY)
            return
        if type(user) is not str or not user:
            raise TypeError("bind() takes the user as a str that is not empty, such as str(user.id), or None")
        session_set(self, USER_KEY, user)
        self.binds = True

    @property
    @cython.critical_section
    def ttl(self):
        """Idle time in seconds: the manager's, or this session's own if it was set (stored at the next commit)."""
        session_read(self)
        return session_ttl(self) / 1e9

    @ttl.setter
    @cython.critical_section
    def ttl(self, seconds):
        session_write(self)
        self.new_ttl = ns_of(seconds, "ttl")

    # ---- reading -----------------------------------------------------------------------------------------------

    @cython.critical_section
    def get(self, key, default=None):
        """The value of `key`, or `default`. A list, dict or set belongs to the session: changes to it are committed."""
        return session_get(self, key, default)

    @cython.critical_section
    def __getitem__(self, key):
        cdef bint found = False
        value = session_find(self, key, &found)
        if not found:
            raise KeyError(key)
        return value

    @cython.critical_section
    def contains(self, key, /):
        """Whether `key` is set (GoFrame's Contains)."""
        session_read(self)
        return session_has(self, key)

    @cython.critical_section
    def __contains__(self, key):
        session_read(self)
        return session_has(self, key)

    @cython.critical_section
    def size(self):
        """Number of keys (GoFrame's Size)."""
        session_read(self)
        return session_size(self)

    @cython.critical_section
    def __len__(self):
        session_read(self)
        return session_size(self)

    @cython.critical_section
    def __iter__(self):
        session_read(self)
        return iter(session_keys(self))

    @cython.critical_section
    def keys(self):
        """The keys, in the order they were first set."""
        session_read(self)
        return session_keys(self)

    @cython.critical_section
    def values(self):
        return [value for _, value in session_items(self)]

    @cython.critical_section
    def items(self):
        return session_items(self)

    @cython.critical_section
    def get_map(self):
        """The session's data as a dict (GoFrame's Data)."""
        return dict(session_items(self))

    def copy(self):
        """The same, as a dict calls it: a dict of its own, with the session's own lists and dicts in it."""
        return self.get_map()

    def __eq__(self, other):
        if other is self:
            return True
        if not isinstance(other, Mapping):
            return NotImplemented
        return self.get_map() == dict(other.items())

    __hash__ = None

    # ---- writing -----------------------------------------------------------------------------------------------

    @cython.critical_section
    def set(self, key, value):
        """Set one key. Nobody sees it before the commit. NotSerializable for a value of an unsupported type."""
        session_set(self, key, value)

    @cython.critical_section
    def __setitem__(self, key, value):
        session_set(self, key, value)

    @cython.critical_section
    def set_map(self, mapping, /):
        """Set every key of a mapping (GoFrame's SetMap)."""
        for key, value in dict(mapping).items():
            session_set(self, key, value)

    def update(self, mapping=(), /, **more):
        self.set_map(dict(mapping, **more))

    def __ior__(self, other):
        self.update(other)
        return self

    @cython.critical_section
    def setdefault(self, key, default=None, /):
        cdef bint found = False
        value = session_find(self, key, &found)
        if found:
            return value
        session_set(self, key, default)
        return default

    @cython.critical_section
    def remove(self, *keys):
        """Remove keys; those that are not set are ignored (GoFrame's Remove)."""
        session_write(self)
        for key in keys:
            session_remove(self, key)

    @cython.critical_section
    def __delitem__(self, key):
        session_write(self)
        if not session_has(self, key):
            raise KeyError(key)
        session_remove(self, key)

    @cython.critical_section
    def pop(self, key, /, *default):
        """Remove a key and return its value; without a default a missing key is a KeyError."""
        cdef bint found = False
        if len(default) > 1:
            raise TypeError(f"pop expected at most 2 arguments, got {1 + len(default)}")
        session_write(self)
        value = session_find(self, key, &found)
        if found:
            session_remove(self, key)
            return value
        if not default:
            raise KeyError(key)
        return default[0]

    @cython.critical_section
    def popitem(self):
        """Remove and return the (key, value) set last."""
        session_write(self)
        keys = session_keys(self)
        if not keys:
            raise KeyError("popitem(): the session is empty")
        key = keys[len(keys) - 1]
        value = session_get(self, key, None)
        session_remove(self, key)
        return key, value

    @cython.critical_section
    def remove_all(self):
        """Remove every key, also those that others commit meanwhile (GoFrame's RemoveAll). The commit deletes the record."""
        session_write(self)
        changes_clear(self)
        self.cleared = True
        self.edits += 1
        self.cleared_at = self.edits

    def clear(self):
        self.remove_all()

    # ---- commit ------------------------------------------------------------------------------------------------

    @property
    @cython.critical_section
    def is_dirty(self):
        """Whether a commit would write something."""
        return self.state == OPEN and session_is_dirty(self)

    @cython.critical_section
    def load(self):
        """Start the session now instead of at the first access, which this does not count as."""
        session_start(self)

    @cython.critical_section
    def save(self):
        """Commit the changes and go on: one write if something changed, else only a touch.

        Raises SessionGone when the record was destroyed, revoked or has expired meanwhile (nothing is stored),
        SessionTooLarge and NotSerializable with the stored record intact, StorageUnavailable when in doubt.
        """
        session_save(self)

    @cython.critical_section
    def modify(self, key, func, default=None):
        """Commit `func(value)` as the new value of one key, and return it: for counters, carts and the like.

        Atomic: if somebody else commits the key meanwhile, `func` runs again on what is there then; so it should do
        nothing but compute, on the value given (`default` if the key is not set), and must not use this storage.
        Other changes of this session are saved before. What `func` raises leaves the session as it was.
        """
        return session_modify(self, key, func, default)

    @cython.critical_section
    def close(self):
        """Commit and end the session: later writes raise SessionClosed. A handle that was never used does no I/O."""
        if self.state == OPEN:
            session_save(self)
            changes_clear(self)
        self.state = CLOSED

    @cython.critical_section
    def discard(self):
        """Forget the uncommitted changes. What was destroyed or rotated stays so."""
        changes_clear(self)
        self.cleared = False
        self.binds = False
        self.new_ttl = -1

    @cython.critical_section
    def destroy(self):
        """Delete the record, for good: no commit of anybody brings it back. Writes after this begin a new session."""
        session_may_write(self)
        if self.name is not None:
            session_delete(self)
        session_forget(self)

    @cython.critical_section
    def regenerate_id(self, delete_old=True):
        """Move the session to a fresh id and return it; call it at every login (ASVS 7.2.4).

        The old id is dead at once, or, with `delete_old=False`, leads to the new record for the manager's `grace`
        seconds. Uncommitted changes stay uncommitted. GoFrame's RegenerateId.
        """
        return session_rotate(self, 0 if delete_old else self.policy.grace)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if kind is None:
            self.close()
        else:
            self._abandon()

    @cython.critical_section
    def _abandon(self):
        """End without a commit and without I/O: an error is on its way that must not be masked."""
        changes_clear(self)
        self.state = CLOSED

    # ---- the same for event loops: storages that do I/O are awaited ----------------------------------------------

    async def aload(self):
        """`load` without blocking the event loop."""
        if self.policy.map != NULL or self.state != HANDLE:
            self.load()
        elif self.name is not None and well_formed(self.name):
            name = self.name
            session_started(self, await self.policy.storage.aload_record(name, self.policy.ttl))
        else:
            session_started(self, None)

    async def asave(self):
        """`save` without blocking the event loop. Saves of one session wait for each other."""
        if self.policy.map != NULL:
            self.save()
            return
        lock = session_async_lock(self)
        await lock.acquire()
        try:
            await self._asave()
        finally:
            lock.release()

    async def _asave(self):
        cdef int plan = session_plan(self)
        cdef uint64_t edits = self.edits
        cdef Record base = self.base
        name = self.name
        storage = self.policy.storage
        if plan == NOTHING:
            return
        if name is None or (base is None and plan != CREATE):
            raise errors.SessionGone()      # ended meanwhile
        if plan == TOUCH:
            await storage.atouch_record(name, base, session_ttl(self))
            session_touched(self)
            return
        bound = session_takes_bind(self)
        if plan == COMMIT:
            delta = session_delta(self)
            if bound is not None:
                await storage.anote_user(bound, name, session_ttl(self))
            session_saved(self, await storage.acommit_record(name, base, delta, session_ttl(self)), edits)
        else:
            record = session_first_record(self)
            while True:
                if record is None or self.name is None:
                    raise errors.SessionGone()
                if bound is not None:
                    await storage.anote_user(bound, self.name, session_ttl(self))
                if await storage.acreate_record(self.name, record, session_ttl(self)):
                    break
                if not self.own_name:
                    session_redraw_name(self)
                    continue
                self.base = await storage.aload_record(self.name, self.policy.ttl)
                if self.base is not None:
                    await self._asave()
                    return
            session_saved(self, record, edits)
        if bound is not None and self.policy.alimit_user is not None:
            await self.policy.alimit_user(self)

    async def amodify(self, key, func, default=None):
        """`modify` without blocking the event loop; `func` may run in a thread."""
        cdef Delta delta = delta_computing(self, key, func, default)
        storage = self.policy.storage
        if self.policy.map != NULL:
            return self.modify(key, func, default)
        session_may_write(self)
        await self.aload()
        session_read(self)
        lock = session_async_lock(self)
        await lock.acquire()
        try:
            if session_is_dirty(self):
                await self._asave()
            edits = self.edits
            while self.base is None:
                record = delta.apply(None, session_now(self), session_cap_at(self, session_now(self)))
                if self.name is None:
                    session_draw_name(self)
                if await storage.acreate_record(self.name, record, session_ttl(self)):
                    return session_modified(self, key, record, edits)
                if self.own_name:
                    self.base = await storage.aload_record(self.name, self.policy.ttl)
                else:
                    session_redraw_name(self)
            record = await storage.acommit_record(self.name, self.base, delta, session_ttl(self))
            return session_modified(self, key, record, edits)
        finally:
            lock.release()

    async def aclose(self):
        """`close` without blocking the event loop."""
        if self.state == OPEN:
            await self.asave()
            changes_clear(self)
        self.state = CLOSED

    async def adestroy(self):
        """`destroy` without blocking the event loop."""
        session_may_write(self)
        if self.name is not None:
            if self.policy.map != NULL:
                session_delete(self)
            elif well_formed(self.name) and await self.policy.storage.adelete_record(self.name):
                session_tell(self, DESTROYED, self.name)
        session_forget(self)

    async def aregenerate_id(self, delete_old=True):
        """`regenerate_id` without blocking the event loop."""
        if self.policy.map != NULL:
            return self.regenerate_id(delete_old)
        session_may_write(self)
        await self.aload()
        session_read(self)
        fresh = session_fresh_name(self)
        if self.base is not None:
            user = self.base.get(USER_KEY)
            if type(user) is str:
                await self.policy.storage.anote_user(user, fresh, session_ttl(self))
            record = await self.policy.storage.arename_record(
                self.name, fresh, self.base, session_ttl(self), 0 if delete_old else self.policy.grace)
            if record is None:
                raise errors.SessionGone()
        return session_renamed(self, fresh)

    async def __aenter__(self):
        return self

    async def __aexit__(self, kind, error, trace):
        if kind is None:
            await self.aclose()
        else:
            self._abandon()

    # ---- for adapters: neither starts the session -----------------------------------------------------------------

    @property
    def accessed(self):
        """Whether the id, the data or its size was looked at, so that the response depends on the cookie."""
        return self.looked

    @property
    def cookie_state(self):
        """What to do with the client's copy of the id: "keep" it, "set" it to `id`, or "drop" it.

        "drop" only where this handle ended the session. An id that was merely found dead may have been rotated
        meanwhile, and this response may arrive after the one that set the new id.
        """
        if self.base is not None:
            return "keep" if self.presented is not None and self.name == self.presented else "set"
        return "drop" if self.ended and self.presented is not None else "keep"

    def __repr__(self):
        state = ("not started", "open", "closed")[<int>self.state]
        return f"<Session {state}, {self.count} changes>"


cdef object started_already():
    return errors.SessionStarted()


# ---- starting ------------------------------------------------------------------------------------------------------

cdef int64_t session_now(Session s) except -1:
    if s.policy.map != NULL:
        return map_now(s.policy.map)
    if s.policy.wall and s.policy.storage.clock is None:
        return wall_now()
    return s.policy.storage.now_ns()


cdef inline int64_t session_ttl(Session s) noexcept:
    """The effective idle ttl in ns."""
    if s.new_ttl > 0:
        return s.new_ttl
    if s.base is not None and s.base._ttl != 0:
        return s.base._ttl
    return s.policy.ttl


cdef object session_wall(Session s, int64_t moment):
    """A time on the storage's clock as seconds since the epoch."""
    if s.policy.map != NULL and s.policy.map.clock == NULL:
        return (time_ns() - clock_now() + moment) / 1e9
    return moment / 1e9


cdef inline int session_read(Session s) except -1:
    if not s.looked:
        if s.state == CLOSED:           # the response has left without saying that it depends on the session
            raise errors.SessionClosed("the session was closed before it was ever read; read it before close()")
        s.looked = True
    if s.state == HANDLE:
        session_start(s)
    return 0


cdef int session_start(Session s) except -1:
    cdef Map *map = s.policy.map
    cdef Record record = None
    if s.state != HANDLE:
        return 0
    if map == NULL:
        if s.name is not None and well_formed(s.name):
            record = s.policy.storage.load_record(s.name, s.policy.ttl)
        return session_started(s, record)
    s.touched = map_now(map)
    if s.name is not None:
        record = map_load(map, s.name, s.touched, s.policy.ttl, True)
    return session_begin(s, record)


cdef int session_started(Session s, record) except -1:
    """The storage has answered."""
    if s.state != HANDLE:
        return 0
    s.touched = session_now(s)
    return session_begin(s, record)


cdef inline int session_begin(Session s, Record record) except -1:
    s.state = OPEN
    s.base = record
    if record is None and s.name is not None and not s.own_name:
        if s.policy.strict or not well_formed(s.name):
            name = s.name
            s.name = None           # an id that names no live record is never adopted
            session_tell(s, UNKNOWN_ID, name)
        else:
            s.own_name = True
    return 0


cdef bint well_formed(object session_id) except -1:
    """1 to 128 characters of A-Z a-z 0-9 _ -, and a str."""
    cdef Py_ssize_t i, n
    cdef const unsigned char *p
    if type(session_id) is not str or not PyUnicode_IS_COMPACT_ASCII(session_id):
        return False
    n = PyUnicode_GET_LENGTH(session_id)
    p = <const unsigned char *>PyUnicode_1BYTE_DATA(session_id)
    if not 0 < n <= ID_MAX:
        return False
    for i in range(n):
        if not is_id_char(p[i]):
            return False
    return True


cdef inline bint is_id_char(unsigned char c) noexcept:
    return c'a' <= c <= c'z' or c'A' <= c <= c'Z' or c'0' <= c <= c'9' or c == c'_' or c == c'-'


cdef object session_fresh_name(Session s):
    name = s.policy.fresh_id() if s.id_func is None else s.id_func()
    if not well_formed(name):
        raise ValueError("the id function must return a str of 1 to 128 characters of A-Z a-z 0-9 _ -")
    return name


cdef int session_draw_name(Session s) except -1:
    s.name = session_fresh_name(s)
    return 0


cdef int session_redraw_name(Session s) except -1:
    """The id drawn for a new session is in use. Random ones never are; a poor id function gets one more try."""
    taken = s.name
    session_draw_name(s)
    if s.name == taken:
        raise ValueError("the id function returned an id that is in use, twice; its ids must be unique")
    return 0


# ---- reading and writing data --------------------------------------------------------------------------------------

cdef object session_lend(Session s, object key, const char *p):
    """A committed value for the caller. A container is copied and remembered: it may change in place."""
    cdef Entry e = entry_head(p)
    cdef Change *c
    value = entry_load(p, True)
    if (e.tag & TAG_MASK) == TAG_FROZEN and s.state != CLOSED:
        c = change_find(s, key)
        if c != NULL and c.kind != TAKEN_AWAY:      # set by a finalizer while the copy was made
            return <object>c.value
        if c == NULL:
            change_put(s, key, <PyObject *>value, LENT, entry_box(p, e).ref)
    return value


cdef inline object session_find(Session s, object key, bint *found):
    """The value of a key; None and `found` left false when it is not set."""
    cdef Change *c
    cdef const char *p
    cdef Record base            # kept while it is read: copying a value may run a finalizer that saves
    session_read(s)
    c = change_find(s, key)
    if c != NULL:
        if c.kind == TAKEN_AWAY:
            return None
        found[0] = True
        return <object>c.value
    if s.cleared:
        return None
    base = s.base
    p = record_find(base, key)
    if p == NULL:
        return None
    found[0] = True
    return session_lend(s, key, p)


cdef inline object session_get(Session s, object key, object default):
    cdef bint found = False
    value = session_find(s, key, &found)
    return value if found else default


cdef bint session_has(Session s, object key) except -1:
    cdef Change *c = change_find(s, key)
    if c != NULL:
        return c.kind != TAKEN_AWAY
    return not s.cleared and record_find(s.base, key) != NULL


cdef object session_keys(Session s):
    """Stored keys in stored order, then the new ones."""
    cdef Taken t
    cdef Py_ssize_t i
    cdef list keys = [] if s.cleared or s.base is None else record_keys(s.base)
    if s.count:
        changes_take(s, &t)
        try:
            merged = dict.fromkeys(keys)
            for i in range(t.count):
                if t.changes[i].kind == TAKEN_AWAY:
                    merged.pop(<object>t.changes[i].key, None)
                else:
                    merged[<object>t.changes[i].key] = None
            keys = list(merged)
        finally:
            changes_drop(&t)
    return keys


cdef list session_items(Session s):
    """Every key with its value. Stored entries lie in the order of the keys, so one walk along them finds all."""
    cdef list items = []
    cdef const char *last = NULL
    cdef const char *p
    cdef Record base            # kept while it is read, as in `session_find`
    session_read(s)
    base = s.base
    for key in session_keys(s):
        p = NULL
        if s.base is base and not s.cleared and change_find(s, key) == NULL:
            p = record_find_from(base, last, key)
        if p != NULL:
            last = p
            items.append((key, session_lend(s, key, p)))
        else:
            items.append((key, session_get(s, key, None)))
    return items


cdef Py_ssize_t session_size(Session s) except -1:
    if not s.count:
        return 0 if s.cleared or s.base is None else s.base._count
    return len(session_keys(s))


cdef inline int session_may_write(Session s) except -1:
    if s.state == CLOSED:
        raise errors.SessionClosed()
    return 0


cdef inline int session_write(Session s) except -1:
    session_may_write(s)
    return session_read(s)


cdef inline int session_set(Session s, object key, object value) except -1:
    if s.state != OPEN or not s.looked:
        session_write(s)
    require_str_key(key)
    if not s.policy.any_object:
        check_top_level(key, value)
    return change_put(s, key, <PyObject *>value, WRITTEN)


cdef inline int check_top_level(object key, object value) except -1:
    """What is wrong at first sight is refused at once; the inside of containers is looked at by the commit."""
    cdef type kind = type(value)
    cdef Step step
    if (kind is str or kind is int or value is None or kind is bool or kind is float or kind is list or kind is dict
            or kind is tuple or kind is bytes or kind is set or kind is frozenset):
        return 0
    step = Step(NULL, <PyObject *>key, 0)
    if not is_plain_scalar(value, kind, &step, False):
        refuse(&step, f"a value of type {kind.__qualname__}")
    return 0


cdef int session_remove(Session s, object key) except -1:
    if session_has(s, key):
        change_put(s, key, NULL, TAKEN_AWAY)
    return 0
