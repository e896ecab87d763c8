# cython: language_level=3
"""The lock of one shard: a PyMutex on free-threaded builds, nothing where the GIL already excludes other threads.

The leaf rule: between `shard_lock` and `shard_unlock` stands plain C on raw memory. No reference is dropped, no
Python object is allocated, nothing raises, no user code runs, no second shard is locked. Taking a reference
(`take_ref`) is allowed: it runs no code. Every function that locks is `noexcept nogil`, so the compiler refuses
the rest.
"""
from cpython.object cimport PyObject
from libc.stdint cimport int64_t

cdef extern from * nogil:
    """
    #if defined(CYSESSION_PTHREAD_LOCK)          /* sanitizer builds: a lock that ThreadSanitizer can see */
      #include <pthread.h>
      typedef pthread_mutex_t shard_mutex;
      #define shard_lock_init(m) pthread_mutex_init((m), NULL)
      #define shard_lock(m) pthread_mutex_lock(m)
      #define shard_unlock(m) pthread_mutex_unlock(m)
    #elif defined(Py_GIL_DISABLED)
      typedef PyMutex shard_mutex;
      #define shard_lock_init(m) memset((m), 0, sizeof(*(m)))
      #define shard_lock(m) PyMutex_Lock(m)
      #define shard_unlock(m) PyMutex_Unlock(m)
    #else
      typedef struct { char unused; } shard_mutex;
      #define shard_lock_init(m) ((void)(m))
      #define shard_lock(m) ((void)(m))
      #define shard_unlock(m) ((void)(m))
    #endif
    #define take_ref(o) Py_XINCREF(o)
    /* A count over all shards, off the read path. Returns the new value. */
    #if defined(Py_GIL_DISABLED) || defined(CYSESSION_PTHREAD_LOCK)
      #if defined(_MSC_VER)
        #include <intrin.h>
        #define counter_add(p, n) (_InterlockedExchangeAdd64((p), (n)) + (n))
        #define counter_read(p) _InterlockedOr64((p), 0)
      #else
        #define counter_add(p, n) __atomic_add_fetch((p), (n), __ATOMIC_RELAXED)
        #define counter_read(p) __atomic_load_n((p), __ATOMIC_RELAXED)
      #endif
    #else
      #define counter_add(p, n) (*(p) += (n))
      #define counter_read(p) (*(p))
    #endif
    /* Take a pointer out of its place: of several threads one gets it, the others NULL. */
    #if !defined(Py_GIL_DISABLED)
      static inline PyObject *take_pointer(PyObject **place) { PyObject *p = *place; *place = NULL; return p; }
    #elif defined(_MSC_VER)
      #define take_pointer(place) ((PyObject *)_InterlockedExchangePointer((void *volatile *)(place), NULL))
    #else
      #define take_pointer(place) __atomic_exchange_n((place), NULL, __ATOMIC_ACQ_REL)
    #endif
    /* Where all threads would write to one count, each uses one of STRIPES copies. */
    #if defined(Py_GIL_DISABLED)
      #define STRIPES 32
      #if defined(_MSC_VER)
        static __declspec(thread) unsigned stripe_plus_one;
      #else
        static _Thread_local unsigned stripe_plus_one;
      #endif
      static int64_t stripes_given;
      static inline unsigned thread_stripe(void) {
          if (stripe_plus_one == 0)
              stripe_plus_one = (unsigned)(counter_add(&stripes_given, 1) % STRIPES) + 1;
          return stripe_plus_one - 1;
      }
    #else
      #define STRIPES 1
      #define thread_stripe() 0
    #endif
    """
    PyObject *take_pointer(PyObject **place) noexcept
    enum:
        STRIPES
    unsigned int thread_stripe() noexcept
    ctypedef struct shard_mutex:
        pass
    void shard_lock_init(shard_mutex *m) noexcept
    void shard_lock(shard_mutex *m) noexcept
    void shard_unlock(shard_mutex *m) noexcept
    void take_ref(PyObject *o) noexcept
    int64_t counter_add(int64_t *count, int64_t n) noexcept
    int64_t counter_read(const int64_t *count) noexcept
