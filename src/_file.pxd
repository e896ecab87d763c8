# cython: language_level=3
"""One file's system calls, in the sequences that FileStorage needs: what a request asks of the kernel is one call here.

Plain C on a descriptor of the directory and names relative to it, run without the GIL. Every function returns 0 or an
errno. Calls that a signal interrupts are made again; Python's handlers run when the sequence is over.
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef extern from * nogil:
    """
    #include <errno.h>
    #include <string.h>
    typedef struct { int64_t mtime, size; uint64_t inode; int regular, links; uint32_t owner; } file_facts;

    #if defined(_WIN32)      /* there is no FileStorage: it needs flock and descriptors of directories */
      static int file_look(int root, const char *name, file_facts *out) { return ENOSYS; }
      static int file_lock(int fd, file_facts *out) { return ENOSYS; }
      static int file_unlock(int fd) { return ENOSYS; }
      static int file_ours(const file_facts *facts) { return 0; }
      static int file_open(int root, const char *name, int *fd, file_facts *out) { return ENOSYS; }
      static int file_read(int fd, char *to, Py_ssize_t *size) { return ENOSYS; }
      static int file_close(int fd) { return ENOSYS; }
      static int file_replace(int root, const char *temporary, const char *name, const char *data, Py_ssize_t size,
                              int64_t mtime, int flush, uint64_t *inode) { return ENOSYS; }
    #else
      #include <fcntl.h>
      #include <stdio.h>
      #include <sys/file.h>
      #include <sys/stat.h>
      #include <unistd.h>
      #if defined(__APPLE__)
        #define st_mtim st_mtimespec
      #endif

      static inline int facts_of(int failed, const struct stat *s, file_facts *out) {
          if (failed) { memset(out, 0, sizeof(*out)); return errno; }
          out->mtime = (int64_t)s->st_mtim.tv_sec * 1000000000 + s->st_mtim.tv_nsec;
          out->size = (int64_t)s->st_size;
          out->inode = (uint64_t)s->st_ino;
          out->regular = S_ISREG(s->st_mode);
          out->owner = (uint32_t)s->st_uid;
          out->links = s->st_nlink > 0;
          return 0;
      }
      /* What is there under this name. A link is looked at, not followed. */
      static int file_look(int root, const char *name, file_facts *out) {
          struct stat s;
          return facts_of(fstatat(root, name, &s, AT_SYMLINK_NOFOLLOW), &s, out);
      }
      /* Own an open lock file, and whether others would still find it. EWOULDBLOCK: somebody else does. */
      static int file_lock(int fd, file_facts *out) {
          struct stat s;
          memset(out, 0, sizeof(*out));
          while (flock(fd, LOCK_EX | LOCK_NB)) if (errno != EINTR) return errno;
          return facts_of(fstat(fd, &s), &s, out);
      }
      static int file_unlock(int fd) { return flock(fd, LOCK_UN) ? errno : 0; }
      static int file_ours(const file_facts *facts) { return facts->regular && facts->owner == geteuid(); }
      static int file_close(int fd) { return close(fd) && errno != EINTR ? errno : 0; }

      /* O_NONBLOCK: somebody may have planted a pipe. */
      static int file_open(int root, const char *name, int *fd, file_facts *out) {
          struct stat s;
          int failed;
          memset(out, 0, sizeof(*out));
          do *fd = openat(root, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
          while (*fd < 0 && errno == EINTR);
          if (*fd < 0) return errno;
          failed = facts_of(fstat(*fd, &s), &s, out);
          if (failed) close(*fd);
          return failed;
      }
      /* `size` bytes, or fewer if the file is shorter. */
      static int file_read(int fd, char *to, Py_ssize_t *size) {
          Py_ssize_t have = 0;
          while (have < *size) {
              ssize_t n = read(fd, to + have, (size_t)(*size - have));
              if (n < 0) { if (errno == EINTR) continue; return errno; }
              if (n == 0) break;
              have += n;
          }
          *size = have;
          return 0;
      }

      static int file_fill(int fd, const char *data, Py_ssize_t size, int64_t mtime, int flush, uint64_t *inode) {
          struct stat s;
          struct timespec times[2];
          while (size > 0) {
              ssize_t n = write(fd, data, (size_t)size);
              if (n < 0) { if (errno == EINTR) continue; return errno; }
              data += n;
              size -= n;
          }
          times[0].tv_sec = (time_t)(mtime / 1000000000);
          times[0].tv_nsec = (long)(mtime % 1000000000);
          if (times[0].tv_nsec < 0) { times[0].tv_sec--; times[0].tv_nsec += 1000000000; }
          times[1] = times[0];
          if (futimens(fd, times)) return errno;
          if (flush) while (fsync(fd)) if (errno != EINTR) return errno;
          if (fstat(fd, &s)) return errno;
          *inode = (uint64_t)s.st_ino;
          return 0;
      }
      /* A new file in place of an old one, or of none: all of it or nothing. */
      static int file_replace(int root, const char *temporary, const char *name, const char *data, Py_ssize_t size,
                              int64_t mtime, int flush, uint64_t *inode) {
          int fd, failed, closed;
          do fd = openat(root, temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
          while (fd < 0 && errno == EINTR);
          if (fd < 0) return errno;
          failed = file_fill(fd, data, size, mtime, flush, inode);
          closed = file_close(fd);
          if (!failed) failed = closed;
          if (!failed && renameat(root, temporary, root, name)) failed = errno;
          if (failed) unlinkat(root, temporary, 0);     /* if it stays, the sweeper finds it */
          return failed;
      }
    #endif
    """
    ctypedef struct file_facts:
        int64_t mtime
        int64_t size
        uint64_t inode
        bint regular
        uint32_t owner
        bint links              # whether a name leads to it
    int file_look(int root, const char *name, file_facts *out) noexcept
    int file_lock(int fd, file_facts *out) noexcept
    int file_unlock(int fd) noexcept
    bint file_ours(const file_facts *facts) noexcept        # a regular file of this process's user
    int file_open(int root, const char *name, int *fd, file_facts *out) noexcept
    int file_read(int fd, char *to, Py_ssize_t *size) noexcept
    int file_close(int fd) noexcept
    int file_replace(int root, const char *temporary, const char *name, const char *data, Py_ssize_t size,
                     int64_t mtime, bint flush, uint64_t *inode) noexcept
