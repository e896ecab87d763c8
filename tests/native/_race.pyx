# cython: language_level=3
"""Threads without Python on a few shards, for ThreadSanitizer: ci/tsan.sh builds and runs it.

Compiled with -fsanitize=thread and CYSESSION_PTHREAD_LOCK, so that the sanitizer sees every access and every lock.
The threads are POSIX threads that never touch the interpreter. What the shards hold are no Python objects but
`Lease`s: the head of a Record with a count of its own, because a stock interpreter's reference counts are not
atomic and its locks are invisible to the sanitizer. A lease that is counted wrongly ends as a leak (`run` returns how
many are left), as a count below zero, or as a use after free.

With RACE_WITHOUT_LOCK the locks do nothing: then the sanitizer must speak up, or it is not looking.
"""
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from _table cimport (
    DONE, HOLDS_RECORD, Counters, Key, Node, NodeKind, Outcome, Shard, SnapshotRow,
    shard_add_locked, shard_check, shard_clear_locked, shard_copy_locked, shard_counters_locked, shard_expire_locked,
    shard_get_locked, shard_init, shard_next_tick_locked, shard_remove_locked, shard_rename_locked, shard_swap_locked,
)
from _wheel cimport TICK_BITS

cdef extern from * nogil:
    """
    #include <pthread.h>
    #include <string.h>

    typedef struct {            /* begins like a Record; see record_lease in _table.pxd */
        PyObject_HEAD
        int64_t cap, ttl;
        int64_t count;
    } Lease;

    static int64_t leases_alive;

    static inline void lease_take(void *lease) {
        if (lease != NULL) __atomic_add_fetch(&((Lease *)lease)->count, 1, __ATOMIC_RELAXED);
    }
    static inline void lease_drop(void *lease) {
        int64_t left;
        if (lease == NULL) return;
        left = __atomic_sub_fetch(&((Lease *)lease)->count, 1, __ATOMIC_ACQ_REL);
        if (left < 0) abort();
        if (left == 0) {
            __atomic_sub_fetch(&leases_alive, 1, __ATOMIC_RELAXED);
            memset(lease, 0xDD, sizeof(Lease));
            free(lease);
        }
    }
    static inline void *lease_new(int64_t cap, int64_t ttl) {
        Lease *lease = calloc(1, sizeof(Lease));
        if (lease == NULL) abort();
        lease->cap = cap; lease->ttl = ttl; lease->count = 1;
        __atomic_add_fetch(&leases_alive, 1, __ATOMIC_RELAXED);
        return lease;
    }
    #undef take_ref             /* what the table does under its lock */
    #define take_ref(o) lease_take(o)

    #ifdef RACE_WITHOUT_LOCK
      #undef shard_lock
      #undef shard_unlock
      #define shard_lock(m) ((void)(m))
      #define shard_unlock(m) ((void)(m))
    #endif
    """
    int64_t leases_alive
    void lease_drop(void *lease) noexcept
    void *lease_new(int64_t cap, int64_t ttl) noexcept
    ctypedef struct pthread_t:
        pass
    int pthread_create(pthread_t *thread, void *attributes, void *(*work)(void *) noexcept nogil, void *argument) noexcept
    int pthread_join(pthread_t thread, void **result) noexcept
    int64_t atomic_tick "__atomic_add_fetch"(int64_t *p, int64_t n, int order) noexcept
    int RELAXED "__ATOMIC_RELAXED"

cdef enum:
    SHARDS = 2
    IDS = 24                    # few, so that threads meet, and all in one cluster of each shard
    THREADS_MAX = 16

cdef Shard *shards = NULL
cdef int64_t ticking            # the clock of all threads, in ns

cdef struct Worker:
    uint64_t draws
    uint64_t seen
    int64_t steps


cdef inline uint64_t draw(Worker *w, uint64_t below) noexcept nogil:
    w.draws = w.draws * 6364136223846793005ULL + 1442695040888963407ULL
    return (w.draws >> 33) % below


cdef Node *node_without_python(const Key *key, void *held, NodeKind kind) noexcept nogil:
    """As `node_new`, whose allocator wants the interpreter."""
    cdef Node *n = <Node *>malloc(sizeof(Node) + key.len)
    if n != NULL:
        memset(n, 0, sizeof(Node))
        n.hash = key.hash
        n.held = <PyObject *>held
        n.kind = kind
        n.id_len = <uint8_t>key.len
        memcpy(n.id, key.id, key.len)
    return n


cdef void bury(Node *dead) noexcept nogil:
    cdef Node *next
    while dead != NULL:
        next = <Node *>dead.timer.next
        lease_drop(dead.held)
        free(dead)
        dead = next


