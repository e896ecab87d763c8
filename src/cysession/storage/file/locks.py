"""Who may write a record: a fixed set of locks, shared by all records by their hash.

A stripe is a lock between threads and, inside it, a flock between processes. The kernel drops a flock with
the process that held it, so nobody has to clean up after a kill. Lock files that somebody removes are made
again: an owner always checks that the file it has locked is still the one that others would find.
"""

import fcntl
import os
import threading
import time

from cysession._core import Place, disown_lock, own_lock
from cysession.errors import StorageUnavailable

from .directory import CONTROL, Directory

__all__ = ["STRIPES", "Locks"]

STRIPES = Place.STRIPES
OPEN_LOCK = os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC  # read-only: nobody keeps the disk busy


class Locks:
    def __init__(self, directory: Directory, timeout: float) -> None:
        self._directory = directory
        self._timeout = timeout
        self._threads = [threading.Lock() for _ in range(STRIPES)]
        self._files = [-1] * STRIPES
        self._epochs = [0] * STRIPES  # of the directory that the lock file was opened in

    def acquire(self, stripe: int, *, wait: bool = True) -> bool:
        """Own the stripe. Raises OSError, or StorageUnavailable if whoever owns it does not let go in time.

        wait=False: return False if it is not free.
        """
        lock = self._threads[stripe]
        if not lock.acquire(False) and not (wait and lock.acquire(timeout=self._timeout)):
            return _stuck(wait)
        try:
            while True:
                fd = self._files[stripe]
                if fd < 0 or self._epochs[stripe] != self._directory.epoch:
                    fd = self._open(stripe)
                try:
                    if own_lock(fd):
                        return True
                except BlockingIOError:
                    if not (wait and self._wait(fd)):
                        lock.release()
                        return _stuck(wait)
                else:
                    self._close(stripe)  # nobody else would find it any more
        except OSError:
            lock.release()
            raise

    def release(self, stripe: int) -> None:
        fd = self._files[stripe]
        try:
            if fd >= 0:  # closed meanwhile: released with it
                disown_lock(fd)
        except OSError:
            self._close(stripe)  # which releases it too
        finally:
            self._threads[stripe].release()

    def acquire_all(self, stripes: list[int]) -> None:
        """Own several, in the order given: sorted, so that no two owners wait for each other."""
        held: list[int] = []
        try:
            for stripe in stripes:
                self.acquire(stripe)
                held.append(stripe)
        except BaseException:
            self.release_all(held)
            raise

    def release_all(self, stripes: list[int]) -> None:
        for stripe in reversed(stripes):
            self.release(stripe)

    def _open(self, stripe: int) -> int:
        self._close(stripe)
        name, root = f"{CONTROL}/{stripe:02x}", self._directory.fd
        self._epochs[stripe] = self._directory.epoch
        try:
            fd = os.open(name, OPEN_LOCK, 0o600, dir_fd=root)
        except FileNotFoundError:
            self._directory.make_control(root)
            fd = os.open(name, OPEN_LOCK, 0o600, dir_fd=root)
        self._files[stripe] = fd
        return fd

    def _wait(self, fd: int) -> bool:
        """Ask again and again: a blocking flock could not be given up. False: in vain."""
        deadline, pause = time.monotonic() + self._timeout, 0.0001
        while time.monotonic() < deadline:
            time.sleep(pause)
            pause = min(pause * 1.5, 0.005)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            return True
        return False

    def forget(self) -> None:
        """In a forked child: locks on these files are the parent's, and the other threads are gone."""
        self.close()
        self._threads = [threading.Lock() for _ in range(STRIPES)]

    def close(self) -> None:
        for stripe in range(len(self._files)):  # at exit the module's names may be gone
            self._close(stripe)

    def __del__(self) -> None:
        try:  # noqa: SIM105 - at exit contextlib may be gone as well
            self.close()
        except (AttributeError, TypeError):
            pass  # the interpreter is going, and the system closes the files

    def _close(self, stripe: int) -> None:
        fd, self._files[stripe] = self._files[stripe], -1
        if fd >= 0:
            os.close(fd)


def _stuck(wait: bool) -> bool:
    if wait:
        raise StorageUnavailable("another request has held the lock of this session for too long; try again")
    return False
