# What RedisStorage asks of the core: a session as one string, packed commands, one exchange with a server. What they
# mean stands in cysession/storage/redis: records.py, wire.py, link.py.

cdef enum:
    STRING_TOKENS = 32          # of the last four writes
    STRING_RECORD = 40          # where the record's frame begins: behind the last use and the tokens
    STRING_SHORT = 1024         # bytes that are sent more quickly than both sides digest them
    DIGEST = 40                 # bytes of a digest, which no session is as short as

cdef int64_t MILLISECOND = 1_000_000
cdef int64_t MILLISECONDS_MAX = 100 * 365 * 86_400_000      # a server refuses times beyond its own reckoning
cdef int64_t MILLISECONDS_SPARE = 3_600_000


@cython.final
@cython.no_gc
cdef class StoredRemote:
    """What is stored of one session in Redis. Never changes: threads and tasks may share it."""
    cdef readonly Record record     # of an alias: only its birth and its end
    cdef readonly str alias         # the storage key of the record that this one leads to
    cdef readonly int64_t idle      # the last writer's idle ttl
    cdef readonly int64_t used
    cdef readonly bytes tokens
    cdef readonly bytes head        # what holds all of the above but data: a string, whole, or the head of a hash
    cdef readonly object raw        # the reply that it is read from: an equal one needs no decoding
    cdef readonly Py_ssize_t size   # bytes, about
    cdef readonly object checks     # of a hash: what is known of every field

    LIFE_MAX = MILLISECONDS_MAX

    def life(self, int64_t ttl, int64_t now, int64_t used, clock):
        """Milliseconds that its key has to live from `now` on if `used` was its last use; 0: none.

        Where a clock of the manager's decides, an hour more: the key merely has to be cleaned up some day.
        """
        return remote_life(self, ttl, now, used, clock is not None)

    def rests(self, int64_t noted, int64_t ttl, clock):
        """Whether it lives, and a use that was noted then does for one now."""
        cdef int64_t now = wall_or(clock), age = now - noted
        return 0 <= age < use_lasts(self.record._ttl or ttl) and now < self.record._cap


cdef int64_t remote_life(StoredRemote s, int64_t ttl, int64_t now, int64_t used, bint clocked) noexcept:
    cdef int64_t idle = s.record._ttl or ttl or s.idle
    cdef int64_t end = s.record._cap, left
    if idle and used < end - idle:
        end = used + idle
    if end <= now:
        return 0
    left = (end - now) // MILLISECOND + ((end - now) % MILLISECOND != 0)
    return min(left, MILLISECONDS_MAX) + (MILLISECONDS_SPARE if clocked else 0)


def stored_remote(Record record not None, str alias, int64_t idle, int64_t used, bytes tokens not None,
                  bytes head not None, raw, Py_ssize_t size, checks=None):
    return remote_new(record, alias, idle, used, tokens, head, raw, size, checks)


cdef StoredRemote remote_new(Record record, str alias, int64_t idle, int64_t used, bytes tokens, bytes head, object raw,
                             Py_ssize_t size, object checks):
    cdef StoredRemote s = StoredRemote.__new__(StoredRemote)
    s.record, s.alias, s.idle, s.used = record, alias, idle, used
    s.tokens, s.head, s.raw, s.size, s.checks = tokens, head, raw, size, checks
    return s


def stored_string(Record record not None, int64_t idle, int64_t used, bytes tokens not None, uint32_t seed):
    """A session as one string, bound to its tokens and to the key whose CRC-32 is `seed`.

    Raises NotSerializable, SessionTooLarge.
    """
    return string_new(record, idle, used, tokens, seed)


def string_version(bytes raw not None):
    """What a commit shows of what it has read: all but the last use, or of what is long a digest.

    The digest is one that Redis can compute, too. It tells versions apart and keeps nobody out.
    """
    version = PyBytes_FromStringAndSize(PyBytes_AS_STRING(raw) + 8, max(PyBytes_GET_SIZE(raw) - 8, 0))
    if DIGEST < PyBytes_GET_SIZE(version) <= STRING_SHORT:
        return version
    from hashlib import sha1        # here: it loads OpenSSL, which sessions in memory do not need

    return sha1(version, usedforsecurity=False).hexdigest().encode()


