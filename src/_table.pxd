# cython: language_level=3
"""One shard of the session table: an open-addressing hash table, its timer wheel and its lock.

A node is one stored session: deadline and wheel links (`timer`, first, so that a Timer * is a Node *), the hash, the
id's bytes inline, and one owned reference: the session's Record, or, while a rotated id is in its grace window, the
id (str) that took over. A slot holds the full hash and the node, so a probe reads one cache line of slots and then
the one node it wants. Probing is linear; deletion shifts later entries back, so there are no tombstones.

Invariants:
  T1  A node is in the slots <=> it is in the wheel (slot list or `due`) <=> the shard owns it and its reference.
  T2  At least a quarter of the slots is empty, so every probe ends.
  T3  id and hash of a published node never change. An id is matched in full, never by hash alone.
  T4  A node whose deadline has passed is absent for every reader, however late the wheel is.
  T5  A node leaves through `shard_unlink` only; its memory and reference are dropped after the lock is released.

All functions are called with the shard's lock held, except those named `shard_*_locked`, which take it.
"""
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from _lock cimport shard_lock, shard_lock_init, shard_mutex, shard_unlock, take_ref
from _pack cimport bytes_equal
from _wheel cimport (
    TICK_BITS, WHEEL_BITS, WHEEL_LEVELS, WHEEL_SLOTS, Timer, Wheel, wheel_file, wheel_init, wheel_is_behind, wheel_next,
    wheel_next_slot, wheel_refile, wheel_unlink,
)

cdef extern from * nogil:
    """
    /* The head that every Record shares with the table: what a touch must respect. */
    typedef struct { PyObject_HEAD int64_t cap; int64_t ttl; } record_lease;
    """
    ctypedef struct record_lease:
        int64_t cap         # absolute deadline, ns
        int64_t ttl         # the session's own idle ttl, ns; 0: the caller's

cdef enum:
    FIRST_SLOTS = 8
    ID_MAX = 128
    DRAIN_PER_CALL = 2      # two out for one in: a backlog cannot grow with traffic

cdef enum NodeKind:
    HOLDS_RECORD = 0
    HOLDS_NEW_ID = 1

cdef enum Outcome:
    MISSING = 0
    DONE = 1
    RENAMED = 2             # the reference handed out is the new id
    CHANGED = 3             # somebody else committed first; the reference handed out is what is stored now
    PRESENT = 4
    NO_MEMORY = 5

cdef struct Node:
    Timer timer
    uint64_t hash
    PyObject *held
    uint8_t kind
    uint8_t id_len
    char id[6]              # as long as the id is

cdef struct Slot:
    uint64_t hash
    Node *node

cdef struct Counters:
    uint64_t created, expired, destroyed, hits, misses, resizes, largest_slice
    uint64_t refiled        # filled in by shard_counters_locked: the wheel keeps it

cdef struct Shard:
    shard_mutex lock
    uint64_t mask, used
    Slot *slots
    Counters counts
    Wheel wheel

cdef struct Key:
    uint64_t hash
    const char *id
    Py_ssize_t len


# ---- nodes -----------------------------------------------------------------------------------------------------

cdef inline Node *node_new(const Key *key, PyObject *held, NodeKind kind) noexcept:
    """A node that owns `held` from here on; NULL when there is no memory (then `held` stays the caller's)."""
    cdef Py_ssize_t inline_bytes = sizeof((<Node *>NULL).id)
    cdef Node *n = <Node *>PyMem_Malloc(sizeof(Node) + max(0, key.len - inline_bytes))
    if n == NULL:
        return NULL
    n.hash = key.hash
    n.held = held
    n.kind = kind
    n.id_len = <uint8_t>key.len
    memcpy(n.id, key.id, key.len)
    return n


cdef inline Node *node_of(Timer *t) noexcept nogil:
    return <Node *>t


# ---- life of a shard -------------------------------------------------------------------------------------------

