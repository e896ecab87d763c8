# ManagerCore: the compiled half of cysession.Manager. Session: one request's view of one session.

cdef str USER_KEY = "_bound_user"

cdef enum Event:                # what sessions count and report
    CREATED = 0
    DESTROYED = 1
    REGENERATED = 2
    UNKNOWN_ID = 3

cdef enum:
    EVENTS = 4

cdef tuple EVENT_NAMES = ("created", "destroyed", "regenerated", "unknown_id")


@cython.final
@cython.internal
cdef class Policy:
    """What sessions need of their manager. They hold this, not the manager: see ManagerCore."""
    cdef SessionTable table         # None: the storage is driven through the record protocol
    cdef Map *map                   # the table's C side, or NULL
    cdef object storage
    cdef object fresh_id            # () -> str
    cdef int64_t ttl
    cdef int64_t max_age            # 0: none
    cdef int64_t grace
    cdef Py_ssize_t max_bytes
    cdef bint strict
    cdef bint any_object
    cdef object tell                # (event, id, user), when somebody listens; else None
    cdef object limit_user          # (session) after a commit that bound it to a user; None: no limit
    cdef object alimit_user
    cdef int64_t tally[EVENTS]
    cdef char padding[64]           # no two policies share a cache line


cdef class ManagerCore:
    """The compiled base of `cysession.Manager`, which documents it.

    On free-threaded builds every thread that makes a session writes to the reference count of what the session
    holds. One count for all threads would cost more than the rest of a request, so there are STRIPES policies with
    equal contents, and a thread uses one of them. With a GIL there is one.
    """
    cdef object __weakref__
    cdef list policies                  # all there ever were: another thread may just be reading an old one
    cdef PyObject *stripes[STRIPES]     # borrowed from `policies`

    def __cinit__(self, *args, **kwargs):
        self.policies = []
        self._adopt([Policy.__new__(Policy) for _ in range(STRIPES)])

    def _adopt(self, list policies):
        cdef int i
        self.policies += policies
        for i in range(STRIPES):
            self.stripes[i] = <PyObject *>policies[i]

    def _set_policy(self, *, fresh_id, ttl, max_age, grace, max_bytes, strict):
        """Before the first session."""
        cdef Policy p
        for p in self.policies:
            p.fresh_id = fresh_id
            p.ttl = ns_of(ttl, "ttl")
            p.max_age = 0 if max_age is None else ns_of(max_age, "max_age")
            p.grace = ns_of_or_zero(grace, "grace")
            p.max_bytes = max_bytes
            p.strict = strict

    def _set_storage(self, storage, SessionTable table, any_object):
        """Sessions made before go on with the storage they have."""
        cdef Policy old, p
        cdef list policies = []
        for old in self.policies[len(self.policies) - STRIPES:]:
            p = Policy.__new__(Policy)
            p.storage = storage
            p.table = table
            p.map = NULL if table is None else &table.map
            p.any_object = any_object
            p.fresh_id = old.fresh_id
            p.ttl, p.max_age, p.grace = old.ttl, old.max_age, old.grace
            p.max_bytes, p.strict = old.max_bytes, old.strict
            p.tell, p.limit_user, p.alimit_user = old.tell, old.limit_user, old.alimit_user
            policies.append(p)
        self._adopt(policies)

    def _set_tell(self, tell):
        """Report events of sessions, also of those there are, to `tell(event, id, user or None)`."""
        cdef Policy p
        for p in self.policies:
            p.tell = tell

    def _set_user_limit(self, limit_user, alimit_user):
        """Call one of them with every session whose commit has bound it to a user."""
        cdef Policy p
        for p in self.policies:
            p.limit_user, p.alimit_user = limit_user, alimit_user

    def _tally(self):
        """How often each event of sessions happened."""
        cdef Policy p
        cdef int64_t sums[EVENTS]
        cdef int i
        memset(sums, 0, sizeof(sums))
        for p in self.policies:
            for i in range(EVENTS):
                sums[i] += counter_read(&p.tally[i])
        return {EVENT_NAMES[i]: sums[i] for i in range(EVENTS)}

    def _set_ttl(self, ttl):
        cdef Policy p
        for p in self.policies:
            p.ttl = ns_of(ttl, "ttl")

    @property
    def _ttl_seconds(self):
        return (<Policy>self.stripes[0]).ttl / 1e9

    @property
    def storage(self):
        return (<Policy>self.stripes[0]).storage

    def new(self, session_id=""):
        """A handle on the session with this id, or on a new one ("" or None). No I/O, nothing allocated but the handle.

        `session_id` is what a client presented: untrusted. Unless it names a live record it is dropped and the
        session is new (GoFrame's Manager.New, but strict).
        """
        cdef Session s = Session.__new__(Session)
        s.policy = <Policy>self.stripes[thread_stripe()]
        if session_id is not None:
            if type(session_id) is not str:
                raise TypeError(f"a session id is a str, not {type(session_id).__name__}")
            if PyUnicode_GET_LENGTH(session_id):
                s.name = s.presented = session_id
        return s


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
        return [session_get(self, key, None) for key in session_keys_read(self)]

    @cython.critical_section
    def items(self):
        return [(key, session_get(self, key, None)) for key in session_keys_read(self)]

    @cython.critical_section
    def get_map(self):
        """The session's data as a dict (GoFrame's Data)."""
        return {key: session_get(self, key, None) for key in session_keys_read(self)}

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
    return map_now(s.policy.map) if s.policy.map != NULL else s.policy.storage.now_ns()


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


