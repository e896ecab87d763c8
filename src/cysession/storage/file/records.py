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

import logging
import os
import stat
import weakref
from collections.abc import Callable

from cysession import codec
from cysession._core import Delta, Numbers, Place, Record, Stored, read_file, replace_file, stored
from cysession.errors import CorruptRecord

from .directory import Directory
from .seal import Sealer

__all__ = ["TEMPORARY", "TICK", "Files"]

log = logging.getLogger("cysession.storage")

TEMPORARY = ".tmp-"
READ = (  # as in src/_file.pxd
    os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
)  # O_NONBLOCK: somebody may have planted a pipe
TICK = Stored.TICK  # ns; what lies below it in a modification time counts writes


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
        self._numbers = Numbers()
        self.forget()

    def forget(self) -> None:
        """In a forked child: names of temporary files must not be the parent's."""
        self._prefix = f"{TEMPORARY}{os.urandom(8).hex()}-".encode()

    # ---- reading --------------------------------------------------------------------------------------

    def look(self, place: Place) -> Stored | None:
        """What the file holds, read again only if it is not what we saw last. None: missing or corrupt."""
        try:
            return place.confirm(self._directory.fd) or self.read(place)
        except FileNotFoundError:
            return None

    def read(self, place: Place) -> Stored | None:
        if not self._directory.check(place.leaf):
            return None
        try:
            data, mtime, inode, size = read_file(self._directory.fd, place.name, codec.MAX_BYTES)
        except FileNotFoundError:
            return None
        except OSError:
            if not self._is_link(place):
                raise
            self.damage.note(place, "a symbolic link")
            return None
        if data is None:
            reason = "larger than any record" if size > codec.MAX_BYTES else "not a file of this user"
        else:
            try:
                return self._decode(place, data, mtime, inode)
            except CorruptRecord as error:
                reason = str(error)
        self.damage.note(place, reason)
        return None

    def _is_link(self, place: Place) -> bool:
        info = os.stat(place.name, dir_fd=self._directory.fd, follow_symlinks=False)
        return stat.S_ISLNK(info.st_mode)

    def _decode(self, place: Place, data: bytes, mtime: int, inode: int) -> Stored:
        header, payload = codec.unframe(data, seed=place.seed)
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
        return stored(record, alias, header.idle, mtime, inode, len(data))

    # ---- writing: the caller holds the lock of the place's stripe -----------------------------------------

    def write(self, place: Place, record: Record, idle: int, mtime: int) -> Stored:
        """Put a record in place of whatever is there. On an error what is there stays."""
        if self._sealer is None:
            data = codec.encode(record, idle=idle, seed=place.seed, flags=place.flags)
        else:
            data = self._sealed(place, record, codec.payload_of(record), place.flags, idle)
        inode = self._replace(place, data, mtime)
        return stored(record, None, idle, mtime, inode, len(data))

    def exchange(
        self, place: Place, base: Record, delta: Delta, clock: Callable[[], float] | None, ttl: int
    ) -> Record | None:
        """look, apply and write in one go, for what was seen before and is still there. None: step by step, please."""
        if self._sealer is not None or self._sync_dir:
            return None
        fd, number = self._directory.fd, self._numbers.take()
        return place.exchange(fd, base, delta, clock, ttl, self._prefix, number, self._sync_file)

    def write_alias(self, place: Place, target: Place, record: Record, mtime: int) -> None:
        """Put a sign there that leads to the target until the record given ends."""
        if self._sealer is None:
            data = codec.frame(record, target.key, flags=codec.FLAG_ALIAS, seed=place.seed)
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

        return codec.frame(record, payload, flags=flags, idle=idle, seed=place.seed, seal=seal)

    def _replace(self, place: Place, data: bytes, mtime: int) -> int:
        """Write a new file and rename it over the old one. Its inode."""
        leaf = place.leaf
        if leaf not in self._directory.checked:
            self._directory.make(leaf)
        try:
            fd, number = self._directory.fd, self._numbers.take()
            inode = replace_file(fd, place, self._prefix, number, data, mtime, self._sync_file)
        except FileNotFoundError:
            self._directory.checked.discard(leaf)  # somebody removed it; and what else with it?
            raise
        if self._sync_dir:
            self._directory.sync_dir(leaf)
        return inode


def _key_in(payload: bytes) -> str:
    if len(payload) != 64 or payload.strip(b"0123456789abcdef"):
        raise CorruptRecord("an alias that leads nowhere")
    return payload.decode("ascii")