def string_attempt(StoredRemote stored not None, Delta delta not None, bytes token not None, int64_t ttl, clock,
                   bytes front not None, bytes key not None, uint32_t seed):
    """One try to commit onto what is stored: (what that makes of it, None for a deletion; the packed command).

    front: the command up to its arguments, which are the key, what was read, the new string and the milliseconds that
    it has to live. Raises what `delta` raises.
    """
    cdef int64_t now = wall_or(clock), life = 0
    cdef Record merged = delta.apply(stored.record, now, stored.record._cap)
    cdef StoredRemote made = None
    if merged is not None:
        made = string_new(merged, ttl, now, token + stored.tokens[:STRING_TOKENS - 8], seed)
        life = remote_life(made, ttl, now, now, clock is not None)
    return made, packed(front, (key, string_version(stored.head), b"" if made is None else made.head, life), b"")


cdef StoredRemote string_new(Record record, int64_t idle, int64_t used, bytes tokens, uint32_t seed):
    cdef bytes framed, raw
    cdef Py_ssize_t size
    cdef char *to
    if PyBytes_GET_SIZE(tokens) != STRING_TOKENS:
        raise ValueError("the tokens of four writes")
    framed = frame_record(record, 0, idle, crc32(tokens, seed))
    size = STRING_RECORD + PyBytes_GET_SIZE(framed)
    raw = PyBytes_FromStringAndSize(NULL, size)
    to = PyBytes_AS_STRING(raw)
    put_little(to, <uint64_t>used, 8)
    memcpy(to + STRING_RECORD - STRING_TOKENS, PyBytes_AS_STRING(tokens), STRING_TOKENS)
    memcpy(to + STRING_RECORD, PyBytes_AS_STRING(framed), PyBytes_GET_SIZE(framed))
    return remote_new(record, None, idle, used, tokens, raw, raw, size, None)


def packed(bytes front not None, tuple parts not None, bytes back not None):
    """A command as it goes over the wire: `parts`, each bytes or an int, between what is packed already."""
    cdef Writer w
    writer_init(&w)
    try:
        write_raw(&w, PyBytes_AS_STRING(front), PyBytes_GET_SIZE(front))
        for part in parts:
            write_bulk(&w, part if type(part) is bytes else b"%d" % part)
        write_raw(&w, PyBytes_AS_STRING(back), PyBytes_GET_SIZE(back))
        return PyBytes_FromStringAndSize(w.data, w.used)
    finally:
        writer_free(&w)


cdef int write_bulk(Writer *w, bytes part) except -1:
    """A string as Redis reads it: its length, a line of its own, and its bytes, with a line end."""
    cdef Py_ssize_t size = PyBytes_GET_SIZE(part), left = size
    cdef char digits[24]
    cdef int n = sizeof(digits)
    n -= 2
    memcpy(digits + n, b"\r\n", 2)
    while True:
        n -= 1
        digits[n] = <char>(c"0" + left % 10)
        left //= 10
        if left == 0:
            break
    write_byte(w, c"$")
    write_raw(w, digits + n, <Py_ssize_t>sizeof(digits) - n)
    write_raw(w, PyBytes_AS_STRING(part), size)
    return write_raw(w, b"\r\n", 2)


def limit_socket(int fd, double seconds):
    """Let the kernel end every wait of a blocking socket after some seconds. False: it cannot."""
    return socket_limit(fd, <int64_t>(seconds * 1e9)) == 0


def trade(int fd, bytes data not None, bytearray buffer not None):
    """Write all of `data`, wait for an answer and read what there is of it: how many bytes, 0 at the end of the stream.

    Below 0 if a signal came in between, and its handler did not raise, or if the time was over with a part written: -1 - n
    means that n bytes were written and nothing is read yet. Raises OSError, a TimeoutError after the time that `limit_socket` has set.
    """
    cdef const char *p = PyBytes_AS_STRING(data)
    cdef char *to = PyByteArray_AS_STRING(buffer)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(data), room = PyByteArray_GET_SIZE(buffer), sent = 0, received = 0
    cdef int failed
    with nogil:
        failed = socket_trade(fd, p, size, to, room, &sent, &received)
    if failed == 0:
        return received
    if failed == EINTR:
        PyErr_CheckSignals()
        return -1 - sent
    if failed == EAGAIN:
        raise TimeoutError()
    raise OSError(failed, os.strerror(failed))
