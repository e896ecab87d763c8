# cython: language_level=3
"""Drives the header-only structures of the core one at a time, with hashes, ticks and budgets of the test's choice.

For tests only: src/ on the include path, nothing of the package. tests/native/conftest.py builds it.
"""
from cpython.bytes cimport PyBytes_AS_STRING
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memset

from _pack cimport bytes_copy, bytes_equal, entry_head, entry_key, entry_len, entry_value, pack_find
from _table cimport (
    HOLDS_NEW_ID, HOLDS_RECORD, MISSING, NO_MEMORY, Key, Node, Outcome, Shard, SnapshotRow, node_new, shard_add_locked,
    shard_check, shard_clear_locked, shard_copy_locked, shard_expire_locked, shard_get_locked, shard_init,
    shard_remove_locked, shard_rename_locked, shard_swap_locked, timers_check,
)
from _table cimport CHANGED as _CHANGED, DONE as _DONE, PRESENT as _PRESENT, RENAMED as _RENAMED
from _wheel cimport (
    TICK_BITS, WHEEL_LEVELS, WHEEL_SLOTS, Timer, wheel_file, wheel_init, wheel_is_behind, wheel_next, wheel_next_slot,
    wheel_refile, wheel_unlink,
)
from _wheel cimport Wheel as _Wheel

TICK = 1 << TICK_BITS
OUTCOMES = {MISSING: "missing", _DONE: "done", _RENAMED: "renamed", _CHANGED: "changed", _PRESENT: "present",
            NO_MEMORY: "no memory"}


# ---- the wheel -------------------------------------------------------------------------------------------------

cdef class Wheel:
    """A wheel over `n` timers that are called by their number."""
    cdef _Wheel w
    cdef Timer *timers
    cdef Py_ssize_t n

    def __cinit__(self, int64_t tick, Py_ssize_t n):
        wheel_init(&self.w, tick << TICK_BITS)
        self.n = n
        self.timers = <Timer *>PyMem_Calloc(n, sizeof(Timer))
        if self.timers == NULL:
            raise MemoryError()

    def __dealloc__(self):
        PyMem_Free(self.timers)

    cdef Timer *at(self, Py_ssize_t i) except NULL:
        if not 0 <= i < self.n:
            raise IndexError(i)
        return &self.timers[i]

    @property
    def tick(self):
        return self.w.tick

    @property
    def refiled(self):
        return self.w.refiled

    @property
    def draining(self):
        """Whether a fired slot is still being looked at."""
        return self.w.due != NULL

    def file(self, Py_ssize_t i, int64_t deadline):
        """Put a timer in that is out."""
        cdef Timer *t = self.at(i)
        assert t.pprev == NULL, "it is in the wheel already"
        t.deadline = deadline
        wheel_file(&self.w, t)

    def later(self, Py_ssize_t i, int64_t deadline):
        """What a touch does: one store."""
        cdef Timer *t = self.at(i)
        assert deadline >= t.deadline
        t.deadline = deadline

    def earlier(self, Py_ssize_t i, int64_t deadline):
        cdef Timer *t = self.at(i)
        t.deadline = deadline
        wheel_refile(&self.w, t)

    def unlink(self, Py_ssize_t i):
        wheel_unlink(self.at(i))

    def next(self, int64_t now, int budget):
        """(number of an expired timer, now out of the wheel, or None; what is left of the budget)."""
        cdef int left = budget
        cdef Timer *t = wheel_next(&self.w, now, &left)
        return (None if t == NULL else t - self.timers), left

    def is_behind(self, int64_t now):
        return bool(wheel_is_behind(&self.w, now))

    def next_slot(self):
        """(start tick of the next slot with its bit set, level), or None."""
        cdef int level = 0
        cdef int64_t start = wheel_next_slot(&self.w, &level)
        return None if start < 0 else (start, level)

    def slot_of(self, Py_ssize_t i):
        """(level, slot) whose list the timer is on, "due", or None."""
        cdef Timer *wanted = self.at(i)
        cdef Timer *t = self.w.due
        cdef int level, slot
        while t != NULL:
            if t == wanted:
                return "due"
            t = t.next
        for level in range(WHEEL_LEVELS):
            for slot in range(WHEEL_SLOTS):
                t = self.w.slots[level][slot]
                while t != NULL:
                    if t == wanted:
                        return level, slot
                    t = t.next
        return None

    def check(self):
        """How many timers are in, all invariants verified."""
        cdef uint64_t seen = 0
        cdef int level, slot
        cdef const char *broken = timers_check(&self.w.due, &self.w, -1, 0, &seen)
        assert broken == NULL, broken.decode()
        for level in range(WHEEL_LEVELS):
            for slot in range(WHEEL_SLOTS):
                broken = timers_check(&self.w.slots[level][slot], &self.w, level, slot, &seen)
                assert broken == NULL, broken.decode()
                if self.w.slots[level][slot] != NULL:
                    assert self.w.occupied[level] >> slot & 1, "W4: an occupied slot's bit is clear"
        return seen