# ---- the changes ---------------------------------------------------------------------------------------------------

cdef inline Change *change_find(Session s, object key) noexcept:
    """The change of `key`, or NULL. Most keys are constants of the program, so identity finds nearly all."""
    cdef Py_ssize_t i
    for i in range(s.count):
        if s.changes[i].key == <PyObject *>key:
            return &s.changes[i]
    if s.count and type(key) is str:        # anything else is no key, and its __eq__ is not ours to run
        for i in range(s.count):
            if (text_hash(<object>s.changes[i].key) == text_hash(key)
                    and PyUnicode_Compare(<object>s.changes[i].key, key) == 0):
                return &s.changes[i]
    return NULL


cdef int change_put(Session s, object key, PyObject *value, ChangeKind kind, PyObject *origin=NULL) except -1:
    """Set or replace the change of a key."""
    cdef Change *c = change_find(s, key)
    cdef Change old
    s.edits += 1
    Py_XINCREF(value)
    Py_XINCREF(origin)
    if c != NULL:
        old = c[0]
        c.value = value
        c.origin = origin
        c.kind = kind
        Py_XDECREF(old.value)       # last: this may run anything
        Py_XDECREF(old.origin)
        return 0
    if s.count == s.room:
        try:
            changes_grow(s)
        except:
            Py_XDECREF(value)
            Py_XDECREF(origin)
            raise
    Py_INCREF(key)
    c = &s.changes[s.count]
    c.key = <PyObject *>key
    c.value = value
    c.origin = origin
    c.kind = kind
    s.count += 1
    return 0


cdef int changes_grow(Session s) except -1:
    cdef Py_ssize_t room = s.room * 4
    cdef Change *bigger = <Change *>PyMem_Malloc(room * sizeof(Change))
    if bigger == NULL:
        raise MemoryError()
    memcpy(bigger, s.changes, s.count * sizeof(Change))
    if s.changes != s.few:
        PyMem_Free(s.changes)
    s.changes = bigger
    s.room = room
    return 0


cdef int change_drop(Session s, Change *c) except -1:
    """Forget one change. What it held is dropped last."""
    cdef Change old = c[0]
    s.count -= 1
    c[0] = s.changes[s.count]
    Py_DECREF(<object>old.key)
    Py_XDECREF(old.value)
    Py_XDECREF(old.origin)
    return 0


