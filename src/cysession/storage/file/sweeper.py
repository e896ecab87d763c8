"""The clean-up: removes records that have expired or were torn, and what killed writers left behind.

It walks over the directory a little at a time: a slice of milliseconds, a rest, the next slice, in a
thread of its own and never in a request. One process of a host does it at a time, which a lock on a file
decides. Nothing depends on it: readers judge every record themselves. A file is removed only under its
stripe's lock and after a second look; whatever is not ours by name, type or owner stays where it is, and
so does a record of a format from the future.
"""

import contextlib
import fcntl
import os
import random
import re
import stat
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Literal

from cysession import codec
from cysession._core import Place
from cysession.errors import CorruptRecord, SessionError
from cysession.storage.driver import Driver

from .directory import CONTROL, OPEN_DIR, Directory
from .locks import OPEN_LOCK, Locks
from .records import READ, TEMPORARY, TICK

__all__ = ["Sweeper"]

SLICE = 0.003  # seconds of work
REST = 0.05  # seconds between two slices
NO_SESSION = codec.FLAG_ALIAS | codec.FLAG_INDEX
Verdict = Literal["expired", "signs", "torn", "orphans"]

_chance = random.SystemRandom()  # not the module's own generator, which a program may have seeded for itself
_is_digit = re.compile(r"[0-9a-f]").fullmatch
_is_record = re.compile(r"[0-9a-f]{62}").fullmatch


