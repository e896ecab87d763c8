"""One record in one file: its name, its bytes, and what a reader may believe.

A file is written once, under a temporary name, and then renamed over the record: readers need no lock and
see the old record or the new one, never a part. Its bytes are codec.encode()'s, bound to the name, so a
file that was copied over another is as good as none. Only the modification time changes later: it is the
time of the last use, so a touch rewrites nothing.

Its last three digits (below a microsecond) count the writes of the record. The same inode with the same
size and the same time is therefore the same data, also under a clock that stands still and on a file
system that gives a freed inode number to the next file: what one process has decoded once, one stat can
confirm. (The inode matters because a touch names no version: it may hit the successor of what was read.)
"""

import contextlib
import itertools
import logging
import os
import stat
import weakref
from collections.abc import Callable

from cysession import codec
from cysession._core import Record
from cysession.errors import CorruptRecord

from .directory import Directory
from .locks import STRIPES
from .seal import Sealer

__all__ = ["TEMPORARY", "Files", "Place", "Stored", "stamp"]

log = logging.getLogger("cysession.storage")

TEMPORARY = ".tmp-"
READ = (
    os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
)  # O_NONBLOCK: somebody may have planted a pipe
WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
TICK = 1000  # ns; what lies below it in a modification time counts writes


class Stored:
    """What a record's file holds. Never changes: a cache of it may be shared by threads."""

    __slots__ = ("alias", "idle", "inode", "mtime", "record", "size")

    def __init__(
        self, record: Record, alias: str | None, idle: int, mtime: int, inode: int, size: int
    ) -> None:
        self.record = record  # of an alias: only its birth and its end
        self.alias = alias  # the storage key of the record that this one leads to
        self.idle = idle  # the last writer's idle ttl
        self.mtime = mtime
        self.inode = inode
        self.size = size

    @property
    def last_use(self) -> int:
        return self.mtime - self.mtime % TICK

    def used_at(self, mtime: int) -> "Stored":
        return Stored(self.record, self.alias, self.idle, mtime, self.inode, self.size)

    @property
    def exact(self) -> bool:
        """Whether the file system seems to keep times to the nanosecond: we never write a 0 there."""
        return self.mtime % TICK != 0

    def alive(self, now: int, ttl: int) -> bool:
        record = self.record
        if now >= record.cap:
            return False
        idle = record.ttl or ttl or self.idle
        return self.alias is not None or not idle or now - self.mtime // TICK * TICK < idle

    def is_shown_by(self, info: os.stat_result) -> bool:
        """Whether the file that was just looked at is still the one that this was read from."""
        return info.st_mtime_ns == self.mtime and info.st_ino == self.inode and info.st_size == self.size


class Place:
    """Where the record of one session is kept, and what this process last saw there."""

    __slots__ = ("flags", "key", "leaf", "name", "seen", "stripe")

    def __init__(self, key: str, flags: int = 0) -> None:
        self.flags = flags  # FLAG_INDEX: no session is kept here
        self.key = key.encode("ascii")
        self.name = f"{key[0]}/{key[1]}/{key[2:]}"
        self.leaf = self.name[:3]
        self.stripe = int(key[-2:], 16) % STRIPES
        self.seen: Stored | None = None


def stamp(now: int, before: int) -> int:
    """A modification time for `now` that differs from the one `before` it and counts as exact."""
    return now - now % TICK + before % TICK % (TICK - 1) + 1


class Damage:
    """Counts files that are no records, and reports each once, without its name."""

    def __init__(self, tell: Callable[[Place], object]) -> None:
        self.count = 0
        self._reported: set[str] = set()
        self._tell = weakref.WeakMethod(tell)  # not to keep alive what keeps us

    def note(self, place: Place, reason: str) -> None:
        self.count += 1
        if tell := self._tell():
            tell(place)
        if place.name not in self._reported and len(self._reported) < 1000:
            self._reported.add(place.name)
            log.warning("a session file is unreadable and counts as missing: %s", reason)