cdef int changes_take(Session s, Taken *t) except -1:
    """References of one's own to the changes: what freezes or compares values may run finalizers that change them."""
    cdef Py_ssize_t i
    t.count = s.count
    t.changes = t.few
    if t.count > CHANGES_INLINE:
        t.changes = <Change *>PyMem_Malloc(t.count * sizeof(Change))
        if t.changes == NULL:
            raise MemoryError()
    memcpy(t.changes, s.changes, t.count * sizeof(Change))
    for i in range(t.count):
        Py_INCREF(<object>t.changes[i].key)
        Py_XINCREF(t.changes[i].value)
        Py_XINCREF(t.changes[i].origin)
    return 0


cdef void changes_drop(Taken *t) noexcept:
    cdef Py_ssize_t i
    for i in range(t.count):
        Py_DECREF(<object>t.changes[i].key)
        Py_XDECREF(t.changes[i].value)
        Py_XDECREF(t.changes[i].origin)
    if t.changes != t.few:
        PyMem_Free(t.changes)


cdef inline void changes_clear(Session s) noexcept:
    """Forget all changes. They are detached first: what a dropped value runs meets a session without changes."""
    cdef Change one
    if s.changes != s.few or s.count > 1:
        changes_clear_many(s)
    elif s.count:
        one = s.few[0]
        s.count = 0
        Py_DECREF(<object>one.key)
        Py_XDECREF(one.value)
        Py_XDECREF(one.origin)


cdef void changes_clear_many(Session s) noexcept:
    cdef Change few[CHANGES_INLINE]
    cdef Change *changes = s.changes
    cdef Py_ssize_t count = s.count, i
    if changes == s.few:
        memcpy(few, s.few, sizeof(few))
        changes = few
    s.count = 0
    s.changes = s.few
    s.room = CHANGES_INLINE
    for i in range(count):
        Py_DECREF(<object>changes[i].key)
        Py_XDECREF(changes[i].value)
        Py_XDECREF(changes[i].origin)
    if changes != few:
        PyMem_Free(changes)


cdef int session_visit_changes(Session s, visitproc visit, void *arg) noexcept:
    cdef Py_ssize_t i
    cdef int stop
    for i in range(s.count):
        if s.changes[i].value != NULL:
            stop = visit(s.changes[i].value, arg)
            if stop:
                return stop
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


cdef object session_keys_read(Session s):
    session_read(s)
    return session_keys(s)


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


# ---- committing ----------------------------------------------------------------------------------------------------

cdef enum Plan:
    NOTHING = 0
    TOUCH = 1
    CREATE = 2
    COMMIT = 3


cdef inline bint change_counts(const Change *c) except -1:
    """Whether a change would write: written, taken away, or lent and changed in place since."""
    return True if c.kind != LENT else not same(<object>c.value, <object>c.origin)


cdef bint session_is_dirty(Session s) except -1:
    cdef Taken t
    cdef Py_ssize_t i
    if s.new_ttl > 0 or (s.cleared and s.base is not None):
        return True
    for i in range(s.count):
        if s.changes[i].kind == WRITTEN or (s.changes[i].kind == TAKEN_AWAY and s.base is not None):
            return True
    if s.count == 0:
        return False
    changes_take(s, &t)
    try:
        for i in range(t.count):
            if t.changes[i].kind == LENT and change_counts(&t.changes[i]):
                return True
    finally:
        changes_drop(&t)
    return False


cdef int session_plan(Session s) except -1:
    if s.state == CLOSED:
        raise errors.SessionClosed()
    if s.state == HANDLE:
        return NOTHING
    if s.count or s.cleared or s.new_ttl > 0:
        if session_is_dirty(s):
            if s.base is not None:
                return COMMIT
            if session_size(s) == 0:
                return NOTHING
            if s.name is None:
                session_draw_name(s)
            return CREATE
    # The start has touched the record; only a handle that lived on for a while does it again.
    if s.base is None or session_now(s) - s.touched < min(session_ttl(s) >> 4, <int64_t>1000000000):
        return NOTHING
    return TOUCH


