# Record: the committed state of one session. Delta: one request's uncommitted changes. Delta + Record -> Record.

@cython.final
@cython.no_gc
cdef class Record:
    """The immutable, committed state of one session: its packed data and the times that bound its life.

    A mapping over the session's data; every access hands out fresh copies of mutable values. Times are integer
    nanoseconds on the storage's clock. Records are compared by identity: a storage replaces a record as a whole.
    """
    # `cap` and `ttl` come first: the table reads them through `record_lease` (_table.pxd).
    cdef int64_t _cap
    cdef int64_t _ttl
    cdef int64_t _created
    cdef uint64_t _birth
    cdef uint32_t _bytes            # length of the packed entries
    cdef uint32_t _weight           # what counts against max_bytes
    cdef uint32_t _count
    cdef bint _has_boxes            # some entry owns a reference
                                    # behind it, the entries: see `pack_of`

    NEVER = NO_CAP

    @staticmethod
    def build(data, created, cap=NO_CAP, ttl=0, birth=0, any_object=False):
        """A record over a copy of `data`. Raises NotSerializable with the path of keys, never for its size."""
        cdef Record r = record_of_items(dict(data), created, cap, ttl, birth or new_birth(), 0, any_object)
        return r if r is not None else record_empty(created, cap, ttl, birth or new_birth())

    @property
    def created(self):
        return self._created

    @property
    def cap(self):
        return self._cap

    @property
    def ttl(self):
        return self._ttl

    @property
    def birth(self):
        return self._birth

    @property
    def size(self):
        return self._weight

    @property
    def handle(self):
        """16 hex digits that name this session for life, in public: it cannot be presented as an id."""
        return record_handle(self)

    def raw_items(self):
        """(key, value) pairs, values *not* copied: for encoders, which neither change nor keep them."""
        return record_items(self, False)

    def to_dict(self):
        return dict(record_items(self, True))

    def get(self, key, default=None, /):
        cdef const char *p = record_find(self, key)
        return default if p == NULL else entry_load(p, True)

    def keys(self):
        return record_keys(self)

    def values(self):
        return [value for _, value in record_items(self, True)]

    def items(self):
        return record_items(self, True)

    def __getitem__(self, key):
        cdef const char *p = record_find(self, key)
        if p == NULL:
            raise KeyError(key)
        return entry_load(p, True)

    def __contains__(self, key):
        return record_find(self, key) != NULL

    def __len__(self):
        return self._count

    def __iter__(self):
        return iter(record_keys(self))

    def __sizeof__(self):
        return struct_size(self) + self._bytes

    def __repr__(self):
        return f"<Record of {self._count} keys, {self._weight} bytes>"


cdef object record_handle(Record r):
    cdef object birth = r._birth
    from hashlib import blake2s     # here: it loads OpenSSL, and most programs never ask for a handle
    return blake2s(birth.to_bytes(8, "little"), digest_size=8, person=b"cysessn").hexdigest()


cdef uint64_t new_birth() except 0:
    """64 random bits that no other record of this id will have: they tell a reborn id from the one that was loaded."""
    cdef uint64_t bits = 0
    while bits == 0:
        bits = <uint64_t>int.from_bytes(os.urandom(8), "little")
    return bits


cdef inline char *pack_of(Record r) noexcept:
    """The entries, which follow the fields that the class declares."""
    return behind(r)


cdef inline Record record_new(Py_ssize_t pack_bytes):
    """An uninitialised record with room for its pack: one allocation, past what Cython's own constructor gives."""
    cdef Record r = <Record>new_sized(<PyTypeObject *>Record, struct_size(<Record>NULL) + pack_bytes)
    r._bytes = <uint32_t>pack_bytes
    r._has_boxes = False
    return r


cdef Record record_empty(int64_t created, int64_t cap, int64_t ttl, uint64_t birth):
    cdef Record r = record_new(0)
    r._created, r._cap, r._ttl, r._birth, r._weight, r._count = created, cap, ttl, birth, 0, 0
    return r