cdef inline int shard_init(Shard *s, int64_t now) noexcept nogil:
    shard_lock_init(&s.lock)
    s.slots = <Slot *>calloc(FIRST_SLOTS, sizeof(Slot))
    if s.slots == NULL:
        return -1
    s.mask = FIRST_SLOTS - 1
    wheel_init(&s.wheel, now)
    return 0


cdef inline Node *shard_find(const Shard *s, const Key *key) noexcept nogil:
    """Linear probe. Ends because a quarter of the slots is empty (T2)."""
    cdef uint64_t i = key.hash & s.mask
    cdef Slot *e
    while True:
        e = &s.slots[i]
        if e.node == NULL:
            return NULL
        if (e.hash == key.hash and e.node.id_len == key.len
                and bytes_equal(e.node.id, key.id, key.len)):
            return e.node
        i = (i + 1) & s.mask


cdef inline Node *shard_find_live(const Shard *s, const Key *key, int64_t now) noexcept nogil:
    cdef Node *n = shard_find(s, key)
    return n if n != NULL and n.timer.deadline > now else NULL


cdef inline void slots_insert(Slot *slots, uint64_t mask, Node *n) noexcept nogil:
    cdef uint64_t i = n.hash & mask
    while slots[i].node != NULL:
        i = (i + 1) & mask
    slots[i].hash = n.hash
    slots[i].node = n


cdef inline int shard_grow(Shard *s) noexcept nogil:
    """Double the slots. The old ones stay untouched when there is no memory."""
    cdef uint64_t mask = s.mask * 2 + 1
    cdef Slot *bigger = <Slot *>calloc(mask + 1, sizeof(Slot))
    cdef Slot *e
    cdef uint64_t i
    if bigger == NULL:
        return -1
    for i in range(s.mask + 1):
        e = &s.slots[i]
        if e.node != NULL:
            slots_insert(bigger, mask, e.node)
    free(s.slots)
    s.slots = bigger
    s.mask = mask
    s.counts.resizes += 1
    return 0


cdef inline int shard_insert(Shard *s, Node *n) noexcept nogil:
    """Publish a node whose id is absent. -1: no memory, nothing changed."""
    if (s.used + 1) * 4 > (s.mask + 1) * 3 and shard_grow(s) < 0:
        return -1
    slots_insert(s.slots, s.mask, n)
    s.used += 1
    wheel_file(&s.wheel, &n.timer)
    return 0


cdef inline void slots_remove(Shard *s, const Node *n) noexcept nogil:
    """Backward-shift deletion: pull back each follower that its home slot allows."""
    cdef uint64_t hole = n.hash & s.mask
    cdef uint64_t i, home
    while s.slots[hole].node != n:
        hole = (hole + 1) & s.mask
    i = hole
    while True:
        i = (i + 1) & s.mask
        if s.slots[i].node == NULL:
            break
        home = s.slots[i].hash & s.mask
        if ((i - home) & s.mask) >= ((i - hole) & s.mask):
            s.slots[hole] = s.slots[i]
            hole = i
    s.slots[hole].node = NULL


cdef inline void shard_unlink(Shard *s, Node *n, Node **dead) noexcept nogil:
    """Take a node out of slots and wheel and put it on the caller's list of dead nodes (T5)."""
    if n.timer.pprev != NULL:               # NULL: the wheel already handed it out
        wheel_unlink(&n.timer)
    slots_remove(s, n)
    s.used -= 1
    n.timer.next = <Timer *>dead[0]
    dead[0] = n


cdef inline void shard_sweep(Shard *s, int64_t now, int *budget, Node **dead) noexcept nogil:
    """Unlink expired nodes, looking at no more than `budget` timers."""
    cdef Timer *t
    cdef uint64_t swept = 0
    while True:
        t = wheel_next(&s.wheel, now, budget)
        if t == NULL:
            break
        s.counts.expired += node_of(t).kind == HOLDS_RECORD
        shard_unlink(s, node_of(t), dead)
        swept += 1
    if swept > s.counts.largest_slice:
        s.counts.largest_slice = swept