cdef inline int session_save(Session s) except -1:
    return session_save_bound(s) if s.binds else session_save_changes(s)


cdef int session_save_bound(Session s) except -1:
    """The first save after `bind`: the index learns of the session before the session says whose it is."""
    session_plan(s)                     # a session to be created gets its id here
    user = session_takes_bind(s)
    name = s.name
    if user is not None and name is not None:
        s.policy.storage.note_user(user, name, session_ttl(s))
    session_save_changes(s)
    if user is None or s.base is None:
        return 0
    if s.name is not name:              # another id than the one noted: the first was in use
        s.policy.storage.note_user(user, s.name, session_ttl(s))
    if s.policy.limit_user is not None:
        s.policy.limit_user(s)
    return 0


cdef object session_takes_bind(Session s):
    """The user whose index has to learn of this session, once; None: nobody's."""
    if not s.binds:
        return None
    s.binds = False
    return session_get(s, USER_KEY, None)


cdef int session_save_changes(Session s) except -1:
    cdef Map *map = s.policy.map
    cdef int plan
    if map == NULL:
        return session_save_io(s)
    plan = session_plan(s)
    if plan == TOUCH:
        map_load(map, s.name, map_now(map), session_ttl(s), True)
        return session_touched(s)
    if plan == CREATE:
        return session_create(s, map)
    if plan == COMMIT:
        return session_commit(s, map)
    return 0


cdef int session_save_io(Session s) except -1:
    """Through the record protocol. While the storage is at work other threads may use the session, but not save it."""
    lock = session_lock(s)
    lock.acquire()
    try:
        session_save_record(s)
    finally:
        lock.release()
    return 0


cdef object session_lock(Session s):
    """What saves through the record protocol hold, made by the first.

    Held with try and finally: a compiled `with` crashes on an error whose traceback there was no memory for.
    """
    if s.saving is None or s.saving_forks != forks:
        s.saving = RLock()              # in a forked child the old one may be held by a thread that is not there
        s.saving_forks = forks
    return s.saving


cdef object session_async_lock(Session s):
    if s.asaving is None:
        s.asaving = asyncio_lock()
    return s.asaving


cdef int session_save_record(Session s) except -1:
    cdef int plan = session_plan(s)
    cdef uint64_t edits = s.edits
    cdef Record base = s.base
    name = s.name
    storage = s.policy.storage
    if plan == NOTHING:
        return 0
    if name is None or (base is None and plan != CREATE):
        raise errors.SessionGone()      # another thread ended the session just now
    if plan == TOUCH:
        storage.touch_record(name, base, session_ttl(s))
        return session_touched(s)
    if plan == CREATE:
        record = session_first_record(s)
        if record is None or s.name is None:
            raise errors.SessionGone()
        while not storage.create_record(s.name, record, session_ttl(s)):
            if s.own_name:          # somebody else created the session with the id we were told to use: join it
                s.base = storage.load_record(s.name, s.policy.ttl)
                if s.base is not None:
                    return session_save_record(s)
            else:
                session_redraw_name(s)
        return session_saved(s, record, edits)
    if plan == COMMIT:
        return session_saved(s, storage.commit_record(name, base, session_delta(s), session_ttl(s)), edits)
    return 0


cdef Delta delta_computing(Session s, object key, object func, object default):
    require_str_key(key)
    if not callable(func):
        raise TypeError("modify() needs a callable that takes the value and returns the new one")
    return Delta.computing(key, func, default, s.policy.max_bytes, s.policy.any_object)