class Files:
    """Reads, writes and removes records. Knows nothing of time and locks; raises OSError."""

    def __init__(
        self,
        directory: Directory,
        *,
        sync_file: bool,
        sync_dir: bool,
        sealer: Sealer | None,
        tell_corrupt: Callable[[Place], object],
    ) -> None:
        self._directory = directory
        self._sync_file = sync_file
        self._sync_dir = sync_dir
        self._sealer = sealer
        self.damage = Damage(tell_corrupt)
        self._count = itertools.count()
        self.forget()

    def forget(self) -> None:
        """In a forked child: names of temporary files must not be the parent's."""
        self._prefix = f"/{TEMPORARY}{os.urandom(8).hex()}-"

    # ---- reading --------------------------------------------------------------------------------------

    def look(self, place: Place) -> Stored | None:
        """What the file holds, read again only if it is not what we saw last. None: missing or corrupt."""
        seen = place.seen
        if seen is None:
            return self.read(place)
        try:
            info = os.stat(place.name, dir_fd=self._directory.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return seen if seen.is_shown_by(info) else self.read(place)

    def read(self, place: Place) -> Stored | None:
        if not self._directory.check(place.leaf):
            return None
        try:
            fd = os.open(place.name, READ, dir_fd=self._directory.fd)
        except FileNotFoundError:
            return None
        except OSError:
            if not self._is_link(place):
                raise
            self.damage.note(place, "a symbolic link")
            return None
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode) or info.st_uid != os.geteuid():
                reason = "not a file of this user"
            elif info.st_size > codec.MAX_BYTES:
                reason = "larger than any record"
            else:
                data = _read_all(fd, info.st_size)
                return self._decode(place, data, info)
        except CorruptRecord as error:
            reason = str(error)
        finally:
            os.close(fd)
        self.damage.note(place, reason)
        return None

    def _is_link(self, place: Place) -> bool:
        info = os.stat(place.name, dir_fd=self._directory.fd, follow_symlinks=False)
        return stat.S_ISLNK(info.st_mode)

    def _decode(self, place: Place, data: bytes, info: os.stat_result) -> Stored:
        header, payload = codec.unframe(data, bound_to=place.key)
        if self._sealer is not None:
            if not header.flags & codec.FLAG_SEALED:
                raise CorruptRecord("a record that is not encrypted, though keys are given")
            payload = self._sealer.open(payload, data[: codec.HEAD_SIZE] + place.key)
        elif header.flags & codec.FLAG_SEALED:
            raise CorruptRecord("an encrypted record, and no keys are given")
        alias = None
        if header.flags & codec.FLAG_ALIAS:
            alias = _key_in(payload)
            record = Record.build({}, header.created, header.cap, 0, header.birth)
        else:
            record = codec.build(header, payload)
        return Stored(record, alias, header.idle, info.st_mtime_ns, info.st_ino, info.st_size)

    # ---- writing: the caller holds the lock of the place's stripe -----------------------------------------

    def write(self, place: Place, record: Record, idle: int, mtime: int) -> Stored:
        """Put a record in place of whatever is there. On an error what is there stays."""
        if self._sealer is None:
            data = codec.encode(record, idle=idle, bound_to=place.key, flags=place.flags)
        else:
            data = self._sealed(place, record, codec.pack_items(record.raw_items()), place.flags, idle)
        inode = self._replace(place, data, mtime)
        return Stored(record, None, idle, mtime, inode, len(data))

    def write_alias(self, place: Place, target: Place, record: Record, mtime: int) -> None:
        """Put a sign there that leads to the target until the record given ends."""
        if self._sealer is None:
            data = codec.frame(record, target.key, flags=codec.FLAG_ALIAS, bound_to=place.key)
        else:
            data = self._sealed(place, record, target.key, codec.FLAG_ALIAS, 0)
        self._replace(place, data, mtime)

    def remove(self, place: Place) -> bool:
        """False: there was nothing."""
        place.seen = None
        try:
            os.unlink(place.name, dir_fd=self._directory.fd)
        except FileNotFoundError:
            return False
        if self._sync_dir:
            self._directory.sync_dir(place.leaf)
        return True

    def touch(self, place: Place, mtime: int) -> bool:
        """Note a use. False: there is no such file."""
        try:
            os.utime(place.name, ns=(mtime, mtime), dir_fd=self._directory.fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def _sealed(self, place: Place, record: Record, payload: bytes, flags: int, idle: int) -> bytes:
        sealer = self._sealer
        assert sealer is not None

        def seal(payload: bytes, head: bytes) -> bytes:
            return sealer.seal(payload, head + place.key)

        return codec.frame(record, payload, flags=flags, idle=idle, bound_to=place.key, seal=seal)

    def _replace(self, place: Place, data: bytes, mtime: int) -> int:
        """Write a new file and rename it over the old one. Its inode."""
        root = self._directory.fd
        temporary = f"{place.leaf}{self._prefix}{next(self._count)}"
        if place.leaf not in self._directory.checked:
            self._directory.make(place.leaf)
        try:
            fd = os.open(temporary, WRITE, 0o600, dir_fd=root)
        except FileNotFoundError:
            self._directory.checked.discard(place.leaf)  # somebody removed it; and what else with it?
            raise
        try:
            try:
                written = os.write(fd, data)
                while written < len(data):
                    written += os.write(fd, data[written:])
                os.utime(fd, ns=(mtime, mtime))
                if self._sync_file:
                    os.fsync(fd)
                inode = os.fstat(fd).st_ino
            finally:
                os.close(fd)
            os.rename(temporary, place.name, src_dir_fd=root, dst_dir_fd=root)
        except BaseException:
            self._discard(temporary)
            raise
        if self._sync_dir:
            self._directory.sync_dir(place.leaf)
        return inode

    def _discard(self, name: str) -> None:
        with contextlib.suppress(OSError):  # if it stays, the sweeper finds it
            os.unlink(name, dir_fd=self._directory.fd)


def _read_all(fd: int, size: int) -> bytes:
    """`size` bytes, or fewer if the file is shorter."""
    data = os.read(fd, size)
    while len(data) < size:
        more = os.read(fd, size - len(data))
        if not more:
            break
        data += more
    return data


def _key_in(payload: bytes) -> str:
    if len(payload) != 64 or payload.strip(b"0123456789abcdef"):
        raise CorruptRecord("an alias that leads nowhere")
    return payload.decode("ascii")
