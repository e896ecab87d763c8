# The commit: what a save has to do (plan), doing it through the table or through the record protocol, and what the
# session is afterwards (settle). Then modify, the end of a session and of an id.

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
    if session_sets_one(s) and session_commit_one(s, map):
        return 0
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


cdef Record session_merge(Session s, Record base, int64_t created, int64_t cap, uint64_t birth):
    """This session's changes laid over `base`: the record to store, or None if nothing is left."""
    cdef Taken t
    cdef Cell few[CHANGES_INLINE]
    cdef Cell *cells = few
    cdef Py_ssize_t n = 0, i
    cdef int64_t ttl = s.new_ttl if s.new_ttl > 0 else base._ttl if base is not None else 0
    cdef bint cleared = s.cleared
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


cdef inline bint session_sets_one(Session s) noexcept:
    """Whether a commit has one key to set in a stored session, and nothing else: the usual request that writes."""
    return (s.count == 1 and s.changes[0].kind == WRITTEN and s.base is not None and s.state == OPEN
            and not s.cleared and s.new_ttl < 0)


cdef bint session_commit_one(Session s, Map *map) except -1:
    """What plan, merge and settle come to for one short value; False: it is a case for those, nothing was done.

    Up to the end no code of the user's runs: the values set and replaced hold no references.
    """
    cdef Cell cell
    cdef int64_t now = map_now(map)
    cdef uint64_t edits = s.edits
    cdef Record base = s.base, fresh
    cdef PyObject *out = NULL
    name = s.name
    if not session_sets_one(s) or not is_short_ascii(<object>s.changes[0].key):     # again: the clock may be the user's
        return False
    cell_fill_key(&cell, <object>s.changes[0].key)
    if not cell_fill_inline(&cell, <object>s.changes[0].value):
        return False
    fresh = pack_replace_one(base, &cell, base._ttl, s.policy.max_bytes)
    if map_swap(map, name, base, fresh, now, session_ttl(s), &out) != DONE:
        Py_XDECREF(out)
        return False
    if s.base is base and s.edits == edits:
        s.touched = now
        s.base = fresh                      # the old one lives until the end of this function
        changes_clear(s)
    else:                                   # another thread used the session while this one waited for the shard
        session_committed(s, name, fresh, now, edits)
    return True


cdef int session_commit(Session s, Map *map) except -1:
    cdef int64_t now = map_now(map)
    cdef uint64_t edits = s.edits
    cdef Record base = s.base, merged
    name = s.name
    if base is None or name is None:        # planning ran a finalizer that ended the session: plan again
        return session_save(s)
    merged = map_merge(map, name, base, s, None, now, session_ttl(s))
    return session_committed(s, name, merged, now, edits)


cdef int session_committed(Session s, object name, Record merged, int64_t now, uint64_t edits) except -1:
    s.touched = now
    if s.name is None and merged is not None:
        s.name = name                       # a finalizer or a thread ended the session while it was being merged
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
    return delta_new(values, removed, cleared, s.new_ttl if s.new_ttl > 0 else None, s.policy.max_bytes,
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
    cdef const char *last
    while True:
        kept = []
        last = NULL
        edits = s.edits
        changes_take(s, &t)
        try:
            for i in range(t.count):
                change_settle(base, s.cleared, &t.changes[i], &last, kept)
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


cdef int change_settle(Record base, bint cleared, const Change *c, const char **last, list kept) except -1:
    """`last`: the entry of the change before this one, a hint where to look."""
    cdef const char *p = record_find_from(base, last[0], <object>c.key)
    cdef Entry e
    if p != NULL:
        last[0] = p
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
