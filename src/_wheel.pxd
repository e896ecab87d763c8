# cython: language_level=3
"""A hierarchical timer wheel: four levels of 64 slots over intrusive timers.

One tick is 2**30 ns (1.07 s). The levels span 68.7 s, 73 min, 3.26 days and 208 days; a timer further away waits in
the last slot of the top level and is filed again when that slot fires. The wheel is lazy: moving a deadline *later*
is one store into `Timer.deadline` and leaves the timer where it is; when its slot fires, the timer is looked at
again and filed anew. Moving a deadline *earlier* needs `wheel_refile`. Readers compare deadlines themselves, so the
wheel only decides when memory is given back, never whether a session is alive.

Invariants:
  W1  A timer is on exactly one list, a slot's or `due`, from `wheel_file` until `wheel_unlink` or `wheel_next`.
  W2  A timer's slot starts at most one tick after its deadline's own tick.
  W3  No occupied slot starts at or before `tick`; what was in such a slot is on `due`.
  W4  A clear `occupied` bit means an empty slot. A set bit is a hint: unlinking leaves it behind.

After Varghese and Lauck, "Hashed and Hierarchical Timing Wheels" (SOSP 1987); the level by XOR and the `due` list
as in tokio's timer, the lazy re-check as in Caffeine's TimerWheel.
"""
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset

cdef extern from * nogil:
    """
    #if defined(_MSC_VER)
      #include <intrin.h>
      static inline int bit_first(uint64_t x) { unsigned long i; _BitScanForward64(&i, x); return (int)i; }
      static inline int bit_last(uint64_t x) { unsigned long i; _BitScanReverse64(&i, x); return (int)i; }
    #else
      static inline int bit_first(uint64_t x) { return __builtin_ctzll(x); }
      static inline int bit_last(uint64_t x) { return 63 - __builtin_clzll(x); }
    #endif
    """
    int bit_first(uint64_t x) noexcept
    int bit_last(uint64_t x) noexcept

cdef enum:
    WHEEL_LEVELS = 4
    WHEEL_SLOTS = 64
    WHEEL_BITS = 6
    TICK_BITS = 30

cdef struct Timer:
    int64_t deadline        # ns on the table's clock
    Timer *next
    Timer **pprev           # the pointer that points here: unlinking needs no slot number

cdef struct Wheel:
    int64_t tick            # the last tick that was looked at
    Timer *due              # timers of fired slots, not yet looked at; survives across calls
    uint64_t refiled        # timers that fired early and were filed again
    uint64_t occupied[WHEEL_LEVELS]
    Timer *slots[WHEEL_LEVELS][WHEEL_SLOTS]


cdef inline void wheel_init(Wheel *w, int64_t now) noexcept nogil:
    memset(w, 0, sizeof(Wheel))
    w.tick = now >> TICK_BITS


cdef inline void timer_push(Timer **head, Timer *t) noexcept nogil:
    t.next = head[0]
    if t.next != NULL:
        t.next.pprev = &t.next
    t.pprev = head
    head[0] = t


cdef inline void wheel_unlink(Timer *t) noexcept nogil:
    t.pprev[0] = t.next
    if t.next != NULL:
        t.next.pprev = t.pprev
    t.next = NULL
    t.pprev = NULL


cdef inline void wheel_file(Wheel *w, Timer *t) noexcept nogil:
    """Put an unlinked timer into the slot of its deadline."""
    cdef int64_t due = (t.deadline + ((<int64_t>1 << TICK_BITS) - 1)) >> TICK_BITS
    cdef int64_t furthest = w.tick + (<int64_t>(WHEEL_SLOTS - 1) << (WHEEL_BITS * (WHEEL_LEVELS - 1)))
    cdef int level, slot
    if due <= w.tick:
        due = w.tick + 1                    # W3: never into a slot that has passed
    level = bit_last((<uint64_t>w.tick ^ <uint64_t>due) | (WHEEL_SLOTS - 1)) // WHEEL_BITS
    if level >= WHEEL_LEVELS:               # too far, or merely across a top-level boundary: early is safe, late is not
        level = WHEEL_LEVELS - 1
        due = min(due, furthest)
    slot = (due >> (WHEEL_BITS * level)) & (WHEEL_SLOTS - 1)
    timer_push(&w.slots[level][slot], t)
    w.occupied[level] |= <uint64_t>1 << slot


cdef inline void wheel_refile(Wheel *w, Timer *t) noexcept nogil:
    """For a deadline that moved earlier."""
    wheel_unlink(t)
    wheel_file(w, t)


cdef inline int64_t wheel_next_slot(const Wheel *w, int *level_out) noexcept nogil:
    """Start tick of the earliest occupied slot after `tick`, or -1. On a tie the higher level, which must cascade first."""
    cdef int64_t best = -1, position, start
    cdef uint64_t ahead
    cdef int level, at
    for level in range(WHEEL_LEVELS):
        if w.occupied[level] == 0:
            continue
        position = w.tick >> (WHEEL_BITS * level)
        at = <int>((position + 1) & (WHEEL_SLOTS - 1))
        ahead = w.occupied[level]
        if at != 0:                         # rotate, so that bit 0 is the slot after the current one
            ahead = (ahead >> at) | (ahead << (WHEEL_SLOTS - at))
        start = (position + 1 + bit_first(ahead)) << (WHEEL_BITS * level)
        if best == -1 or start <= best:
            best = start
            level_out[0] = level
    return best


cdef inline bint wheel_fire(Wheel *w, int64_t now_tick) noexcept nogil:
    """Move `tick` to the next occupied slot up to `now_tick` and detach that slot to `due`; False: none is left."""
    cdef int level = 0
    cdef int slot
    cdef int64_t start = wheel_next_slot(w, &level)
    if start == -1 or start > now_tick:
        if now_tick > w.tick:
            w.tick = now_tick
        return False
    w.tick = start
    slot = (start >> (WHEEL_BITS * level)) & (WHEEL_SLOTS - 1)
    w.occupied[level] &= ~(<uint64_t>1 << slot)
    w.due = w.slots[level][slot]
    w.slots[level][slot] = NULL
    if w.due != NULL:
        w.due.pprev = &w.due
    return True


cdef inline Timer *wheel_next(Wheel *w, int64_t now, int *budget) noexcept nogil:
    """The next expired timer, unlinked; NULL when none is due or when `budget` timers have been looked at.

    Cascading a higher level, re-arming a touched timer and expiring one are the same step, so one budget bounds all.
    """
    cdef Timer *t
    while True:
        while w.due != NULL:
            if budget[0] <= 0:
                return NULL
            budget[0] -= 1
            t = w.due
            wheel_unlink(t)
            if t.deadline <= now:
                return t
            wheel_file(w, t)
            w.refiled += 1
        if not wheel_fire(w, now >> TICK_BITS):
            return NULL


cdef inline bint wheel_is_behind(const Wheel *w, int64_t now) noexcept nogil:
    return w.due != NULL or (now >> TICK_BITS) > w.tick