cdef void record_dealloc(PyObject *self) noexcept:
    """In place of the generated one, which saves and restores the error state around every record."""
    cdef const char *pack = pack_of(<Record>self)
    if (<Record>self)._has_boxes:
        drop_boxes(pack, pack + (<Record>self)._bytes)
    PyObject_Free(self)


cdef void drop_boxes(const char *p, const char *end) noexcept:
    cdef Entry e
    while p < end:
        e = entry_head(p)
        if e.tag & TAG_KEY_BOXED:
            Py_DECREF(<object>entry_key_box(p))
        if entry_is_boxed(e):
            Py_DECREF(<object>entry_box(p, e).ref)
        p += entry_len(e)


# ---- reading -----------------------------------------------------------------------------------------------------

cdef inline bint is_short_ascii(object text) noexcept:
    return PyUnicode_IS_COMPACT_ASCII(text) and PyUnicode_GET_LENGTH(text) <= KEY_MAX


cdef inline const char *record_find(Record r, object key) noexcept:
    """The entry of `key`, or NULL."""
    if r is None or type(key) is not str:
        return NULL
    if is_short_ascii(key):
        return pack_find(pack_of(r), pack_of(r) + r._bytes, <const char *>PyUnicode_1BYTE_DATA(key),
                         PyUnicode_GET_LENGTH(key))
    return pack_find_boxed(pack_of(r), pack_of(r) + r._bytes, key)


cdef const char *record_find_from(Record r, const char *start, object key) noexcept:
    """`record_find`, of an exact str, which first looks from the entry `start` on (NULL: no such hint)."""
    cdef const char *p = NULL
    if r is not None and start != NULL:
        if is_short_ascii(key):
            p = pack_find(start, pack_of(r) + r._bytes, <const char *>PyUnicode_1BYTE_DATA(key),
                          PyUnicode_GET_LENGTH(key))
        else:
            p = pack_find_boxed(start, pack_of(r) + r._bytes, key)
    return p if p != NULL else record_find(r, key)


cdef const char *pack_find_boxed(const char *p, const char *end, object key) noexcept:
    cdef Entry e
    while p < end:
        e = entry_head(p)
        if e.tag & TAG_KEY_BOXED and PyUnicode_Compare(<object>entry_key_box(p), key) == 0:
            return p
        p += entry_len(e)
    return NULL


cdef inline object entry_load(const char *p, bint copy):
    """The value of an entry; `copy`: a container is thawed for the caller."""
    cdef Entry e = entry_head(p)
    cdef const char *value = entry_value(p, e)
    cdef int tag = e.tag & TAG_MASK
    cdef int64_t integer = 0
    cdef double number = 0
    if tag == TAG_STR:
        return ascii_from(value, e.value_len)
    if tag == TAG_INT:
        memcpy(&integer, value, sizeof(integer))
        return integer
    if tag == TAG_TRUE:
        return True
    if tag == TAG_FALSE:
        return False
    if tag == TAG_NONE:
        return None
    if tag == TAG_FLOAT:
        memcpy(&number, value, sizeof(number))
        return number
    if tag == TAG_BYTES:
        return PyBytes_FromStringAndSize(value, e.value_len)
    if tag == TAG_FROZEN and copy:
        return thaw(<object>entry_box(p, e).ref)
    return <object>entry_box(p, e).ref


cdef inline object entry_key_object(const char *p):
    cdef Entry e = entry_head(p)
    if e.tag & TAG_KEY_BOXED:
        return <object>entry_key_box(p)
    return ascii_from(entry_key(p), e.key_len)


cdef list record_keys(Record r):
    cdef list keys = []
    cdef const char *p = pack_of(r)
    cdef const char *end = p + r._bytes
    while p < end:
        keys.append(entry_key_object(p))
        p += entry_len(entry_head(p))
    return keys


cdef list record_items(Record r, bint copy):
    cdef list items = []
    cdef const char *p = pack_of(r)
    cdef const char *end = p + r._bytes
    while p < end:
        items.append((entry_key_object(p), entry_load(p, copy)))
        p += entry_len(entry_head(p))
    return items


