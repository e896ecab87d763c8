# cython: language_level=3
"""One exchange over a socket that blocks: what is asked is written and the first of the answer read, in one call.

Plain C, run without the GIL. The kernel keeps the time (SO_SNDTIMEO, SO_RCVTIMEO), so that nobody has to poll: two system
calls an exchange, where a socket of Python with a timeout makes four. Every function returns 0 or an errno.
"""
from libc.stdint cimport int64_t

cdef extern from * nogil:
    """
    #include <errno.h>
    #if defined(_WIN32)      /* its sockets have no numbers of files: whoever asks goes through Python */
      static int socket_limit(int fd, int64_t ns) { return ENOSYS; }
      static int socket_trade(int fd, const char *data, Py_ssize_t size, char *to, Py_ssize_t room, Py_ssize_t *sent,
                              Py_ssize_t *received) { return ENOSYS; }
    #else
      #include <sys/socket.h>
      #include <sys/time.h>
      #if !defined(MSG_NOSIGNAL)
        #define MSG_NOSIGNAL 0      /* Python ignores SIGPIPE in any case */
      #endif

      /* How long one call may wait. */
      static int socket_limit(int fd, int64_t ns) {
          struct timeval t;
          t.tv_sec = (time_t)(ns / 1000000000);
          t.tv_usec = (suseconds_t)(ns % 1000000000 / 1000);
          if (t.tv_sec == 0 && t.tv_usec == 0) t.tv_usec = 1;      /* 0 would mean for ever */
          if (setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &t, sizeof(t))) return errno;
          return setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof(t)) ? errno : 0;
      }
      /* Nothing is made again here: another wait for a whole timeout would be one too many. */
      static int socket_trade(int fd, const char *data, Py_ssize_t size, char *to, Py_ssize_t room, Py_ssize_t *sent,
                              Py_ssize_t *received) {
          ssize_t n = send(fd, data, (size_t)size, MSG_NOSIGNAL);
          *sent = n < 0 ? 0 : n;
          if (n < size) return n < 0 ? errno : EINTR;
          n = recv(fd, to, (size_t)room, 0);
          *received = n < 0 ? 0 : n;
          return n < 0 ? errno : 0;
      }
    #endif
    """
    int socket_limit(int fd, int64_t ns) noexcept
    int socket_trade(int fd, const char *data, Py_ssize_t size, char *to, Py_ssize_t room, Py_ssize_t *sent,
                     Py_ssize_t *received) noexcept
