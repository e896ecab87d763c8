# The changes of a session: a short vector, within the session at first. Keys are owned exact str, found by identity
# nearly always. Beyond INDEXED_FROM changes a key is found by its hash: behind the vector, in the same block, lies an
# open-addressing table of positions in it, twice as long, so that every probe ends. Only whole vectors are dropped
# while there is a table, or it is filled anew.

cdef enum:
    INDEXED_FROM = 32           # room for so many changes comes with a table
    FREE_SLOT = 0xFFFFFFFF


cdef inline Change *change_find(Session s, object key) noexcept:
    """The change of `key`, or NULL. Most keys are constants of the program, so identity finds nearly all."""
    cdef Py_ssize_t i
    if s.room >= INDEXED_FROM:
        return change_find_indexed(s, key)
    for i in range(s.count):
        if s.changes[i].key == <PyObject *>key:
            return &s.changes[i]
    if s.count and type(key) is str:        # anything else is no key, and its __eq__ is not ours to run
        for i in range(s.count):
            if change_is_of(&s.changes[i], key):
                return &s.changes[i]
    return NULL


cdef inline bint change_is_of(const Change *c, object key) noexcept:
    return (c.key == <PyObject *>key
            or (text_hash(<object>c.key) == text_hash(key) and PyUnicode_Compare(<object>c.key, key) == 0))


cdef inline uint32_t *change_slots(Session s) noexcept:
    """The table behind the vector. Its length is a power of two, as the room is."""
    return <uint32_t *>(s.changes + s.room)


cdef Change *change_find_indexed(Session s, object key) noexcept:
    cdef uint32_t *slots = change_slots(s)
    cdef size_t mask = 2 * s.room - 1, i
    if type(key) is not str:
        return NULL
    i = <size_t>text_hash(key) & mask
    while slots[i] != FREE_SLOT:
        if change_is_of(&s.changes[slots[i]], key):
            return &s.changes[slots[i]]
        i = (i + 1) & mask
    return NULL


cdef void change_index(Session s, Py_ssize_t position) noexcept:
    """Note a change in the table."""
    cdef uint32_t *slots = change_slots(s)
    cdef size_t mask = 2 * s.room - 1
    cdef size_t i = <size_t>text_hash(<object>s.changes[position].key) & mask
    while slots[i] != FREE_SLOT:
        i = (i + 1) & mask
    slots[i] = <uint32_t>position


cdef void changes_index(Session s) noexcept:
    """Fill the table anew."""
    cdef Py_ssize_t i
    memset(change_slots(s), 0xFF, 2 * s.room * sizeof(uint32_t))
    for i in range(s.count):
        change_index(s, i)


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
    if s.room >= INDEXED_FROM:
        change_index(s, s.count - 1)
    return 0


cdef int changes_grow(Session s) except -1:
    cdef Py_ssize_t room = s.room * 4
    cdef size_t slots = 2 * room * sizeof(uint32_t) if room >= INDEXED_FROM else 0
    cdef Change *bigger = <Change *>PyMem_Malloc(room * sizeof(Change) + slots)
    if bigger == NULL:
        raise MemoryError()
    memcpy(bigger, s.changes, s.count * sizeof(Change))
    if s.changes != s.few:
        PyMem_Free(s.changes)
    s.changes = bigger
    s.room = room
    if slots:
        changes_index(s)
    return 0


cdef int change_drop(Session s, Change *c) except -1:
    """Forget one change. What it held is dropped last."""
    cdef Change old = c[0]
    s.count -= 1
    c[0] = s.changes[s.count]
    if s.room >= INDEXED_FROM:
        changes_index(s)
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