# ---- writing -----------------------------------------------------------------------------------------------------

cdef enum:
    REMOVED = 0xFF              # a cell that takes its key away
    MATCH_INLINE = 32           # entries whose matches fit on the C stack
    MATCH_SCANNED = 16          # changes up to which comparing beats a dict

cdef struct Cell:               # one change on its way into a pack; keys and inline values are borrowed
    PyObject *key
    const char *key_bytes       # NULL: the key goes in as a reference
    Py_ssize_t key_len
    PyObject *box               # owned
    const char *value_bytes
    Py_ssize_t value_len
    int64_t integer
    double number
    Py_ssize_t weight
    Py_ssize_t box_weight
    uint8_t tag
    bint placed


cdef int cell_fill(Cell *c, object key, object value, bint any_object, bint adopt=False) except -1:
    """Classify one value; freezes it when it does not fit inline. `adopt`: see Freezing."""
    cdef Freezing f
    cdef Step step
    cell_fill_key(c, key)
    if cell_fill_inline(c, value):
        return 0
    f = Freezing(0, False, any_object, adopt)
    step = Step(NULL, <PyObject *>key, 0)
    frozen = freeze(value, &f, &step, 0)
    Py_INCREF(frozen)
    c.box = <PyObject *>frozen
    c.tag = TAG_FROZEN if f.mutable else TAG_SHARED
    c.value_len = sizeof(Boxed)
    c.box_weight = f.weight
    c.weight += f.weight
    return 0


cdef inline bint cell_fill_inline(Cell *c, object value) noexcept:
    """Fill in a value that fits inline; False: it does not. Runs nobody's code and takes no reference."""
    cdef type kind = type(value)
    cdef int overflow = 0
    c.value_bytes = NULL
    c.value_len = 0
    if kind is str and PyUnicode_IS_COMPACT_ASCII(value) and PyUnicode_GET_LENGTH(value) <= INLINE_MAX:
        c.tag = TAG_STR
        c.value_bytes = <const char *>PyUnicode_1BYTE_DATA(value)
        c.value_len = PyUnicode_GET_LENGTH(value)
    elif kind is int:
        c.integer = PyLong_AsLongLongAndOverflow(value, &overflow)
        if overflow:
            return False
        c.tag, c.value_bytes, c.value_len = TAG_INT, <const char *>&c.integer, sizeof(c.integer)
    elif value is None:
        c.tag = TAG_NONE
    elif kind is bool:
        c.tag = TAG_TRUE if value is True else TAG_FALSE
    elif kind is float:
        c.number = PyFloat_AS_DOUBLE(value)
        c.tag, c.value_bytes, c.value_len = TAG_FLOAT, <const char *>&c.number, sizeof(c.number)
    elif kind is bytes and PyBytes_GET_SIZE(value) <= INLINE_MAX:
        c.tag, c.value_bytes, c.value_len = TAG_BYTES, PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value)
    else:
        return False
    c.weight += c.value_len
    return True


cdef inline int require_str_key(object key) except -1:
    if type(key) is not str:
        raise TypeError(f"session keys are str, not {type(key).__name__}")
    return 0


cdef int cell_fill_key(Cell *c, object key) except -1:
    cdef Step step
    c.key = <PyObject *>key
    c.box = NULL
    c.placed = False
    c.weight = sizeof(Entry)
    if is_short_ascii(key):
        c.key_bytes = <const char *>PyUnicode_1BYTE_DATA(key)
        c.key_len = PyUnicode_GET_LENGTH(key)
        c.weight += c.key_len
    else:
        step = Step(NULL, <PyObject *>key, 0)
        c.key_bytes = NULL
        c.key_len = sizeof(PyObject *)
        text_weight(<str>key, &step)        # refuses lone surrogates
        c.weight += boxed_key_weight(<PyObject *>key)
    return 0


cdef inline Py_ssize_t cell_bytes(const Cell *c) noexcept:
    return <Py_ssize_t>sizeof(Entry) + c.key_len + c.value_len


