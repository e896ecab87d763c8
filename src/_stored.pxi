# Place, Stored: where FileStorage keeps a record, and what this process last saw there; the steps of a request that
# go to the kernel (_file.pxd), each in one call. What they mean stands in cysession/storage/file/records.py.

cdef enum:
    FILE_TICK = 1000            # ns; what lies below it in a modification time counts the writes of a record
    FILE_STRIPES = 64
    TEMPORARY_MAX = 64
    FILE_KEPT = 4096            # bytes; what is larger is read again rather than kept in memory

cdef const char *HEX = "0123456789abcdef"
cdef int64_t MINUTE = 60_000_000_000


def stamp(int64_t now, int64_t before):
    """A modification time for `now` that differs from the one `before` it and counts as exact."""
    return stamp_after(now, before)


cdef inline int64_t stamp_after(int64_t now, int64_t before) noexcept:
    return now - now % FILE_TICK + before % FILE_TICK % (FILE_TICK - 1) + 1


cdef int64_t wall_or(clock) except? -1:
    """The time by a storage's clock, or without one by the wall."""
    return wall_now() if clock is None else round(clock() * 1_000_000_000)


@cython.final
@cython.no_gc
cdef class Stored:
    """What a record's file holds. Never changes: a cache of it may be shared by threads."""
    cdef readonly Record record     # of an alias: only its birth and its end
    cdef readonly str alias         # the storage key of the record that this one leads to
    cdef readonly int64_t idle      # the longest idle ttl of those who used it
    cdef readonly int64_t mtime
    cdef readonly uint64_t inode
    cdef readonly int64_t size

    TICK = FILE_TICK

    @property
    def last_use(self):
        return self.mtime - self.mtime % FILE_TICK

    @property
    def exact(self):
        """Whether the file system seems to keep times to the nanosecond: we never write a 0 there."""
        return self.mtime % FILE_TICK != 0

    def used_at(self, mtime, /):
        return stored_new(self.record, self.alias, self.idle, mtime, self.inode, self.size)

    def needs_longer(self, int64_t ttl, /):
        """Whether somebody who uses it would keep it for longer than it says."""
        return stored_needs_longer(self, ttl)

    def alive(self, int64_t now, int64_t ttl):
        return stored_alive(self, now, ttl)


def stored(Record record not None, str alias, int64_t idle, int64_t mtime, uint64_t inode, int64_t size):
    return stored_new(record, alias, idle, mtime, inode, size)


cdef Stored stored_new(Record record, str alias, int64_t idle, int64_t mtime, uint64_t inode, int64_t size):
    cdef Stored s = Stored.__new__(Stored)
    s.record, s.alias, s.idle = record, alias, idle
    s.mtime, s.inode, s.size = mtime, inode, size
    return s


cdef bint stored_alive(Stored s, int64_t now, int64_t ttl) noexcept:
    cdef int64_t idle = s.record._ttl or ttl or s.idle
    if now >= s.record._cap:
        return False
    return s.alias is not None or idle == 0 or now - (s.mtime - s.mtime % FILE_TICK) < idle


@cython.final
@cython.no_gc
cdef class Place:
    """The file of one session, by the 64 hex digits of its storage key."""
    cdef readonly str name          # below the directory: "a/b/<62 digits>"
    cdef readonly uint32_t seed     # CRC-32 of the key, to which the record's bytes are bound
    cdef readonly uint32_t stripe   # of the locks
    cdef readonly int flags         # the codec's FLAG_INDEX: no session is kept here
    cdef Stored _seen

    STRIPES = FILE_STRIPES
    KEPT = FILE_KEPT

    def __cinit__(self, str key not None, int flags=0):
        if not PyUnicode_IS_COMPACT_ASCII(key) or PyUnicode_GET_LENGTH(key) != 64:
            raise ValueError("a storage key is 64 hex digits")
        self.name = f"{key[0]}/{key[1]}/{key[2:]}"
        self.flags = flags
        self.seed = crc32(key.encode())
        self.stripe = int(key[62:], 16) % FILE_STRIPES

    @property
    def leaf(self):
        """The directory it lies in."""
        return self.name[:3]

    @property
    def key(self):
        return self.name.replace("/", "").encode()

    @property
    def seen(self):
        """What this process last saw there; None: it did not look, or it was not to be kept."""
        return place_seen(self)

    @seen.setter
    def seen(self, Stored stored):
        place_see(self, stored)

    def exchange(self, int root, Record base not None, Delta delta not None, clock, int64_t ttl, bytes prefix not None,
                 uint64_t number, bint flush):
        """Commit `delta` onto the record seen before, if one look shows that it is still stored.

        For the usual request, whose caller owns the lock. None: nothing has happened, and a second look will say what
        is to be done. Raises OSError, and what `delta` raises.
        """
        cdef Stored seen = place_seen(self)
        cdef Record merged
        cdef int64_t now = wall_or(clock), idle, mtime, size
        cdef char temporary[TEMPORARY_MAX]
        cdef bytes data
        if seen is None or seen.alias is not None or self.flags or delta._compute is not None:
            return None
        if seen.record._birth != base._birth or not stored_alive(seen, now, ttl) or place_look(self, root, seen) != 0:
            return None
        merged = delta_apply(delta, seen.record, now, seen.record._cap)
        if merged is None:                      # to be deleted
            return None
        idle, mtime = max(ttl, seen.idle), stamp_after(now, seen.mtime)
        data = frame_record(merged, 0, idle, self.seed)
        size = PyBytes_GET_SIZE(data)
        temporary_name(temporary, self.name, prefix, number)
        inode = place_replace(self, root, temporary, data, mtime, flush)
        place_see(self, stored_new(merged, None, idle, mtime, inode, size) if size <= FILE_KEPT else None)
        return merged

    def confirm(self, int root, /):
        """What was seen before, if it is still there; None: look again. Raises OSError."""
        cdef Stored seen = place_seen(self)
        cdef int outcome
        if seen is None:
            return None
        outcome = place_look(self, root, seen)
        if outcome > 0:
            raise OSError(outcome, os.strerror(outcome))
        return seen if outcome == 0 else None