# ---- one shard -------------------------------------------------------------------------------------------------

cdef class Lease:
    """Stands for a Record: the same two fields behind the object head (`record_lease` in _table.pxd)."""
    cdef int64_t cap
    cdef int64_t ttl

    def __init__(self, cap=0x7FFFFFFFFFFFFFFF, ttl=0):
        self.cap = cap
        self.ttl = ttl


cdef int64_t drop(Node *dead, list ids) except -1:
    """Free unlinked nodes, as the table does after its lock; note their ids."""
    cdef Node *n
    while dead != NULL:
        n = dead
        dead = <Node *>dead.timer.next
        if ids is not None:
            ids.append(n.id[:n.id_len])
        if n.held != NULL:
            Py_DECREF(<object>n.held)
        PyMem_Free(n)
    return 0


cdef class ShardProbe:
    """One shard. Ids are bytes, their hashes come from the test; `dropped` lists the ids of nodes that left."""
    cdef Shard s
    cdef readonly list dropped

    def __cinit__(self, int64_t now=0):
        memset(&self.s, 0, sizeof(Shard))
        self.dropped = []
        if shard_init(&self.s, now) < 0:
            raise MemoryError()

    def __dealloc__(self):
        cdef Node *dead = NULL
        if self.s.slots != NULL:
            shard_clear_locked(&self.s, &dead)
            drop(dead, None)
            free(self.s.slots)

    cdef Key key(self, bytes session_id, uint64_t hash):
        cdef Key k
        k.hash = hash
        k.id = PyBytes_AS_STRING(session_id)
        k.len = len(session_id)
        return k

    cdef outcome(self, Outcome outcome, PyObject *out):
        handed = None
        if out != NULL:
            handed = <object>out
            Py_DECREF(handed)
        return OUTCOMES[outcome], handed

    def add(self, bytes session_id, uint64_t hash, Lease lease, int64_t now, int64_t ttl, bint replace=False):
        cdef Key k = self.key(session_id, hash)
        cdef Node *dead = NULL
        cdef PyObject *held = <PyObject *>lease if lease is not None else NULL
        cdef Node *fresh = node_new(&k, held, HOLDS_RECORD)
        cdef Outcome outcome
        if fresh == NULL:
            raise MemoryError()
        if lease is not None:
            Py_INCREF(lease)
        outcome = shard_add_locked(&self.s, fresh, &k, now, ttl, replace, &dead)
        if outcome != _DONE:
            fresh.timer.next = NULL
            drop(fresh, None)
        drop(dead, self.dropped)
        return OUTCOMES[outcome]

    def get(self, bytes session_id, uint64_t hash, int64_t now, int64_t ttl, bint touch=True):
        cdef Key k = self.key(session_id, hash)
        cdef PyObject *out = NULL
        cdef Node *dead = NULL
        cdef Outcome outcome = shard_get_locked(&self.s, &k, now, ttl, touch, &out, &dead)
        drop(dead, self.dropped)
        return self.outcome(outcome, out)

    def swap(self, bytes session_id, uint64_t hash, Lease expected, Lease fresh not None, int64_t now, int64_t ttl):
        cdef Key k = self.key(session_id, hash)
        cdef PyObject *out = NULL
        cdef PyObject *old = <PyObject *>expected if expected is not None else NULL
        cdef Outcome outcome
        Py_INCREF(fresh)
        outcome = shard_swap_locked(&self.s, &k, old, <PyObject *>fresh, now, ttl, &out)
        if outcome != _DONE:
            Py_DECREF(fresh)
        elif old != NULL:
            Py_DECREF(<object>old)
        return self.outcome(outcome, out)

    def remove(self, bytes session_id, uint64_t hash, Lease expected, int64_t now):
        """`expected` None: whatever it holds."""
        cdef Key k = self.key(session_id, hash)
        cdef PyObject *out = NULL
        cdef Node *dead = NULL
        cdef PyObject *old = <PyObject *>expected if expected is not None else NULL
        cdef Outcome outcome = shard_remove_locked(&self.s, &k, old, now, &out, &dead)
        drop(dead, self.dropped)
        return self.outcome(outcome, out)

    def rename(self, bytes session_id, uint64_t hash, Lease expected, str new_id not None, int64_t now, int64_t grace):
        cdef Key k = self.key(session_id, hash)
        cdef PyObject *out = NULL
        cdef PyObject *old = <PyObject *>expected if expected is not None else NULL
        cdef Outcome outcome
        Py_INCREF(new_id)
        outcome = shard_rename_locked(&self.s, &k, old, <PyObject *>new_id, now, grace, &out)
        if outcome != _DONE:
            Py_DECREF(new_id)
        elif old != NULL:
            Py_DECREF(<object>old)
        return self.outcome(outcome, out)

    def expire(self, int64_t now, int budget):
        """(whether more is due, budget left)."""
        cdef Node *dead = NULL
        cdef int left = budget
        cdef bint more = shard_expire_locked(&self.s, now, &left, &dead)
        drop(dead, self.dropped)
        return bool(more), left

    def clear(self):
        cdef Node *dead = NULL
        shard_clear_locked(&self.s, &dead)
        drop(dead, self.dropped)

    def rows(self, int64_t now):
        """[(id, lease)] of the live sessions."""
        cdef SnapshotRow *rows = NULL
        cdef Py_ssize_t n = shard_copy_locked(&self.s, now, &rows), i
        if n < 0:
            raise MemoryError()
        found = []
        for i in range(n):
            held = None
            if rows[i].held != NULL:
                held = <object>rows[i].held
                Py_DECREF(held)
            found.append((rows[i].id[:rows[i].id_len], held))
        free(rows)
        return found

    def layout(self):
        """The ids in slot order, None for an empty slot."""
        return [None if self.s.slots[i].node == NULL else self.s.slots[i].node.id[:self.s.slots[i].node.id_len]
                for i in range(self.s.mask + 1)]

    def __len__(self):
        return self.s.used

    @property
    def tick(self):
        return self.s.wheel.tick

    @property
    def counts(self):
        return {"created": self.s.counts.created, "expired": self.s.counts.expired,
                "destroyed": self.s.counts.destroyed, "hits": self.s.counts.hits, "misses": self.s.counts.misses,
                "resizes": self.s.counts.resizes, "largest_slice": self.s.counts.largest_slice,
                "refiled": self.s.wheel.refiled}

    def check(self):
        cdef const char *broken = shard_check(&self.s)
        assert broken == NULL, broken.decode()