cdef inline void shard_drain(Shard *s, int64_t now, Node **dead) noexcept nogil:
    """The share of sweeping that one call pays."""
    cdef int budget = DRAIN_PER_CALL
    if wheel_is_behind(&s.wheel, now):
        shard_sweep(s, now, &budget, dead)


cdef inline int64_t lease_end(const PyObject *held, NodeKind kind, int64_t now, int64_t ttl) noexcept nogil:
    cdef const record_lease *lease = <const record_lease *>held
    if held == NULL or kind != HOLDS_RECORD:
        return now + ttl
    if lease.ttl != 0:
        ttl = lease.ttl
    return min(now + ttl, lease.cap)


cdef inline void node_touch(Shard *s, Node *n, int64_t now, int64_t ttl) noexcept nogil:
    cdef int64_t end = lease_end(n.held, <NodeKind>n.kind, now, ttl)
    cdef bint earlier = end < n.timer.deadline
    n.timer.deadline = end
    if earlier:
        wheel_refile(&s.wheel, &n.timer)


# ---- whole operations, each under one hold of the lock ---------------------------------------------------------

cdef inline Outcome shard_get_locked(Shard *s, const Key *key, int64_t now, int64_t ttl, bint touch,
                                     PyObject **out, Node **dead) noexcept nogil:
    """Hand out what a live id holds. DONE: a Record (NULL while the session has no data); RENAMED: its new id."""
    cdef Node *n
    cdef Outcome outcome = MISSING
    shard_lock(&s.lock)
    if touch and (now >> TICK_BITS) > s.wheel.tick:
        shard_drain(s, now, dead)
    n = shard_find_live(s, key, now)
    if n == NULL:
        s.counts.misses += 1
    else:
        s.counts.hits += 1
        out[0] = n.held
        take_ref(n.held)
        if n.kind == HOLDS_NEW_ID:
            outcome = RENAMED
        else:
            outcome = DONE
            if touch:
                node_touch(s, n, now, ttl)
    shard_unlock(&s.lock)
    return outcome


cdef inline Outcome shard_add_locked(Shard *s, Node *fresh, const Key *key, int64_t now, int64_t ttl, bint replace,
                                     Node **dead) noexcept nogil:
    """Publish `fresh`. PRESENT: a live session has that id already.

    With `replace` it then holds what `fresh` held, and `fresh` what it held: nothing has expired, nothing is created.
    """
    cdef Node *n
    cdef Outcome outcome = DONE
    shard_lock(&s.lock)
    shard_drain(s, now, dead)
    n = shard_find(s, key)
    if n != NULL and n.timer.deadline > now and (n.kind == HOLDS_RECORD or not replace):
        outcome = PRESENT
        if replace:
            n.held, fresh.held = fresh.held, n.held
            node_touch(s, n, now, ttl)
    else:
        if n != NULL:
            s.counts.expired += n.kind == HOLDS_RECORD
            shard_unlink(s, n, dead)
        fresh.timer.deadline = lease_end(fresh.held, <NodeKind>fresh.kind, now, ttl)
        if shard_insert(s, fresh) < 0:
            outcome = NO_MEMORY
        else:
            s.counts.created += 1
    shard_unlock(&s.lock)
    return outcome


cdef inline Outcome shard_swap_locked(Shard *s, const Key *key, PyObject *expected, PyObject *fresh, int64_t now,
                                      int64_t ttl, PyObject **out) noexcept nogil:
    """Replace the Record `expected` by `fresh`, whose reference moves in; `expected`'s moves out.

    CHANGED and RENAMED hand out a new reference to what is stored instead, and nothing is replaced.
    """
    cdef Node *n
    cdef Outcome outcome
    shard_lock(&s.lock)
    n = shard_find_live(s, key, now)
    if n == NULL:
        outcome = MISSING
    elif n.kind == HOLDS_NEW_ID or n.held != expected:
        outcome = RENAMED if n.kind == HOLDS_NEW_ID else CHANGED
        out[0] = n.held
        take_ref(n.held)
    else:
        outcome = DONE
        n.held = fresh
        node_touch(s, n, now, ttl)
    shard_unlock(&s.lock)
    return outcome