cdef object session_modify(Session s, object key, object func, object default):
    cdef Delta delta = delta_computing(s, key, func, default)
    cdef uint64_t edits
    storage = s.policy.storage
    session_write(s)
    lock = session_lock(s)
    lock.acquire()
    try:
        if session_is_dirty(s):
            session_save(s)
        edits = s.edits
        while s.base is None:
            record = delta.apply(None, session_now(s), session_cap_at(s, session_now(s)))
            if s.name is None:
                session_draw_name(s)
            if storage.create_record(s.name, record, session_ttl(s)):
                return session_modified(s, key, record, edits)
            if s.own_name:
                s.base = storage.load_record(s.name, s.policy.ttl)
            else:
                session_redraw_name(s)
        record = storage.commit_record(s.name, s.base, delta, session_ttl(s))
        return session_modified(s, key, record, edits)
    finally:
        lock.release()


cdef object session_modified(Session s, object key, Record record, uint64_t edits):
    """The storage holds `record`, with the new value of `key`: what was lent out of the old one is the caller's now."""
    cdef Change *c = change_find(s, key)
    if c != NULL and c.kind == LENT:
        change_drop(s, c)
    session_saved(s, record, edits)
    session_touched(s)
    return session_get(s, key, None)


cdef inline bint change_is_plain(const Change *c) noexcept:
    """Whether a value was set whose packing runs nobody's code, holds no reference and cannot fail."""
    if c.kind != WRITTEN or not is_short_ascii(<object>c.key):
        return False
    value = <object>c.value
    return (value is None or type(value) is bool or type(value) is float
            or (type(value) is str and is_short_ascii(value)))


cdef Record session_merge(Session s, Record base, int64_t created, int64_t cap, uint64_t birth):
    """This session's changes laid over `base`: the record to store, or None if nothing is left."""
    cdef Taken t
    cdef Cell few[CHANGES_INLINE]
    cdef Cell *cells = few
    cdef Py_ssize_t n = 0, i
    cdef int64_t ttl = s.new_ttl if s.new_ttl > 0 else base._ttl if base is not None else 0
    cdef bint cleared = s.cleared
    if s.count == 1 and base is not None and not cleared and change_is_plain(&s.changes[0]):
        cell_fill(few, <object>s.changes[0].key, <object>s.changes[0].value, False)
        return pack_merge(base, few, 1, created, cap, ttl, birth, s.policy.max_bytes)
    changes_take(s, &t)
    try:
        if t.count > CHANGES_INLINE:
            cells = <Cell *>PyMem_Malloc(t.count * sizeof(Cell))
            if cells == NULL:
                raise MemoryError()
        for i in range(t.count):
            if t.changes[i].kind == LENT and not change_counts(&t.changes[i]):
                continue
            cells[n].box = NULL
            n += 1
            if t.changes[i].kind == TAKEN_AWAY:
                cell_fill_key(&cells[n - 1], <object>t.changes[i].key)
                cells[n - 1].tag = REMOVED
            else:
                cell_fill(&cells[n - 1], <object>t.changes[i].key, <object>t.changes[i].value, s.policy.any_object)
        return pack_merge(None if cleared else base, cells, n, created, cap, ttl, birth, s.policy.max_bytes)
    finally:
        cells_release(cells, n)
        if cells != few:
            PyMem_Free(cells)
        changes_drop(&t)


cdef int session_create(Session s, Map *map) except -1:
    cdef int64_t now = map_now(map)
    cdef int64_t cap = session_cap_at(s, now)
    cdef uint64_t edits = s.edits
    cdef Record record = session_merge(s, None, now, cap, <uint64_t>counter_add(&map.births, 1))
    if record is None:                      # a finalizer took the changes back
        return 0
    if s.name is None:
        session_draw_name(s)
    name = s.name
    while not map_add(map, name, record, now, session_ttl(s), False):
        if s.own_name:
            s.base = map_load(map, s.name, now, s.policy.ttl, True)
            if s.base is not None:
                return session_commit(s, map)
        else:
            session_redraw_name(s)
            name = s.name
    s.name = name
    s.touched = now
    return session_saved(s, record, edits)


