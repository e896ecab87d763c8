# What is written: the data of a record as MessagePack, in one pass over its pack and the frozen containers in it.
#
# MessagePack's own types take their shortest form, as in the msgpack package. A tuple, set or frozenset is an array that
# begins with a marker; a set's members are sorted by their bytes, so equal data gives equal bytes anywhere. Scalars of
# rarer types come from the codec: `scalar_to_ext(value)` answers (code, bytes) of an extension value (cysession/codec.py).
#
# What is walked over is frozen, so it does not change under the walk, holds no cycle and is at most DEPTH_MAX deep.

scalar_to_ext = None


def _use_scalars(to_ext):
    """The codec hands its hook down once, at import."""
    global scalar_to_ext
    scalar_to_ext = to_ext


cdef enum:
    EXT_CONTAINER = 1           # the codec's marker: the array that it opens is a tuple, set or frozenset
    WRITER_INLINE = 1024

cdef struct Writer:             # bytes in the making; `few` until there are too many
    char *data
    Py_ssize_t used
    Py_ssize_t room
    char few[WRITER_INLINE]


cdef inline void writer_init(Writer *w) noexcept:
    w.data = w.few
    w.used = 0
    w.room = WRITER_INLINE


cdef inline void writer_free(Writer *w) noexcept:
    if w.data != w.few:
        PyMem_Free(w.data)


cdef inline char *writer_room(Writer *w, Py_ssize_t n) except NULL:
    """Where to write the next `n` bytes, which count as written."""
    if w.used + n > w.room:
        writer_grow(w, n)
    w.used += n
    return w.data + w.used - n


cdef int writer_grow(Writer *w, Py_ssize_t n) except -1:
    cdef Py_ssize_t room = 2 * (w.used + n)
    cdef char *data = <char *>PyMem_Realloc(NULL if w.data == w.few else w.data, room)
    if data == NULL:
        raise MemoryError()
    if w.data == w.few:
        memcpy(data, w.few, w.used)
    w.data, w.room = data, room
    return 0


cpdef bytes msgpack_of_record(Record record):
    """The data of a record as a MessagePack map. Raises NotSerializable for what only a memory storage can hold."""
    cdef Writer w
    writer_init(&w)
    try:
        write_pack(&w, record)
        return PyBytes_FromStringAndSize(w.data, w.used)
    finally:
        writer_free(&w)


def msgpack_of(value, /):
    """Any value as MessagePack. Raises NotSerializable with the path of keys."""
    cdef Freezing f = Freezing(0, False, False, False)
    cdef Writer w
    frozen = freeze(value, &f, NULL, 0)         # a private copy: what is checked is what is written
    writer_init(&w)
    try:
        write_value(&w, frozen, NULL)
        return PyBytes_FromStringAndSize(w.data, w.used)
    finally:
        writer_free(&w)


cdef int write_pack(Writer *w, Record r) except -1:
    cdef const char *p = pack_of(r)
    cdef const char *end = p + r._bytes
    cdef Entry e
    cdef Step step
    write_count(w, r._count, 0x80, 0xDE)
    while p < end:
        e = entry_head(p)
        if e.tag & TAG_KEY_BOXED:
            write_str(w, <object>entry_key_box(p))
        else:
            write_text(w, entry_key(p), e.key_len)
        if entry_is_boxed(e):
            key = entry_key_object(p)
            step = Step(NULL, <PyObject *>key, 0)
            write_value(w, <object>entry_box(p, e).ref, &step)
        else:
            write_inline(w, e, entry_value(p, e))
        p += entry_len(e)
    return 0


cdef inline int write_inline(Writer *w, Entry e, const char *value) except -1:
    """A value that lies in the pack itself."""
    cdef int tag = e.tag & TAG_MASK
    cdef int64_t integer = 0
    cdef double number = 0
    if tag == TAG_STR:
        return write_text(w, value, e.value_len)
    if tag == TAG_INT:
        memcpy(&integer, value, sizeof(integer))
        return write_int(w, integer)
    if tag == TAG_FLOAT:
        memcpy(&number, value, sizeof(number))
        return write_float(w, number)
    if tag == TAG_BYTES:
        return write_bytes(w, value, e.value_len)
    return write_byte(w, 0xC0 if tag == TAG_NONE else 0xC3 if tag == TAG_TRUE else 0xC2)


cdef int write_value(Writer *w, object value, const Step *path) except -1:
    cdef type kind = type(value)
    cdef Step step = Step(path, NULL, 0)
    cdef Py_ssize_t n
    if kind is str:
        return write_str(w, value)
    if kind is int:
        return write_integer(w, value)
    if value is None:
        return write_byte(w, 0xC0)
    if kind is bool:
        return write_byte(w, 0xC3 if value is True else 0xC2)
    if kind is float:
        return write_float(w, PyFloat_AS_DOUBLE(value))
    if kind is bytes:
        return write_bytes(w, PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))
    if kind is list:
        n = len(<list>value)
        write_count(w, n, 0x90, 0xDC)
        for step.index in range(n):
            write_value(w, (<list>value)[step.index], &step)
        return 0
    if kind is dict:
        write_count(w, len(<dict>value), 0x80, 0xDE)
        for key, item in (<dict>value).items():
            step.key = <PyObject *>key
            write_value(w, key, &step)
            write_value(w, item, &step)
        return 0
    if kind is tuple:
        n = len(<tuple>value)
        write_marked(w, n, c"t")
        for step.index in range(n):
            write_value(w, (<tuple>value)[step.index], &step)
        return 0
    if kind is set or kind is frozenset:
        return write_set(w, value, c"s" if kind is set else c"f", &step)
    if not is_plain_scalar(value, kind, path, False):
        refuse(path, f"a value of type {kind.__qualname__}")
    code, data = scalar_to_ext(value)
    return write_ext(w, code, data)