class Sweeper:
    def __init__(
        self,
        directory: Directory,
        locks: Locks,
        now_and_ttl: Callable[[], tuple[int, int]],
        tell_expired: Callable[[Place], object],
        *,
        every: float,
        orphan_age: float,
    ) -> None:
        self._directory = directory
        self._locks = locks
        self._storage = weakref.WeakMethod(now_and_ttl)  # not to keep alive what keeps us
        self._tell_expired = weakref.WeakMethod(tell_expired)
        self._every = every
        self._orphan_age = orphan_age
        self._driver = Driver("cysession-files", self._step)
        self._closed = False
        self._fd = -1  # the sweeper's lock file, while it is ours
        self._round: Iterator[tuple[str, str]] = iter(())
        self.counts: dict[str, int] = {"expired": 0, "signs": 0, "torn": 0, "orphans": 0, "passes": 0}
        self.forget()

    def forget(self) -> None:
        """In a forked child: a walk that the parent goes on with, and a lock that is the parent's."""
        self._busy = threading.Lock()
        self._end()

    def _now_and_ttl(self) -> tuple[int, int]:
        ask = self._storage()
        return (0, 0) if ask is None else ask()  # (0, 0): for nobody, nothing expires

    def start(self) -> None:
        """Make sure that somebody cleans up. Cheap when somebody does."""
        if self._every > 0 and not self._closed:
            self._driver.start()

    def stop(self) -> None:
        self._closed = True
        self._driver.stop()
        with self._busy:
            self._end()

    def sweep(self, budget: float | None) -> int:
        """Go on for `budget` seconds (None: to the end of the round). How many files were removed."""
        before = self._removed()
        deadline = time.monotonic() + (float("inf") if budget is None else budget)
        while not self._slice(min(SLICE, deadline - time.monotonic()), eager=True):
            if time.monotonic() >= deadline:
                break
        return self._removed() - before

    def count_live(self) -> int:
        now, ttl = self._now_and_ttl()
        live = 0
        for leaf, name in self._walk():
            if _is_record(name):
                header = self._head(leaf, name)
                if header is not None and not header[0].flags & NO_SESSION:
                    live += not _has_expired(*header, now, ttl)
        return live

    def places(self) -> Iterator[Place]:
        """Where something lies that is a record by its name."""
        for leaf, name in self._walk():
            if _is_record(name):
                yield Place(leaf.replace("/", "") + name)

    # ---- a round, slice by slice -------------------------------------------------------------------------

    def _step(self) -> float:
        """For the thread: one slice, and how long to rest then."""
        try:
            done = self._slice(SLICE, eager=False)
        except (OSError, SessionError):  # whatever it is, requests meet and report it too
            with self._busy:
                self._end()
            done = True
        return self._every * _chance.uniform(0.9, 1.1) if done else REST

    def _slice(self, budget: float, *, eager: bool) -> bool:
        """Whether the round has come to its end, or is somebody else's."""
        deadline = time.monotonic() + budget
        with self._busy:
            if self._fd < 0 and not self._begin(eager):
                return True
            for leaf, name in self._round:
                if name:
                    self._judge(leaf, name)
                if time.monotonic() >= deadline:
                    return False
            self.counts["passes"] += 1
            os.utime(self._fd)
            self._end()
            return True

    def _begin(self, eager: bool) -> bool:
        """Become this host's sweeper, unless another process is that or (if not eager) was a moment ago."""
        fd = os.open(f"{CONTROL}/sweep", OPEN_LOCK, 0o600, dir_fd=self._directory.fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ended = os.fstat(fd).st_mtime  # of a new file: nothing can have expired yet
            if not eager and 0 <= time.time() - ended < self._every / 2:
                raise BlockingIOError
        except BaseException as error:
            os.close(fd)
            if isinstance(error, BlockingIOError):
                return False
            raise
        self._fd = fd
        self._round = self._walk()
        return True

    def _end(self) -> None:
        fd, self._fd = self._fd, -1
        self._round = iter(())
        if fd >= 0:
            os.close(fd)

    def _walk(self) -> Iterator[tuple[str, str]]:
        """(leaf directory, file name) of every file, and once per directory with "", to keep slices short."""
        for first in filter(_is_digit, self._list(".")):
            yield first, ""
            for second in filter(_is_digit, self._list(first)):
                leaf = f"{first}/{second}"
                yield leaf, ""
                for name in self._list(leaf):
                    yield leaf, name

    def _list(self, name: str) -> list[str]:
        try:
            fd = os.open(name, OPEN_DIR, dir_fd=self._directory.fd)
        except (FileNotFoundError, NotADirectoryError):
            return []
        try:
            return os.listdir(fd) if os.fstat(fd).st_uid == os.geteuid() else []
        finally:
            os.close(fd)

    # ---- one file ------------------------------------------------------------------------------------------

    def _judge(self, leaf: str, name: str) -> None:
        if name.startswith(TEMPORARY):
            if self._is_orphan(leaf, name):
                self._remove(leaf, name, "orphans")
        elif _is_record(name) and self._verdict(leaf, name) is not None:
            place = Place(leaf.replace("/", "") + name)
            verdict = None
            if self._locks.acquire(place.stripe, wait=False):
                try:
                    verdict = self._verdict(leaf, name)  # it may have been written again
                    if verdict is not None:
                        self._remove(leaf, name, verdict)
                finally:
                    self._locks.release(place.stripe)
            tell = self._tell_expired()
            if verdict == "expired" and tell is not None:
                tell(place)

    def _is_orphan(self, leaf: str, name: str) -> bool:
        """By the time of its last change on the kernel's clock: the modification time is the storage's."""
        try:
            info = os.stat(f"{leaf}/{name}", dir_fd=self._directory.fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        ours = stat.S_ISREG(info.st_mode) and info.st_uid == os.geteuid()
        return ours and time.time() - info.st_ctime > self._orphan_age

    def _verdict(self, leaf: str, name: str) -> Verdict | None:
        try:
            header = self._head(leaf, name)
        except CorruptRecord:
            return "torn"
        if header is not None and _has_expired(*header, *self._now_and_ttl()):
            return "signs" if header[0].flags & NO_SESSION else "expired"
        return None

    def _head(self, leaf: str, name: str) -> tuple[codec.Header, int] | None:
        """The header of a record and the time of its last use; None: not there, or not ours to judge."""
        try:
            fd = os.open(f"{leaf}/{name}", READ, dir_fd=self._directory.fd)
        except OSError:
            return None
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode) or info.st_uid != os.geteuid():
                return None
            head = os.read(fd, codec.HEADER_SIZE)
        finally:
            os.close(fd)
        if codec.is_from_the_future(head):
            return None
        header = codec.peek(head)
        if info.st_size != codec.HEADER_SIZE + header.length:
            raise CorruptRecord("a torn record")
        return header, info.st_mtime_ns - info.st_mtime_ns % TICK

    def _remove(self, leaf: str, name: str, verdict: Verdict) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{leaf}/{name}", dir_fd=self._directory.fd)
            self.counts[verdict] += 1

    def _removed(self) -> int:
        return sum(self.counts.values()) - self.counts["passes"]


def _has_expired(header: codec.Header, last_use: int, now: int, ttl: int) -> bool:
    """By what the file says: its end, its own idle ttl, or the longest one of those who used it.

    ttl: the longest seen in use in this process, which may be longer still, after a restart with a new one. What
    other processes use, the file says (FileStorage._lengthen).
    """
    if now >= header.cap:
        return True
    idle = header.own_ttl or (max(header.idle, ttl) if header.idle else 0)
    return not header.flags & codec.FLAG_ALIAS and 0 < idle <= now - last_use