cdef int session_commit(Session s, Map *map) except -1:
    cdef int64_t now = map_now(map)
    cdef uint64_t edits = s.edits
    cdef Record base = s.base, merged
    name = s.name
    if base is None or name is None:        # planning ran a finalizer that ended the session: plan again
        return session_save(s)
    merged = map_merge(map, name, base, s, None, now, session_ttl(s))
    s.touched = now
    if s.name is None and merged is not None:
        s.name = name                       # a finalizer ended the session while it was being merged
    return session_saved(s, merged, edits)


cdef Record map_merge(Map *map, object name, Record base, Session s, Delta delta, int64_t now, int64_t ttl):
    """Commit the changes of `s` or `delta` onto what is stored under `name`; None: nothing is left, it is deleted.

    The new record is built outside the lock and swapped in if the one it was built on is still there, else built
    again on what is there now. SessionGone: the session that `base` is a state of lives no more.
    """
    cdef Record current = base, merged
    cdef PyObject *out
    cdef int outcome
    while True:
        out = NULL
        if s is not None:
            merged = session_merge(s, current, current._created, current._cap, current._birth)
        else:
            merged = delta.apply(current, now, current._cap)
        if merged is None:
            outcome = map_remove(map, name, current, now, &out)
        else:
            outcome = map_swap(map, name, current, merged, now, ttl, &out)
        if outcome == DONE:
            return merged
        if outcome == MISSING:
            raise errors.SessionGone()
        if outcome == RENAMED:          # rotated with a grace window: the commit lands in the new record
            name = steal(out)
            current = map_load(map, name, now, ttl, False)
            if current is None:
                raise errors.SessionGone()
        else:
            current = record_from(out)
        if current._birth != base._birth:
            raise errors.SessionGone()


cdef Record session_first_record(Session s):
    """The record to create on a storage of the record protocol."""
    cdef int64_t now = session_now(s)
    return session_merge(s, None, now, session_cap_at(s, now), new_birth())


cdef inline int64_t session_cap_at(Session s, int64_t now) noexcept:
    """The absolute deadline of a session created `now`."""
    return now + s.policy.max_age if s.policy.max_age else NO_CAP


cdef Delta session_delta(Session s):
    """The changes as an object, for storages of the record protocol."""
    cdef Taken t
    cdef Py_ssize_t i
    cdef dict values = {}
    cdef list removed = []
    cdef bint cleared = s.cleared
    changes_take(s, &t)
    try:
        for i in range(t.count):
            key = <object>t.changes[i].key
            if t.changes[i].kind == TAKEN_AWAY:
                removed.append(key)
            elif change_counts(&t.changes[i]):
                values[key] = <object>t.changes[i].value
    finally:
        changes_drop(&t)
    return Delta(values, removed, cleared, s.new_ttl if s.new_ttl > 0 else None, s.policy.max_bytes,
                 s.policy.any_object)


cdef int session_touched(Session s) except -1:
    s.touched = session_now(s)
    return 0


cdef int session_saved(Session s, Record record, uint64_t edits) except -1:
    """The storage holds `record` now (None: nothing), which has all changes up to `edits`; later ones stay."""
    cdef Record old = s.base
    if (old is None) == (record is None):
        return session_settle(s, record, edits)
    name = s.name
    session_settle(s, record, edits)
    return session_tell(s, CREATED if old is None else DESTROYED, name, old)


cdef int session_settle(Session s, Record record, uint64_t edits) except -1:
    cdef bint later = s.edits != edits
    cdef Py_ssize_t i
    cdef Record old = s.base            # dropped at the end: that may run a finalizer, which must meet a whole session
    s.ended = record is None and old is not None
    s.base = record
    if s.cleared_at <= edits:
        s.cleared = False
    if record is None or s.new_ttl == record._ttl:
        s.new_ttl = -1
    if record is None and not s.own_name:
        s.name = None
    if not later and record is None:
        changes_clear(s)
        return 0
    for i in range(s.count):
        if later or (s.changes[i].kind != TAKEN_AWAY and is_container(<object>s.changes[i].value)):
            return changes_settle(s)
    changes_clear(s)
    return 0