# ---- packed data -----------------------------------------------------------------------------------------------

def equal(bytes a, bytes b, Py_ssize_t start_a, Py_ssize_t start_b, Py_ssize_t n):
    return bool(bytes_equal(PyBytes_AS_STRING(a) + start_a, PyBytes_AS_STRING(b) + start_b, n))


def copied(bytes source, Py_ssize_t start, Py_ssize_t n, Py_ssize_t margin):
    """A run of `source` between two margins of 0xEE, as `bytes_copy` leaves it."""
    cdef bytes target = b"\xee" * (n + 2 * margin)
    target = bytes(bytearray(target))           # an object of our own: constants are shared
    bytes_copy(PyBytes_AS_STRING(target) + margin, PyBytes_AS_STRING(source) + start, n)
    return target


def find(bytes pack, bytes key):
    """Offset of the entry of a short ASCII key, or None."""
    cdef const char *start = PyBytes_AS_STRING(pack)
    cdef const char *p = pack_find(start, start + len(pack), PyBytes_AS_STRING(key), len(key))
    return None if p == NULL else p - start


def entries(bytes pack):
    """[(tag, key, value)] of a pack without owned references."""
    cdef const char *p = PyBytes_AS_STRING(pack)
    cdef const char *end = p + len(pack)
    found = []
    while p < end:
        e = entry_head(p)
        found.append((e.tag, entry_key(p)[:e.key_len], entry_value(p, e)[:e.value_len]))
        p += entry_len(e)
    return found


