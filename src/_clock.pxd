# cython: language_level=3
"""The native clocks. `clock_now`: monotonic nanoseconds, cheap enough to read on every request.

Linux reads CLOCK_MONOTONIC_COARSE (no hardware counter, a few nanoseconds; it lags the true time by at most one
kernel jiffy, 1 to 10 ms), macOS the approximate monotonic clock, Windows the tick count. A session therefore
expires exactly on this clock, and within a jiffy of the wall. `wall_now`: time since the epoch, what `time.time_ns`
answers, for storages whose records outlive the process. Times are signed 64-bit nanoseconds: 292 years.
"""
from libc.stdint cimport int64_t

cdef extern from * nogil:
    """
    #include <time.h>
    #if defined(_WIN32)
      #include <windows.h>
      static inline int64_t clock_now(void) { return (int64_t)GetTickCount64() * 1000000; }
      static inline int64_t wall_now(void) {        /* 100 ns since 1601 */
          FILETIME t;
          GetSystemTimePreciseAsFileTime(&t);
          return ((int64_t)(((uint64_t)t.dwHighDateTime << 32) | t.dwLowDateTime) - 116444736000000000) * 100;
      }
    #elif defined(__APPLE__)
      static inline int64_t clock_now(void) {
          return (int64_t)clock_gettime_nsec_np(CLOCK_MONOTONIC_RAW_APPROX);
      }
    #else
      #ifdef CLOCK_MONOTONIC_COARSE
        #define CYS_CLOCK CLOCK_MONOTONIC_COARSE
      #else
        #define CYS_CLOCK CLOCK_MONOTONIC
      #endif
      static inline int64_t clock_now(void) {
          struct timespec ts;
          clock_gettime(CYS_CLOCK, &ts);
          return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
      }
    #endif
    #if !defined(_WIN32)
      static inline int64_t wall_now(void) {
          struct timespec ts;
          clock_gettime(CLOCK_REALTIME, &ts);
          return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
      }
    #endif
    """
    int64_t clock_now() noexcept
    int64_t wall_now() noexcept