cdef inline char *cell_place(Cell *c, char *p, Record r) noexcept:
    """Write the cell as an entry at `p`; its reference moves into the record. Returns the end."""
    cdef Entry e
    cdef Boxed b
    e.tag = c.tag
    e.key_len = <uint8_t>c.key_len
    e.value_len = <uint16_t>c.value_len
    if c.key_bytes == NULL:
        e.tag |= TAG_KEY_BOXED
        r._has_boxes = True
        Py_INCREF(<object>c.key)
        memcpy(p + sizeof(Entry), &c.key, sizeof(PyObject *))
    else:
        bytes_copy(p + sizeof(Entry), c.key_bytes, c.key_len)
    memcpy(p, &e, sizeof(Entry))
    p += sizeof(Entry) + c.key_len
    if c.box != NULL:
        b.ref = c.box
        b.weight = <uint32_t>c.box_weight
        memcpy(p, &b, sizeof(Boxed))
        r._has_boxes = True
        c.box = NULL
    elif c.value_len:
        bytes_copy(p, c.value_bytes, c.value_len)
    c.placed = True
    return p + c.value_len


cdef inline char *entry_copy(const char *from_, Entry e, char *p, Record r) noexcept:
    """Carry an unchanged entry over. Returns the end."""
    cdef Py_ssize_t n = entry_len(e)
    bytes_copy(p, from_, n)
    if e.tag & TAG_KEY_BOXED or entry_is_boxed(e):
        take_boxes(from_, from_ + n, r)
    return p + n


cdef Py_ssize_t cell_of_entry(const char *p, Cell *cells, Py_ssize_t n) noexcept:
    """Position of the change that concerns this entry's key, or -1."""
    cdef Entry e = entry_head(p)
    cdef Py_ssize_t i
    for i in range(n):
        if e.tag & TAG_KEY_BOXED:
            if cells[i].key_bytes == NULL and PyUnicode_Compare(<object>cells[i].key, <object>entry_key_box(p)) == 0:
                return i
        elif (cells[i].key_len == e.key_len and cells[i].key_bytes != NULL
              and bytes_equal(cells[i].key_bytes, entry_key(p), e.key_len)):
            return i
    return -1


cdef int match_cells(Record base, Cell *cells, Py_ssize_t n, Py_ssize_t *which) except -1:
    """For each entry of `base`, the change that concerns its key, or -1."""
    cdef const char *p = pack_of(base)
    cdef const char *end = p + base._bytes
    cdef Py_ssize_t i
    cdef dict index
    if n <= MATCH_SCANNED:
        while p < end:
            which[0] = cell_of_entry(p, cells, n)
            which += 1
            p += entry_len(entry_head(p))
        return 0
    index = {}                              # many changes: look keys up instead of comparing each with each
    for i in range(n):
        index[<object>cells[i].key] = i
    while p < end:
        which[0] = index.get(entry_key_object(p), -1)
        which += 1
        p += entry_len(entry_head(p))
    return 0


cdef Record pack_merge(Record base, Cell *cells, Py_ssize_t n, int64_t created, int64_t cap, int64_t ttl,
                       uint64_t birth, Py_ssize_t max_bytes):
    """A new record: `base`'s entries (None: no entries) with the cells laid over them, order kept; None if no data is left."""
    cdef Py_ssize_t few[MATCH_INLINE]
    cdef Py_ssize_t *which = few
    cdef Py_ssize_t entries = base._count if base is not None else 0
    if n == 1 and base is not None and cells[0].key_bytes != NULL and cells[0].tag != REMOVED:
        return pack_replace_one(base, &cells[0], ttl, max_bytes)
    if entries > MATCH_INLINE:
        which = <Py_ssize_t *>PyMem_Malloc(entries * sizeof(Py_ssize_t))
        if which == NULL:
            raise MemoryError()
    try:
        if entries:
            match_cells(base, cells, n, which)
        return pack_place(base, which, cells, n, created, cap, ttl, birth, max_bytes)
    finally:
        if which != few:
            PyMem_Free(which)