# ---- allocations that fail ------------------------------------------------------------------------------------------

cdef extern from *:
    """
    static PyMemAllocatorEx real_mem, real_obj;
    static long until_failure, failures_left, failures_made;
    static unsigned long failing_thread;     /* others, such as those of earlier tests, have memory */

    static int fails(void) {
        if (PyThread_get_thread_ident() != failing_thread) return 0;
        if (until_failure > 0) { until_failure--; return 0; }
        if (failures_left == 0) return 0;
        failures_left--;
        failures_made++;
        return 1;
    }
    static void *failing_malloc(void *of, size_t n) {
        PyMemAllocatorEx *a = of;
        return fails() ? NULL : a->malloc(a->ctx, n);
    }
    static void *failing_calloc(void *of, size_t count, size_t n) {
        PyMemAllocatorEx *a = of;
        return fails() ? NULL : a->calloc(a->ctx, count, n);
    }
    static void *failing_realloc(void *of, void *p, size_t n) {
        PyMemAllocatorEx *a = of;
        return fails() ? NULL : a->realloc(a->ctx, p, n);
    }
    static void unchanged_free(void *of, void *p) {
        PyMemAllocatorEx *a = of;
        a->free(a->ctx, p);
    }
    static void fail_allocations(long after, long count) {
        PyMemAllocatorEx mem = {&real_mem, failing_malloc, failing_calloc, failing_realloc, unchanged_free};
        PyMemAllocatorEx obj = {&real_obj, failing_malloc, failing_calloc, failing_realloc, unchanged_free};
        PyMem_GetAllocator(PYMEM_DOMAIN_MEM, &real_mem);
        PyMem_GetAllocator(PYMEM_DOMAIN_OBJ, &real_obj);
        until_failure = after;
        failures_left = count;
        failures_made = 0;
        failing_thread = PyThread_get_thread_ident();
        PyMem_SetAllocator(PYMEM_DOMAIN_MEM, &mem);
        PyMem_SetAllocator(PYMEM_DOMAIN_OBJ, &obj);
    }
    static long heal_allocations(void) {
        PyMem_SetAllocator(PYMEM_DOMAIN_MEM, &real_mem);
        PyMem_SetAllocator(PYMEM_DOMAIN_OBJ, &real_obj);
        return failures_made;
    }
    """
    void fail_allocations(long after, long count) noexcept
    long heal_allocations() noexcept


def without_memory(call, long after, long count):
    """Call with `count` allocations failing after the first `after`: (what it raised or None, how many failed)."""
    error = None
    fail_allocations(after, count)
    try:
        call()
    except BaseException as raised:
        error = raised
    return error, heal_allocations()