cdef void name(Key *key, char *text, uint64_t id) noexcept nogil:
    text[0] = c'i'
    text[1] = c'a' + <char>(id % 26)
    text[2] = c'a' + <char>(id // 26)
    key.id, key.len = text, 3
    key.hash = 7 + 8 * (id % 3)             # three homes that are one slot while the table is small


cdef void step(Worker *w) noexcept nogil:
    """One operation on one shard."""
    cdef char text[4]
    cdef Key key
    cdef Shard *s = &shards[draw(w, SHARDS)]
    cdef int64_t now = atomic_tick(&ticking, draw(w, 1 << 27), RELAXED)
    cdef int64_t ttl = <int64_t>1 << (TICK_BITS + draw(w, 8))
    cdef PyObject *out = NULL
    cdef PyObject *stored = NULL
    cdef Node *dead = NULL
    cdef Node *fresh
    cdef SnapshotRow *rows = NULL
    cdef Py_ssize_t n, i
    cdef int budget
    cdef void *lease
    cdef Counters counts
    cdef uint64_t what = draw(w, 100)
    name(&key, text, draw(w, IDS))
    if what < 30:
        shard_get_locked(s, &key, now, ttl, what < 20, &out, &dead)
        lease_drop(out)
    elif what < 50:
        lease = NULL if what < 35 else lease_new(now + ttl * draw(w, 4), 0 if what < 45 else ttl // 2)
        fresh = node_without_python(&key, lease, HOLDS_RECORD)
        if shard_add_locked(s, fresh, &key, now, ttl, what >= 42, &dead) != DONE:
            fresh.timer.next = NULL
            bury(fresh)
    elif what < 70:                         # a commit: read, then swap if it is still that
        shard_get_locked(s, &key, now, ttl, False, &stored, &dead)
        lease = lease_new(now + ttl * 4, 0)
        if shard_swap_locked(s, &key, stored, <PyObject *>lease, now, ttl, &out) == DONE:
            lease_drop(stored)              # the shard's own
        else:
            lease_drop(lease)
        lease_drop(stored)
        lease_drop(out)
    elif what < 80:
        if what < 75:
            shard_get_locked(s, &key, now, ttl, False, &stored, &dead)
        shard_remove_locked(s, &key, stored, now, &out, &dead)
        lease_drop(stored)
        lease_drop(out)
    elif what < 85:                         # a rotation: the id becomes a sign, here to a lease that stands for a str
        shard_get_locked(s, &key, now, ttl, False, &stored, &dead)
        lease = lease_new(0, 0)
        if shard_rename_locked(s, &key, stored, <PyObject *>lease, now, ttl, &out) == DONE:
            lease_drop(stored)
        else:
            lease_drop(lease)
        lease_drop(stored)
        lease_drop(out)
    elif what < 97:
        budget = <int>draw(w, 9)
        shard_expire_locked(s, now, &budget, &dead)
    elif what < 98:
        n = shard_copy_locked(s, now, &rows)
        for i in range(n):
            lease_drop(rows[i].held)
        free(rows)
    elif what < 99:
        counts = shard_counters_locked(s)
        w.seen += counts.hits + counts.refiled + <uint64_t>shard_next_tick_locked(s)     # used, so that it is read
    elif draw(w, 50) == 0:
        shard_clear_locked(s, &dead)
    bury(dead)


cdef void *work(void *argument) noexcept nogil:
    cdef Worker *w = <Worker *>argument
    cdef int64_t i
    for i in range(w.steps):
        step(w)
    return NULL


def run(int threads, int64_t steps, uint64_t seed):
    """Let `threads` threads do `steps` operations each. Returns how many leases are left when all shards are empty."""
    global shards, ticking
    cdef pthread_t handles[THREADS_MAX]
    cdef Worker workers[THREADS_MAX]
    cdef Node *dead = NULL
    cdef const char *broken = NULL
    cdef int i
    assert 0 < threads <= THREADS_MAX
    shards = <Shard *>calloc(SHARDS, sizeof(Shard))
    ticking = <int64_t>(64 ** 3 - 5) << TICK_BITS
    for i in range(SHARDS):
        shard_init(&shards[i], ticking)
    for i in range(threads):
        workers[i].draws, workers[i].seen, workers[i].steps = seed * 1000 + i, 0, steps
    with nogil:
        for i in range(threads):
            pthread_create(&handles[i], NULL, work, &workers[i])
        for i in range(threads):
            pthread_join(handles[i], NULL)
        for i in range(SHARDS):
            if broken == NULL:
                broken = shard_check(&shards[i])
            shard_clear_locked(&shards[i], &dead)
            free(shards[i].slots)
        bury(dead)
        free(shards)
    assert broken == NULL, broken.decode()
    return leases_alive if workers[0].seen + 1 else -1