cdef int write_set(Writer *w, object members, char kind, Step *step) except -1:
    """Each member once, wherever it ends up: one that is a set of sets would else be written 2**depth times."""
    cdef list written = []
    cdef Py_ssize_t start = w.used
    for item in members:
        step.key = <PyObject *>item
        write_value(w, item, step)
        written.append(PyBytes_FromStringAndSize(w.data + start, w.used - start))
        w.used = start
    written.sort()
    write_marked(w, len(written), kind)
    for data in written:
        write_raw(w, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
    return 0


# ---- MessagePack's forms ------------------------------------------------------------------------------------------

cdef inline int write_byte(Writer *w, int byte) except -1:
    writer_room(w, 1)[0] = <char>byte
    return 0


cdef inline int write_raw(Writer *w, const char *data, Py_ssize_t n) except -1:
    bytes_copy(writer_room(w, n), data, n)
    return 0


cdef inline int write_number(Writer *w, int form, uint64_t bits, int size) except -1:
    """A byte that says what it is, and `size` bytes, the highest first."""
    cdef char *to = writer_room(w, 1 + size)
    cdef int i
    to[0] = <char>form
    for i in range(size):
        to[1 + i] = <char>(bits >> (8 * (size - 1 - i)))
    return 0


cdef inline int write_length(Writer *w, int form, Py_ssize_t n) except -1:
    """A length in 1, 2 or 4 bytes, whose forms follow each other."""
    if n <= 0xFF:
        return write_number(w, form, n, 1)
    if n <= 0xFFFF:
        return write_number(w, form + 1, n, 2)
    return write_number(w, form + 2, n, 4)


cdef inline int write_text(Writer *w, const char *utf8, Py_ssize_t n) except -1:
    if n <= 31:
        write_byte(w, 0xA0 | <int>n)
    else:
        write_length(w, 0xD9, n)
    return write_raw(w, utf8, n)


cdef int write_str(Writer *w, object text) except -1:
    cdef Py_ssize_t n = 0
    cdef const char *utf8 = PyUnicode_AsUTF8AndSize(text, &n)
    return write_text(w, utf8, n)


cdef inline int write_bytes(Writer *w, const char *data, Py_ssize_t n) except -1:
    write_length(w, 0xC4, n)
    return write_raw(w, data, n)


cdef inline int write_float(Writer *w, double number) except -1:
    cdef uint64_t bits = 0
    memcpy(&bits, &number, sizeof(bits))
    return write_number(w, 0xCB, bits, 8)


cdef inline int write_count(Writer *w, Py_ssize_t n, int few, int many) except -1:
    """The head of an array or a map."""
    if n <= 15:
        return write_byte(w, few | <int>n)
    if n <= 0xFFFF:
        return write_number(w, many, n, 2)
    return write_number(w, many + 1, n, 4)


cdef int write_marked(Writer *w, Py_ssize_t n, char kind) except -1:
    """The head of an array of `n`, and before those a marker that says what it stands for."""
    write_count(w, n + 1, 0x90, 0xDC)
    write_number(w, 0xD4, EXT_CONTAINER, 1)
    return write_byte(w, kind)


cdef int write_ext(Writer *w, int code, bytes data) except -1:
    cdef Py_ssize_t n = len(data)
    if n == 1 or n == 2 or n == 4 or n == 8 or n == 16:
        write_byte(w, 0xD4 if n == 1 else 0xD5 if n == 2 else 0xD6 if n == 4 else 0xD7 if n == 8 else 0xD8)
    else:
        write_length(w, 0xC7, n)
    write_byte(w, code)
    return write_raw(w, PyBytes_AS_STRING(data), n)


cdef int write_integer(Writer *w, object value) except -1:
    """An int of any size: MessagePack has those of 64 bits, with and without a sign."""
    cdef int overflow = 0
    cdef int64_t n = PyLong_AsLongLongAndOverflow(value, &overflow)
    if not overflow:
        return write_int(w, n)
    if overflow > 0 and value < 0x10000000000000000:
        return write_number(w, 0xCF, <uint64_t>value, 8)
    code, data = scalar_to_ext(value)
    return write_ext(w, code, data)


cdef inline int write_int(Writer *w, int64_t n) except -1:
    if -32 <= n <= 127:
        return write_byte(w, <int>(n & 0xFF))
    if n >= 0:
        if n <= 0xFF:
            return write_number(w, 0xCC, <uint64_t>n, 1)
        if n <= 0xFFFF:
            return write_number(w, 0xCD, <uint64_t>n, 2)
        if n <= 0xFFFFFFFF:
            return write_number(w, 0xCE, <uint64_t>n, 4)
        return write_number(w, 0xCF, <uint64_t>n, 8)
    if n >= -0x80:
        return write_number(w, 0xD0, <uint64_t>n, 1)
    if n >= -0x8000:
        return write_number(w, 0xD1, <uint64_t>n, 2)
    if n >= -0x80000000:
        return write_number(w, 0xD2, <uint64_t>n, 4)
    return write_number(w, 0xD3, <uint64_t>n, 8)
