/* Makes the n-th file-system call of a process fail, stop short, or be its last, or takes the directory away before it.
 * Loaded with LD_PRELOAD and driven through fault_arm() by tests/faults/drive_*.py. Calls are counted only between arm
 * and disarm. Flushes are counted always: those of the first thread, which runs the event loop, and those of others. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

enum { OFF, FAIL, KILL_BEFORE, KILL_AFTER, SHORT_WRITE, VANISH };

static volatile int mode = OFF, countdown, error, calls;
static char last[32];

void fault_arm(int how, int n, int err) { countdown = n; error = err; calls = 0; last[0] = 0; mode = how; }
int fault_disarm(void) { mode = OFF; return calls; }
const char *fault_last(void) { return last; }

static const char *command;         /* what VANISH runs */
void fault_vanish(const char *text) { command = text; }

static volatile int flushes_of_first, flushes_of_others;
int fault_flushes(int first) { return first ? flushes_of_first : flushes_of_others; }

static void note(const char *name) {
    int i = 0;
    for (; name[i] && i < 31; i++) last[i] = name[i];
    last[i] = 0;
}

/* 0: go on. 1: fail with errno set. 2: go on and then die. 3: write only half. */
static int strike(const char *name) {
    if (mode == OFF) return 0;
    calls++;
    if (countdown-- != 0) return 0;
    note(name);
    if (mode == KILL_BEFORE) { kill(getpid(), SIGKILL); pause(); }
    if (mode == KILL_AFTER) return 2;
    if (mode == VANISH && system(command) != 0) abort();
    if (mode == VANISH) return 0;
    if (mode == SHORT_WRITE) return 3;
    errno = error;
    return 1;
}

static long after(int struck, long result) {
    if (struck == 2) { kill(getpid(), SIGKILL); pause(); }
    return result;
}

#define REAL(name) __typeof__(&name) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define WRAP(ret, name, params, args)                                  \
    ret name params {                                                  \
        REAL(name);                                                    \
        int struck = strike(#name);                                    \
        if (struck == 1) return (ret)-1;                               \
        return (ret)after(struck, (long)real args);                    \
    }

static mode_t mode_of(int flags, va_list rest) { return flags & O_CREAT ? va_arg(rest, mode_t) : 0; }

#define WRAP_OPENAT(name)                                              \
    int name(int dir, const char *path, int flags, ...) {              \
        REAL(name);                                                    \
        va_list rest;                                                  \
        va_start(rest, flags);                                         \
        mode_t m = mode_of(flags, rest);                               \
        va_end(rest);                                                  \
        int struck = strike(#name);                                    \
        if (struck == 1) return -1;                                    \
        return (int)after(struck, real(dir, path, flags, m));          \
    }

WRAP_OPENAT(openat)
WRAP_OPENAT(openat64)
WRAP(int, fdatasync, (int fd), (fd))
WRAP(int, flock, (int fd, int how), (fd, how))
WRAP(int, renameat, (int a, const char *from, int b, const char *to), (a, from, b, to))
WRAP(int, unlinkat, (int dir, const char *path, int flags), (dir, path, flags))
WRAP(int, mkdirat, (int dir, const char *path, mode_t m), (dir, path, m))
WRAP(int, futimens, (int fd, const struct timespec t[2]), (fd, t))
WRAP(int, utimensat, (int dir, const char *path, const struct timespec t[2], int flags), (dir, path, t, flags))
WRAP(int, fstat64, (int fd, struct stat64 *info), (fd, info))
WRAP(int, fstat, (int fd, struct stat *info), (fd, info))
WRAP(int, fstatat64, (int dir, const char *path, struct stat64 *info, int flags), (dir, path, info, flags))
WRAP(int, fstatat, (int dir, const char *path, struct stat *info, int flags), (dir, path, info, flags))
WRAP(ssize_t, read, (int fd, void *buf, size_t n), (fd, buf, n))

int fsync(int fd) {
    REAL(fsync);
    if (syscall(SYS_gettid) == getpid()) __atomic_add_fetch(&flushes_of_first, 1, __ATOMIC_SEQ_CST);
    else __atomic_add_fetch(&flushes_of_others, 1, __ATOMIC_SEQ_CST);
    int struck = strike("fsync");
    if (struck == 1) return -1;
    return (int)after(struck, real(fd));
}

ssize_t write(int fd, const void *buf, size_t n) {
    REAL(write);
    int struck = strike("write");
    if (struck == 1) return -1;
    if (struck == 3) {          /* half of it, and from then on a full disk */
        mode = FAIL;
        countdown = 0;
        error = ENOSPC;
        return real(fd, buf, n / 2);
    }
    return (ssize_t)after(struck, (long)real(fd, buf, n));
}
