# cython: language_level=3
"""The compiled core of cysession: the session map with its timer wheel, and the request cycle over it.

One compile unit, in reading order:

    _clock.pxd    the native clock                       _values.pxi    what a session can hold: freeze, thaw, same
    _lock.pxd     the shard lock and the leaf rule       _record.pxi    Record (committed state), Delta (changes)
    _wheel.pxd    hierarchical timer wheel               _encode.pxi    a record's data as MessagePack
    _table.pxd    one shard: hash table + wheel + lock   _frame.pxi     the header of a stored record, its checksum
    _pack.pxd     the packed form of a session's data    _map.pxi       SessionTable
    _file.pxd     one file's system calls                _manager.pxi   ManagerCore, Policy
    _socket.pxd   one exchange over a socket             _session.pxi   Session: start, read, write
                                                         _changes.pxi   a session's vector of changes
                                                         _commit.pxi    save, modify, rotate, destroy
                                                         _http.pxi      the id in a request's headers
                                                         _stored.pxi    Place, Stored: what FileStorage saw on disk
                                                         _redis.pxi     RedisStorage: strings, commands, exchanges

The .pxd files are header-only C-level structures without Python objects; the .pxi files build the classes on them.
The core holds no policy beyond what a Manager tells it and imports nothing of the package. It does no I/O but the
sequences of system calls in _file.pxd and _socket.pxd, which cost more from Python than in the kernel.

Threads: on free-threaded builds every public Session method runs in a critical section of its session, and the map
has one lock a shard. A session's methods never hold a shard lock while they allocate, drop references or call out.
"""
cimport cython
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.datetime cimport (
    PyDate_CheckExact, PyDateTime_CheckExact, PyDelta_CheckExact, PyTime_CheckExact, import_datetime,
)
from cpython.exc cimport PyErr_CheckSignals
from cpython.float cimport PyFloat_AS_DOUBLE
from cpython.long cimport PyLong_AsLongLongAndOverflow
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.object cimport PyObject, PyTypeObject, destructor, inquiry, traverseproc, visitproc
from cpython.ref cimport Py_CLEAR, Py_DECREF, Py_INCREF, Py_XDECREF, Py_XINCREF
from libc.errno cimport EAGAIN, EINTR
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from _clock cimport clock_now, wall_now
from _file cimport (
    file_close, file_facts, file_lock, file_look, file_open, file_ours, file_read, file_replace, file_unlock,
)
from _lock cimport STRIPES, counter_add, counter_read, shard_lock_init, take_pointer, thread_stripe
from _pack cimport (
    INLINE_MAX, KEY_MAX, TAG_BYTES, TAG_FALSE, TAG_FLOAT, TAG_FROZEN, TAG_INT, TAG_KEY_BOXED, TAG_MASK, TAG_NONE,
    TAG_SHARED, TAG_STR, TAG_TRUE, Boxed, Entry, boxed_key_weight, bytes_copy, bytes_equal, entry_box, entry_head, entry_is_boxed, entry_key,
    entry_key_box, entry_len, entry_value, entry_weight, pack_find,
)
from _socket cimport socket_limit, socket_trade
from _table cimport (
    CHANGED, DONE, HOLDS_NEW_ID, HOLDS_RECORD, ID_MAX, MISSING, NO_MEMORY, RENAMED, Counters, Key, Node, Outcome,
    Shard, SnapshotRow, node_new, record_lease, shard_add_locked, shard_check, shard_clear_locked, shard_copy_locked,
    shard_counters_locked, shard_expire_locked, shard_get_locked, shard_init, shard_next_tick_locked,
    shard_remove_locked, shard_rename_locked, shard_sessions, shard_swap_locked,
)
from _wheel cimport TICK_BITS, wheel_init

import os
from _thread import RLock      # what threading.RLock() makes, without a call of Python in between
from collections.abc import Mapping, MutableMapping
from datetime import timedelta, timezone
from sys import modules
from time import time_ns
from zlib import crc32

import_datetime()

cdef class Record

cdef extern from *:
    """
    static inline PyObject *new_sized(PyTypeObject *type, Py_ssize_t bytes) {
        PyObject *o = (PyObject *)PyObject_Malloc((size_t)bytes);
        return o == NULL ? PyErr_NoMemory() : PyObject_Init(o, type);
    }
    static inline PyObject *ascii_from(const char *text, Py_ssize_t len) {
        PyObject *s = PyUnicode_New(len, 127);
        if (s != NULL) bytes_copy((char *)PyUnicode_1BYTE_DATA(s), text, len);
        return s;
    }
    /* The hash of an exact str, from its own cache where it is there. */
    static inline Py_hash_t text_hash(PyObject *s) {
        Py_hash_t h = ((PyASCIIObject *)s)->hash;
        return h != -1 ? h : PyObject_Hash(s);
    }
    #define struct_size(o) ((Py_ssize_t)sizeof(*(o)))
    #define behind(o) ((char *)((o) + 1))
    #define no_vectorcall(type) ((type)->tp_vectorcall = NULL)
    #define steal(o) (o)      /* a new reference as Cython sees it: an owned pointer becomes an object */
    """
    object new_sized(PyTypeObject *type, Py_ssize_t size)
    Py_ssize_t struct_size(Record o) noexcept
    char *behind(Record o) noexcept
    object ascii_from(const char *text, Py_ssize_t len)
    object steal(PyObject *owned)
    void no_vectorcall(PyTypeObject *type) noexcept
    Py_ssize_t text_hash(object text) noexcept
    int PyUnicode_Compare(object a, object b) noexcept      # of two str, ready: cannot fail
    void PyObject_Free(void *p) noexcept
    bint PyUnicode_IS_COMPACT_ASCII(object text) noexcept
    bint PyUnicode_IS_ASCII(object text) noexcept
    Py_ssize_t PyUnicode_GET_LENGTH(object text) noexcept
    void *PyUnicode_1BYTE_DATA(object text) noexcept
    const char *PyUnicode_AsUTF8(object text) except NULL
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL
    void PyObject_GC_UnTrack(PyObject *o) noexcept
    void PyType_Modified(PyTypeObject *type) noexcept