cdef inline Outcome shard_remove_locked(Shard *s, const Key *key, PyObject *expected, int64_t now, PyObject **out,
                                        Node **dead) noexcept nogil:
    """Remove an id while it holds the Record `expected`, else CHANGED or RENAMED and nothing is removed.

    `expected` NULL: whatever it holds; RENAMED then hands out the new id, which is for the caller to remove too.
    """
    cdef Node *n
    cdef Outcome outcome
    shard_lock(&s.lock)
    n = shard_find_live(s, key, now)
    if n == NULL:
        outcome = MISSING
    elif expected != NULL and (n.kind == HOLDS_NEW_ID or n.held != expected):
        outcome = RENAMED if n.kind == HOLDS_NEW_ID else CHANGED
        out[0] = n.held
        take_ref(n.held)
    else:
        outcome = DONE
        if n.kind == HOLDS_NEW_ID:
            outcome = RENAMED
            out[0] = n.held
            take_ref(n.held)
        else:
            s.counts.destroyed += 1
        shard_unlink(s, n, dead)
    shard_unlock(&s.lock)
    return outcome


cdef inline Outcome shard_rename_locked(Shard *s, const Key *key, PyObject *expected, PyObject *new_id, int64_t now,
                                        int64_t grace, PyObject **out) noexcept nogil:
    """Turn the node into a sign to `new_id` (reference moves in, `expected`'s out) that lasts `grace` ns."""
    cdef Node *n
    cdef Outcome outcome
    shard_lock(&s.lock)
    n = shard_find_live(s, key, now)
    if n == NULL:
        outcome = MISSING
    elif n.kind == HOLDS_NEW_ID or n.held != expected:
        outcome = RENAMED if n.kind == HOLDS_NEW_ID else CHANGED
        out[0] = n.held
        take_ref(n.held)
    else:
        outcome = DONE
        n.held = new_id
        n.kind = HOLDS_NEW_ID
        n.timer.deadline = now + grace
        wheel_refile(&s.wheel, &n.timer)
    shard_unlock(&s.lock)
    return outcome


cdef inline bint shard_expire_locked(Shard *s, int64_t now, int *budget, Node **dead) noexcept nogil:
    """One slice of the driver's work; True: more is due in this shard."""
    cdef bint more
    shard_lock(&s.lock)
    if wheel_is_behind(&s.wheel, now):
        shard_sweep(s, now, budget, dead)
    more = s.wheel.due != NULL or (now >> TICK_BITS) > s.wheel.tick
    shard_unlock(&s.lock)
    return more


cdef inline void shard_clear_locked(Shard *s, Node **dead) noexcept nogil:
    cdef uint64_t i
    shard_lock(&s.lock)
    for i in range(s.mask + 1):
        while s.slots[i].node != NULL:      # backward shift may pull another node into this slot
            s.counts.destroyed += 1
            shard_unlink(s, s.slots[i].node, dead)
    shard_unlock(&s.lock)


cdef inline Counters shard_counters_locked(Shard *s) noexcept nogil:
    cdef Counters counts
    shard_lock(&s.lock)
    counts = s.counts
    counts.refiled = s.wheel.refiled
    shard_unlock(&s.lock)
    return counts


cdef inline int64_t shard_next_tick_locked(Shard *s) noexcept nogil:
    """The tick at which the wheel has something to look at; -1: never."""
    cdef int64_t tick
    cdef int level = 0
    shard_lock(&s.lock)
    tick = s.wheel.tick if s.wheel.due != NULL else wheel_next_slot(&s.wheel, &level)
    shard_unlock(&s.lock)
    return tick