cdef int changes_settle(Session s) except -1:
    """Keep what the record just stored does not have yet, and the containers that may still change in place."""
    cdef Taken t
    cdef Py_ssize_t i
    cdef uint64_t edits
    cdef Record base = s.base
    cdef list kept = []
    while True:
        kept = []
        edits = s.edits
        changes_take(s, &t)
        try:
            for i in range(t.count):
                change_settle(base, s.cleared, &t.changes[i], kept)
        finally:
            changes_drop(&t)
        if s.edits == edits:                # nothing came in while values were compared
            break
    changes_clear(s)
    for key, value, origin, kind in kept:
        if change_find(s, key) == NULL:
            change_put(s, key, NULL if kind == TAKEN_AWAY else <PyObject *>value, <ChangeKind><int>kind,
                       NULL if origin is None else <PyObject *>origin)
    return 0


cdef int change_settle(Record base, bint cleared, const Change *c, list kept) except -1:
    cdef const char *p = record_find(base, <object>c.key)
    cdef Entry e
    if cleared:
        p = NULL
    key = <object>c.key
    if c.kind == TAKEN_AWAY:
        if p != NULL:
            kept.append((key, None, None, TAKEN_AWAY))
        return 0
    value = <object>c.value
    if c.kind == LENT and not change_counts(c):
        kept.append((key, value, <object>c.origin, LENT))
    elif p == NULL or not same(value, entry_load(p, False)):
        kept.append((key, value, None if c.origin == NULL else <object>c.origin, c.kind))
    elif is_container(value):
        e = entry_head(p)
        if (e.tag & TAG_MASK) == TAG_FROZEN:
            kept.append((key, value, <object>entry_box(p, e).ref, LENT))
    return 0


# ---- the end of a session and of an id -----------------------------------------------------------------------------

cdef int session_tell(Session s, Event event, object name, Record record=None) except -1:
    """Count what has happened, and report it if somebody listens."""
    counter_add(&s.policy.tally[<int>event], 1)
    if s.policy.tell is not None:
        if record is None:
            record = s.base
        s.policy.tell(EVENT_NAMES[<int>event], name, None if record is None else record.get(USER_KEY))
    return 0


cdef int session_delete(Session s) except -1:
    name = s.name
    if s.policy.map != NULL:
        deleted = map_delete(s.policy.map, name, map_now(s.policy.map))
    else:
        deleted = well_formed(name) and s.policy.storage.delete_record(name)
    if deleted:
        session_tell(s, DESTROYED, name)
    return 0


cdef int session_forget(Session s) except -1:
    """After a destroy: an open session without record, id and changes. What is dropped is dropped last."""
    cdef PyObject *old = <PyObject *>s.base
    Py_INCREF(s.base)
    s.state = OPEN
    s.base = None
    s.name = None
    s.own_name = False
    s.cleared = False
    s.binds = False
    s.new_ttl = -1
    s.looked = True
    s.ended = True
    changes_clear(s)
    Py_DECREF(<object>old)
    return 0


cdef object session_rotate(Session s, int64_t grace):
    cdef Map *map = s.policy.map
    session_write(s)
    fresh = session_fresh_name(s)
    if s.base is not None:
        user = s.base.get(USER_KEY)
        if type(user) is str:           # before the old id ends: nobody who revokes the user's sessions may miss it
            s.policy.storage.note_user(user, fresh, session_ttl(s))
        if map == NULL:
            record = s.policy.storage.rename_record(s.name, fresh, s.base, session_ttl(s), grace)
        else:
            record = map_rename(map, s.name, fresh, s.base, map_now(map), session_ttl(s), grace)
        if record is None:
            raise errors.SessionGone()
    return session_renamed(s, fresh)


cdef object session_renamed(Session s, object fresh):
    s.name = fresh
    if s.base is not None:
        session_tell(s, REGENERATED, fresh)
    return fresh