cdef Record pack_replace_one(Record base, Cell *c, int64_t ttl, Py_ssize_t max_bytes):
    """`pack_merge` for the usual request, which sets one short key: what stands around its entry is copied in two runs."""
    cdef const char *start = pack_of(base)
    cdef const char *end = start + base._bytes
    cdef const char *old = pack_find(start, end, c.key_bytes, c.key_len)
    cdef Py_ssize_t weight = base._weight + c.weight
    cdef Py_ssize_t old_len = 0, before
    cdef char *q
    cdef Record r
    if old != NULL:
        old_len = entry_len(entry_head(old))
        weight -= entry_weight(old, entry_head(old))
    else:
        old = end
    if 0 < max_bytes < weight:
        raise errors.SessionTooLarge(weight, max_bytes)
    r = record_new(base._bytes - old_len + cell_bytes(c))
    r._created, r._cap, r._birth = base._created, base._cap, base._birth
    r._ttl, r._weight, r._count = ttl, <uint32_t>weight, base._count + (old_len == 0)
    before = old - start
    bytes_copy(pack_of(r), start, before)
    q = cell_place(c, pack_of(r) + before, r)
    bytes_copy(q, old + old_len, end - old - old_len)
    if base._has_boxes:
        take_boxes(start, old, r)
        take_boxes(old + old_len, end, r)
    return r


cdef void take_boxes(const char *p, const char *end, Record r) noexcept:
    """Entries were copied as bytes into `r`: take the references that they hold."""
    cdef Entry e
    r._has_boxes = True
    while p < end:
        e = entry_head(p)
        if e.tag & TAG_KEY_BOXED:
            Py_INCREF(<object>entry_key_box(p))
        if entry_is_boxed(e):
            Py_INCREF(<object>entry_box(p, e).ref)
        p += entry_len(e)


cdef Record pack_place(Record base, const Py_ssize_t *which, Cell *cells, Py_ssize_t n, int64_t created, int64_t cap,
                       int64_t ttl, uint64_t birth, Py_ssize_t max_bytes):
    """The second half of `pack_merge`: measure, then write."""
    cdef Py_ssize_t size = 0, weight = 0, count = 0, i
    cdef const char *p = NULL
    cdef const char *end = NULL
    cdef char *q
    cdef Entry e
    cdef Record r
    if base is not None:
        p, end = pack_of(base), pack_of(base) + base._bytes
        i = 0
        while p < end:
            e = entry_head(p)
            if which[i] < 0:
                size += entry_len(e)
                weight += entry_weight(p, e)
                count += 1
            i += 1
            p += entry_len(e)
    for i in range(n):
        if cells[i].tag != REMOVED:
            size += cell_bytes(&cells[i])
            weight += cells[i].weight
            count += 1
    if count == 0:
        return None
    if 0 < max_bytes < weight:
        raise errors.SessionTooLarge(weight, max_bytes)
    r = record_new(size)                    # nothing below can fail
    r._created, r._cap, r._ttl, r._birth = created, cap, ttl, birth
    r._weight, r._count = <uint32_t>weight, <uint32_t>count
    q = pack_of(r)
    if base is not None:
        p = pack_of(base)
        i = 0
        while p < end:
            e = entry_head(p)
            if which[i] < 0:
                q = entry_copy(p, e, q, r)
            elif cells[which[i]].tag != REMOVED:
                q = cell_place(&cells[which[i]], q, r)
            i += 1
            p += entry_len(e)
    for i in range(n):
        if cells[i].tag != REMOVED and not cells[i].placed:
            q = cell_place(&cells[i], q, r)
    return r


cdef void cells_release(Cell *cells, Py_ssize_t n) noexcept:
    """Drop the references that did not move into a record."""
    cdef Py_ssize_t i
    for i in range(n):
        if cells[i].box != NULL:
            Py_CLEAR(cells[i].box)


cdef Record record_of_items(dict data, int64_t created, int64_t cap, int64_t ttl, uint64_t birth,
                            Py_ssize_t max_bytes, bint any_object):
    return merge_items(None, data, (), created, cap, ttl, birth, max_bytes, any_object)


