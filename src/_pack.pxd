# cython: language_level=3
"""The packed form of one session's data: a run of entries in one block of memory, as a Record carries it.

    entry = tag (1 byte) | key length (1) | value length (2) | key bytes | value bytes

Short ASCII strings, short bytes, 64-bit ints, floats, bools and None lie inline, so a small session is one object
instead of a dict, its key table and its strings: a third of the memory, and two cache misses less to read a value
when a million sessions are live. Everything else is an owned reference (`Boxed`) to an object nobody changes: big
scalars as they came, containers as private frozen copies. Keys that are not short ASCII are owned references too.

A look-up walks the entries. Whoever wants all of them walks once: see `record_find_from`.

Nothing in a pack can reach back to the pack, so no cycle runs through it and the collector need not see it.
"""
from cpython.object cimport PyObject
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy

cdef extern from * nogil:
    """
    #include <string.h>
    /* Equality of two short runs of bytes, inline: a call of memcmp costs more than the comparison. */
    static inline int bytes_equal(const char *a, const char *b, Py_ssize_t n) {
        uint64_t x, y, left;
        uint32_t v, w;
        if (n >= 8) {
            const char *last = a + n - 8;
            for (; a < last; a += 8, b += 8) {
                memcpy(&x, a, 8); memcpy(&y, b, 8);
                if (x != y) return 0;
            }
            left = (uint64_t)(a - last);        /* the last eight bytes overlap what was compared */
            memcpy(&x, a - left, 8); memcpy(&y, b - left, 8);
            return x == y;
        }
        if (n >= 4) {
            memcpy(&v, a, 4); memcpy(&w, b, 4);
            if (v != w) return 0;
            memcpy(&v, a + n - 4, 4); memcpy(&w, b + n - 4, 4);
            return v == w;
        }
        while (n-- > 0) if (a[n] != b[n]) return 0;
        return 1;
    }
    /* The same for copying. The runs do not overlap. */
    static inline void bytes_copy(char *to, const char *from, Py_ssize_t n) {
        if (n > 128) { memcpy(to, from, (size_t)n); return; }
        if (n >= 16) {
            const char *last = from + n - 16;
            char *to_last = to + n - 16;
            for (; from < last; from += 16, to += 16) memcpy(to, from, 16);
            memcpy(to_last, last, 16);
            return;
        }
        if (n >= 8) { uint64_t x, y; memcpy(&x, from, 8); memcpy(&y, from + n - 8, 8);
                      memcpy(to, &x, 8); memcpy(to + n - 8, &y, 8); return; }
        if (n >= 4) { uint32_t v, w; memcpy(&v, from, 4); memcpy(&w, from + n - 4, 4);
                      memcpy(to, &v, 4); memcpy(to + n - 4, &w, 4); return; }
        while (n-- > 0) to[n] = from[n];
    }
    /* What a boxed key counts against max_bytes: its own bytes, whichever way it came into a pack. */
    #define boxed_key_weight(key) (PyUnicode_GET_LENGTH(key) * (Py_ssize_t)PyUnicode_KIND(key))
    """
    Py_ssize_t boxed_key_weight(PyObject *key) noexcept
    bint bytes_equal(const char *a, const char *b, Py_ssize_t n) noexcept
    void bytes_copy(char *to, const char *from_, Py_ssize_t n) noexcept

cdef enum:
    INLINE_MAX = 1023       # longer strings and bytes are shared by reference instead of copied by each commit
    KEY_MAX = 255

cdef enum Tag:
    TAG_NONE = 0
    TAG_FALSE = 1
    TAG_TRUE = 2
    TAG_INT = 3
    TAG_FLOAT = 4
    TAG_STR = 5
    TAG_BYTES = 6
    TAG_SHARED = 7          # immutable object, handed out as it is
    TAG_FROZEN = 8          # holds something mutable: every reader gets a copy of its own
    TAG_MASK = 0x7F
    TAG_KEY_BOXED = 0x80    # the key is an owned reference to a str

cdef struct Entry:
    uint8_t tag
    uint8_t key_len
    uint16_t value_len

cdef packed struct Boxed:
    PyObject *ref
    uint32_t weight         # what the object counts against max_bytes


cdef inline Entry entry_head(const char *p) noexcept nogil:
    cdef Entry e
    memcpy(&e, p, sizeof(Entry))
    return e


cdef inline Py_ssize_t entry_len(Entry e) noexcept nogil:
    return <Py_ssize_t>sizeof(Entry) + e.key_len + e.value_len


cdef inline const char *entry_key(const char *p) noexcept nogil:
    return p + sizeof(Entry)


cdef inline const char *entry_value(const char *p, Entry e) noexcept nogil:
    return p + sizeof(Entry) + e.key_len


cdef inline bint entry_is_boxed(Entry e) noexcept nogil:
    return (e.tag & TAG_MASK) >= TAG_SHARED


cdef inline Boxed entry_box(const char *p, Entry e) noexcept nogil:
    cdef Boxed b
    memcpy(&b, entry_value(p, e), sizeof(Boxed))
    return b


cdef inline PyObject *entry_key_box(const char *p) noexcept nogil:
    cdef PyObject *key = NULL
    memcpy(&key, entry_key(p), sizeof(PyObject *))
    return key


cdef inline Py_ssize_t entry_weight(const char *p, Entry e) noexcept nogil:
    cdef Py_ssize_t weight = <Py_ssize_t>sizeof(Entry)
    weight += boxed_key_weight(entry_key_box(p)) if e.tag & TAG_KEY_BOXED else e.key_len
    return weight + (entry_box(p, e).weight if entry_is_boxed(e) else e.value_len)


cdef inline const char *pack_find(const char *p, const char *end, const char *key, Py_ssize_t key_len) noexcept nogil:
    """The entry of a short ASCII key, or NULL."""
    cdef Entry e
    while p < end:
        e = entry_head(p)
        if e.key_len == key_len and not (e.tag & TAG_KEY_BOXED) and bytes_equal(entry_key(p), key, key_len):
            return p
        p += entry_len(e)
    return NULL
