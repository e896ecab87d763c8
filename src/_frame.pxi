# Frames: the header of a stored record and the checksum over all of it. cysession/codec.py says what each part means;
# this is where the bytes are put and read.

cdef enum:
    FRAME_FORMAT = 1
    FRAME_HEAD = 40             # what a record is, before its payload is known
    FRAME_HEADER = 48           # and the payload's length and the checksum
    FRAME_MAX = 16 * 1024 * 1024
    FLAG_OWN_TTL = 1
    FLAG_ALIAS = 2
    FLAG_SEALED = 4
    FLAG_INDEX = 8
    FLAGS_KNOWN = 15


@cython.final
@cython.no_gc
cdef class Header:
    """The fixed part of a record: enough to know whether it still lives, without reading its data."""
    cdef readonly int flags
    cdef readonly uint64_t birth
    cdef readonly int64_t created
    cdef readonly int64_t cap
    cdef readonly int64_t idle
    cdef readonly Py_ssize_t length
    cdef readonly uint32_t crc

    MAGIC = b"CySR"
    FORMAT = FRAME_FORMAT
    HEAD_SIZE = FRAME_HEAD
    SIZE = FRAME_HEADER
    RECORD_MAX = FRAME_MAX
    OWN_TTL = FLAG_OWN_TTL
    ALIAS = FLAG_ALIAS
    SEALED = FLAG_SEALED
    INDEX = FLAG_INDEX

    @property
    def own_ttl(self):
        return self.idle if self.flags & FLAG_OWN_TTL else 0


cdef inline void put_little(char *to, uint64_t bits, int size) noexcept:
    cdef int i
    for i in range(size):
        to[i] = <char>(bits >> (8 * i))


cdef inline uint64_t get_little(const char *p, int size) noexcept:
    cdef uint64_t bits = 0
    cdef int i
    for i in range(size):
        bits |= <uint64_t><uint8_t>p[i] << (8 * i)
    return bits


def head_of(Record record not None, int flags, int64_t idle):
    """The first HEAD_SIZE bytes of a record's frame. `idle` counts if the session has no ttl of its own."""
    return frame_head(record, flags, idle)


cdef bytes frame_head(Record record, int flags, int64_t idle):
    cdef bytes head = PyBytes_FromStringAndSize(NULL, FRAME_HEAD)
    cdef char *to = PyBytes_AS_STRING(head)
    if record._ttl:
        flags |= FLAG_OWN_TTL
        idle = record._ttl
    memcpy(to, <const char *>b"CySR", 4)
    to[4] = FRAME_FORMAT
    to[5] = <char>flags
    put_little(to + 6, 0, 2)
    put_little(to + 8, record._birth, 8)
    put_little(to + 16, <uint64_t>record._created, 8)
    put_little(to + 24, <uint64_t>record._cap, 8)
    put_little(to + 32, <uint64_t>idle, 8)
    return head


def framed(bytes head not None, bytes payload not None, uint32_t seed):
    """The whole frame. `seed`: CRC-32 of what the record is bound to. Raises SessionTooLarge."""
    return frame_whole(head, payload, seed)


cdef bytes frame_record(Record record, int flags, int64_t idle, uint32_t seed):
    """A record as bytes. Raises NotSerializable, SessionTooLarge."""
    return frame_whole(frame_head(record, flags, idle), msgpack_of_record(record), seed)


cdef bytes frame_whole(bytes head, bytes payload, uint32_t seed):
    cdef Py_ssize_t length = PyBytes_GET_SIZE(payload)
    cdef uint32_t crc
    if length > FRAME_MAX - FRAME_HEADER:
        raise errors.SessionTooLarge(length, FRAME_MAX - FRAME_HEADER)
    crc = crc32(payload, crc32(head, seed))
    cdef bytes made = PyBytes_FromStringAndSize(NULL, FRAME_HEADER + length)
    cdef char *to = PyBytes_AS_STRING(made)
    memcpy(to, PyBytes_AS_STRING(head), FRAME_HEAD)
    put_little(to + FRAME_HEAD, <uint64_t>length, 4)
    put_little(to + FRAME_HEAD + 4, crc, 4)
    memcpy(to + FRAME_HEADER, PyBytes_AS_STRING(payload), length)
    return made


def header_of(bytes data not None):
    """The header at the start of `data`, which need not be the whole record. Checks no checksum. Raises CorruptRecord."""
    cdef const char *p = PyBytes_AS_STRING(data)
    cdef Header h
    if PyBytes_GET_SIZE(data) < FRAME_HEADER:
        raise errors.CorruptRecord("shorter than a record's header")
    if not bytes_equal(p, b"CySR", 4):
        raise errors.CorruptRecord("not a cysession record")
    if p[4] != FRAME_FORMAT or p[5] & ~FLAGS_KNOWN or p[6] or p[7]:
        raise errors.CorruptRecord("a record of an unknown format")
    h = Header.__new__(Header)
    h.flags = p[5]
    h.birth = get_little(p + 8, 8)
    h.created = <int64_t>get_little(p + 16, 8)
    h.cap = <int64_t>get_little(p + 24, 8)
    h.idle = <int64_t>get_little(p + 32, 8)
    h.length = <Py_ssize_t>get_little(p + FRAME_HEAD, 4)
    h.crc = <uint32_t>get_little(p + FRAME_HEAD + 4, 4)
    return h


def unframed(bytes data not None, uint32_t seed):
    """The header and the payload of a whole, unchanged record. Raises CorruptRecord."""
    cdef const char *p = PyBytes_AS_STRING(data)
    cdef Py_ssize_t length = PyBytes_GET_SIZE(data) - FRAME_HEADER
    cdef Header h
    if PyBytes_GET_SIZE(data) > FRAME_MAX:
        raise errors.CorruptRecord("larger than any record")
    h = header_of(data)
    if h.length != length:
        raise errors.CorruptRecord("a torn record")
    payload = PyBytes_FromStringAndSize(p + FRAME_HEADER, length)
    if h.crc != <uint32_t>crc32(payload, crc32(PyBytes_FromStringAndSize(p, FRAME_HEAD), seed)):
        raise errors.CorruptRecord("a damaged record, or one that belongs elsewhere")
    if h.birth == 0 or h.idle < 0:
        raise errors.CorruptRecord("a record with an impossible header")
    return h, payload


def record_of(Header h not None, dict data not None):
    """The record of a header and its payload's data, which nobody else has: its containers are frozen as they are.

    Raises NotSerializable, or TypeError for a key that is not a str.
    """
    cdef Record r = merge_items(None, data, (), h.created, h.cap, h.idle if h.flags & FLAG_OWN_TTL else 0, h.birth, 0,
                                False, True)
    return r if r is not None else record_empty(h.created, h.cap, h.idle if h.flags & FLAG_OWN_TTL else 0, h.birth)