cdef Record merge_items(Record base, dict values, object removed, int64_t created, int64_t cap, int64_t ttl,
                        uint64_t birth, Py_ssize_t max_bytes, bint any_object, bint adopt=False):
    cdef Py_ssize_t n = 0
    cdef Cell *cells = <Cell *>PyMem_Malloc((len(values) + len(removed) + 1) * sizeof(Cell))
    if cells == NULL:
        raise MemoryError()
    try:
        for key, value in values.items():
            require_str_key(key)
            cells[n].box = NULL
            n += 1
            cell_fill(&cells[n - 1], key, value, any_object, adopt)
        for key in removed:
            require_str_key(key)
            cells[n].box = NULL
            n += 1
            cell_fill_key(&cells[n - 1], key)
            cells[n - 1].tag = REMOVED
        return pack_merge(base, cells, n, created, cap, ttl, birth, max_bytes)
    finally:
        cells_release(cells, n)
        PyMem_Free(cells)


@cython.final
cdef class Delta:
    """One session's changes, ready to be applied to whatever its storage holds at commit time.

    Merging is by key: keys that this session neither wrote nor removed keep the stored value. `cleared` starts
    from nothing instead. `ttl` (ns; None = unchanged) is the session's own idle ttl.
    """
    cdef readonly dict values
    cdef readonly object removed
    cdef readonly bint cleared
    cdef readonly object ttl
    cdef Py_ssize_t _max_bytes
    cdef bint _any_object
    cdef object _key                # of a computed change: see `computing`
    cdef object _compute
    cdef object _default

    def __init__(self, values=None, removed=(), cleared=False, ttl=None, max_bytes=0, any_object=False):
        self.values = dict(values) if values is not None else {}
        self.removed = frozenset(removed)
        self.cleared = cleared
        self.ttl = ttl
        self._max_bytes = max_bytes
        self._any_object = any_object

    @staticmethod
    def computing(key, compute, default=None, max_bytes=0, any_object=False):
        """The change of one key to `compute(its value)`, computed anew for every state it is applied to."""
        cdef Delta d = Delta(max_bytes=max_bytes, any_object=any_object)
        d._key, d._compute, d._default = key, compute, default
        return d

    def against(self, Record record):
        """These changes without anything left to compute, for this state of the session. Runs the user's code."""
        cdef Delta d = self
        if self._compute is not None:
            value = self._default if record is None or self._key not in record else record[self._key]
            d = Delta({self._key: self._compute(value)}, max_bytes=self._max_bytes, any_object=self._any_object)
        return d

    def apply(self, Record record, int64_t now, int64_t cap):
        """The record that results from these changes on `record`; None: nothing is left to store.

        `record` None creates one: born `now`, ending at `cap` at the latest. Raises NotSerializable, SessionTooLarge.
        """
        return delta_apply(self if self._compute is None else self.against(record), record, now, cap)

    def __repr__(self):
        return f"<Delta: {len(self.values)} written, {len(self.removed)} removed{', cleared' if self.cleared else ''}>"


cdef frozenset NO_KEYS = frozenset()


cdef Delta delta_new(dict values, list removed, bint cleared, object ttl, Py_ssize_t max_bytes, bint any_object):
    """A Delta of values that nobody else holds."""
    cdef Delta d = Delta.__new__(Delta)
    d.values = values
    d.removed = frozenset(removed) if removed else NO_KEYS
    d.cleared = cleared
    d.ttl = ttl
    d._max_bytes = max_bytes
    d._any_object = any_object
    return d


cdef Record delta_apply(Delta d, Record record, int64_t now, int64_t cap):
    """`apply`, with nothing left to compute."""
    cdef int64_t ttl = d.ttl if d.ttl is not None else record._ttl if record is not None else 0
    if record is None:
        return merge_items(None, d.values, (), now, cap, ttl, new_birth(), d._max_bytes, d._any_object)
    return merge_items(None if d.cleared else record, d.values, d.removed, record._created, record._cap, ttl,
                       record._birth, d._max_bytes, d._any_object)