def glance(dict places not None, session_id, int root, clock, int64_t ttl):
    """The record seen before, if one look shows that it is still stored and was used a moment ago; else None.

    For the usual request, which then has nothing to note. Whatever is wrong, a second look will say.
    """
    cdef Place place = places.get(session_id)
    cdef Stored seen
    cdef int64_t now, age, idle
    if place is None:
        return None
    seen = place_seen(place)
    if seen is None or seen.alias is not None or stored_needs_longer(seen, ttl) or place_look(place, root, seen) != 0:
        return None
    now, idle = wall_or(clock), seen.record._ttl or ttl
    age = now - seen.mtime
    if -FILE_TICK < age < use_lasts(idle) and now < seen.record._cap:
        return seen.record
    return None


cpdef inline int64_t use_lasts(int64_t idle) noexcept:
    """For how long after a use is noted no other one is, of a session that lives so long without any (ns)."""
    return min(idle // 20, MINUTE)


cdef inline bint stored_needs_longer(Stored stored, int64_t ttl) noexcept:
    return stored.record._ttl == 0 and 0 < stored.idle < ttl


cdef inline Stored place_seen(Place place):
    with cython.critical_section(place):
        return place._seen


cdef inline int place_see(Place place, Stored stored) except -1:
    with cython.critical_section(place):
        place._seen = stored
    return 0


cdef int place_look(Place place, int root, Stored seen) noexcept:
    """0: the file is the one that `seen` was read from. -1: another one. Else an errno."""
    cdef file_facts facts
    cdef const char *name = <const char *>PyUnicode_1BYTE_DATA(place.name)
    cdef int failed
    with nogil:
        failed = file_look(root, name, &facts)
    if failed:
        return failed
    return 0 if facts.mtime == seen.mtime and facts.inode == seen.inode and facts.size == seen.size else -1


def replace_file(int root, Place place not None, bytes prefix not None, uint64_t number, bytes data not None,
                 int64_t mtime, bint flush):
    """Write a new file and rename it over what is there, all or nothing. Its inode. Raises OSError.

    `prefix` and `number` name the file while it is written, in the same directory, so that nobody else uses that name.
    """
    cdef char temporary[TEMPORARY_MAX]
    temporary_name(temporary, place.name, prefix, number)
    return place_replace(place, root, temporary, data, mtime, flush)


cdef inline int temporary_name(char *to, str name, bytes prefix, uint64_t number) except -1:
    """The directory of `name`, `/`, the prefix and 16 hex digits."""
    cdef Py_ssize_t n = PyBytes_GET_SIZE(prefix)
    cdef int i
    if n > TEMPORARY_MAX - 24:
        raise ValueError("the prefix of a temporary name is too long")
    memcpy(to, PyUnicode_1BYTE_DATA(name), 4)
    memcpy(to + 4, PyBytes_AS_STRING(prefix), n)
    for i in range(16):
        to[4 + n + i] = HEX[(number >> (60 - 4 * i)) & 15]
    to[20 + n] = 0
    return 0


cdef uint64_t place_replace(Place place, int root, const char *new, bytes data, int64_t mtime, bint flush) except? 0:
    cdef const char *name = <const char *>PyUnicode_1BYTE_DATA(place.name)
    cdef const char *text = PyBytes_AS_STRING(data)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(data)
    cdef uint64_t inode = 0
    cdef int failed
    with nogil:
        failed = file_replace(root, new, name, text, size, mtime, flush, &inode)
    if failed:
        raise OSError(failed, os.strerror(failed))
    return inode


def read_file(int root, str name not None, int64_t limit):
    """(contents, modification time, inode, size). Contents None: not a regular file of this user, or above `limit`."""
    cdef const char *path = PyUnicode_AsUTF8(name)
    cdef file_facts facts
    cdef Py_ssize_t size = 0
    cdef int fd = -1, failed, closed
    cdef object data = None
    cdef char *to
    with nogil:
        failed = file_open(root, path, &fd, &facts)
    if failed:
        raise OSError(failed, os.strerror(failed))
    try:
        if file_ours(&facts) and facts.size <= limit:
            size = <Py_ssize_t>facts.size
            data = PyBytes_FromStringAndSize(NULL, size)
            to = PyBytes_AS_STRING(data)
            with nogil:
                failed = file_read(fd, to, &size)
    finally:
        with nogil:
            closed = file_close(fd)
    if failed or closed:
        raise OSError(failed or closed, os.strerror(failed or closed))
    if data is not None and size < facts.size:
        data = data[:size]
    return data, facts.mtime, facts.inode, facts.size


def own_lock(int fd, /):
    """Own an open lock file. False: owned, but nobody else would find it any more. Raises OSError (BlockingIOError)."""
    cdef file_facts facts
    cdef int failed
    with nogil:
        failed = file_lock(fd, &facts)
    if failed:
        raise OSError(failed, os.strerror(failed))
    return facts.links


def disown_lock(int fd, /):
    """Raises OSError."""
    cdef int failed
    with nogil:
        failed = file_unlock(fd)
    if failed:
        raise OSError(failed, os.strerror(failed))