cdef extern from *:
    """
    static const long long no_cap = 0x7FFFFFFFFFFFFFFFLL;
    """
    const int64_t NO_CAP "no_cap"

errors = None           # cysession.errors, handed in by `_use_errors`: this module imports nothing of the package


cdef unsigned int forks = 0     # how many forks lie between the first process and this one


def count_fork():
    global forks
    forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=count_fork)


def asyncio_lock():
    from asyncio import Lock        # not before a storage that does I/O is awaited: it takes a while to import

    return Lock()


def _use_errors(module):
    """The package hands its exception classes down once, at import."""
    global errors
    errors = module


cdef int64_t ns_of(object seconds, str what) except -1:
    """Seconds (a number or a timedelta) as ns, above 0 and below 146 years."""
    ns = ns_of_or_zero(seconds, what)
    if ns == 0:
        raise ValueError(f"{what} must be greater than 0 seconds")
    return ns


cdef int64_t ns_of_or_zero(object seconds, str what) except -1:
    cdef double s
    if isinstance(seconds, timedelta):
        s = seconds.total_seconds()
    elif isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"{what} is a number of seconds or a timedelta, not {type(seconds).__name__}")
    else:
        s = seconds
    if not 0 <= s <= 4.6e9:
        raise ValueError(f"{what} must lie between 0 and 4.6e9 seconds (146 years)")
    return max(<int64_t>(s * 1e9), 1 if s > 0 else 0)


@cython.final
@cython.no_gc
cdef class Numbers:
    """Numbers of 64 bits from `first` on, each given out once, to any number of threads."""
    cdef int64_t last

    def __init__(self, int64_t first=0):
        self.last = first - 1

    def take(self):
        return counter_add(&self.last, 1)

    def take_bytes(self):
        """As 8 bytes, the lowest first."""
        cdef bytes made = PyBytes_FromStringAndSize(NULL, 8)
        put_little(PyBytes_AS_STRING(made), <uint64_t>counter_add(&self.last, 1), 8)
        return made


include "_values.pxi"
include "_record.pxi"
include "_encode.pxi"
include "_frame.pxi"
include "_map.pxi"
include "_manager.pxi"
include "_session.pxi"
include "_changes.pxi"
include "_commit.pxi"
include "_http.pxi"
include "_stored.pxi"
include "_redis.pxi"


# ---- what Cython's generated types do not give -----------------------------------------------------------------------

cdef Record EMPTY = record_empty(0, NO_CAP, 0, 1)       # stands for a stored session without data
ctypedef int (*traverse_slot)(PyObject *, visitproc, void *) noexcept
ctypedef void (*dealloc_slot)(PyObject *) noexcept
cdef traverse_slot session_traverse_fields = <traverse_slot>(<PyTypeObject *>Session).tp_traverse
cdef dealloc_slot session_dealloc_fields = <dealloc_slot>(<PyTypeObject *>Session).tp_dealloc


cdef int session_traverse(PyObject *self, visitproc visit, void *arg) noexcept:
    """Show the collector the references in the vector of changes too. Takes no lock and allocates nothing."""
    cdef int stop = session_traverse_fields(self, visit, arg)
    return stop if stop else session_visit_changes(<Session>self, visit, arg)


cdef int session_clear(PyObject *self) noexcept:
    """Break the cycles a user can close. The policy stays: whatever still reaches this session may call it."""
    changes_clear(<Session>self)
    (<Session>self).id_func = None
    return 0


cdef void session_dealloc(PyObject *self) noexcept:
    PyObject_GC_UnTrack(self)               # dropping a change may run the collector
    changes_clear(<Session>self)
    session_dealloc_fields(self)


cdef int forbid_construction(PyTypeObject *type) except -1:
    """Only this module makes these: `Type()` and `Type.__new__` raise TypeError."""
    type.tp_new = NULL
    no_vectorcall(type)
    del (<object>type.tp_dict)["__new__"]
    PyType_Modified(type)
    return 0


(<PyTypeObject *>Session).tp_traverse = <traverseproc>session_traverse
(<PyTypeObject *>Session).tp_clear = <inquiry>session_clear
(<PyTypeObject *>Session).tp_dealloc = <destructor>session_dealloc
(<PyTypeObject *>Record).tp_dealloc = <destructor>record_dealloc
forbid_construction(<PyTypeObject *>Session)
forbid_construction(<PyTypeObject *>Record)
forbid_construction(<PyTypeObject *>Stored)
forbid_construction(<PyTypeObject *>StoredRemote)
forbid_construction(<PyTypeObject *>Header)
MutableMapping.register(Session)
Mapping.register(Record)