# ---- walking a shard ------------------------------------------------------------------------------------------

cdef struct SnapshotRow:
    PyObject *held
    uint8_t id_len
    char id[ID_MAX]


cdef inline Py_ssize_t shard_copy_locked(Shard *s, int64_t now, SnapshotRow **out) noexcept nogil:
    """Copy the live sessions, each with a reference of its own, into an array for `free`; -1: no memory."""
    cdef Py_ssize_t n = 0
    cdef uint64_t i
    cdef Node *node
    cdef SnapshotRow *rows
    shard_lock(&s.lock)
    rows = <SnapshotRow *>malloc((s.used + 1) * sizeof(SnapshotRow))
    if rows != NULL:
        for i in range(s.mask + 1):
            node = s.slots[i].node
            if node != NULL and node.kind == HOLDS_RECORD and node.timer.deadline > now:
                rows[n].held = node.held
                take_ref(node.held)
                rows[n].id_len = node.id_len
                memcpy(rows[n].id, node.id, node.id_len)
                n += 1
    shard_unlock(&s.lock)
    out[0] = rows
    return n if rows != NULL else -1


cdef inline int64_t shard_sessions(const Shard *s) noexcept nogil:
    """Nodes that are sessions, counted one by one."""
    cdef int64_t n = 0
    cdef uint64_t i
    for i in range(s.mask + 1):
        n += s.slots[i].node != NULL and s.slots[i].node.kind == HOLDS_RECORD
    return n


cdef inline const char *timers_check(Timer **head, Wheel *w, int level, int slot, uint64_t *seen) noexcept nogil:
    """One list of the wheel: links whole, and every timer in a slot that may hold it (W1, W2, W3)."""
    cdef Timer *t = head[0]
    cdef Timer **back = head
    cdef int64_t start
    while t != NULL:
        if t.pprev != back:
            return "W1: a timer's back link does not point at the link to it"
        if level >= 0:
            start = ((w.tick >> (WHEEL_BITS * level)) + 1)
            start = (start + ((slot - start) & (WHEEL_SLOTS - 1))) << (WHEEL_BITS * level)
            if start <= w.tick:
                return "W3: an occupied slot starts in the past"
            if start > max(w.tick + 1, (t.deadline >> TICK_BITS) + 1):
                return "W2: a timer waits in a slot that starts after its deadline"
        seen[0] += 1
        back = &t.next
        t = t.next
    return NULL


cdef inline const char *shard_check(Shard *s) noexcept nogil:
    """NULL, or which invariant is broken."""
    cdef uint64_t i, filled = 0, timers = 0
    cdef int level, slot
    cdef Node *n
    cdef const char *broken
    cdef Key key
    for i in range(s.mask + 1):
        n = s.slots[i].node
        if n == NULL:
            continue
        filled += 1
        key.hash, key.id, key.len = n.hash, &n.id[0], n.id_len
        if s.slots[i].hash != n.hash or shard_find(s, &key) != n:
            return "T3: a probe for a node's id does not find the node"
    if filled != s.used:
        return "T1: the count of nodes is wrong"
    if s.used * 4 > (s.mask + 1) * 3:
        return "T2: the slots are too full"
    broken = timers_check(&s.wheel.due, &s.wheel, -1, 0, &timers)
    for level in range(WHEEL_LEVELS):
        for slot in range(WHEEL_SLOTS):
            if broken == NULL:
                broken = timers_check(&s.wheel.slots[level][slot], &s.wheel, level, slot, &timers)
            if s.wheel.slots[level][slot] != NULL and not (s.wheel.occupied[level] >> slot) & 1:
                return "W4: an occupied slot's bit is clear"
    if broken == NULL and timers != filled:
        return "T1: slots and wheel do not hold the same nodes"
    return broken
