"""What operators want to know of a session directory: its sessions, without their data, and how well the place serves.

Nothing here takes a lock or changes a record; the one file that it makes is its own, in the control directory.
"""

import contextlib
import os
import stat
import time
from collections.abc import Iterator

from cysession import codec
from cysession._core import Place, Stored
from cysession.errors import CorruptRecord
from cysession.storage.operate import FAIL, OK, WARN, Finding, Summary
from cysession.storage.users import USER_KEY

from .directory import CONTROL, Directory
from .records import READ

__all__ = ["examine", "round_ended", "space_of", "summarize"]

SECOND = 1_000_000_000
MARKER = USER_KEY.encode("ascii")
BEGINS_ANEW = {"tmpfs", "ramfs"}  # file systems that are empty after the machine's next start
FAR_AWAY = {
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "9p",
    "fuse.sshfs",
    "fuse.s3fs",
    "ceph",
    "glusterfs",
    "fuse.glusterfs",
}
MIB = 1 << 20


# ---- sessions ---------------------------------------------------------------------------------------------


def summarize(directory: Directory, place: Place, now: int, *, index: bool = False) -> Summary | None:
    """Of the live session in this file; None: there is none, or it cannot be read. index: also of a user's index."""
    try:
        fd = os.open(place.name, READ, dir_fd=directory.fd)
    except OSError:
        return None
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or info.st_uid != os.geteuid() or info.st_size > codec.MAX_BYTES:
            return None
        data = os.read(fd, info.st_size)
    finally:
        os.close(fd)
    try:
        header = codec.peek(data)
    except CorruptRecord:
        return None
    if header.flags & codec.FLAG_ALIAS or (header.flags & codec.FLAG_INDEX and not index):
        return None
    used = info.st_mtime_ns - info.st_mtime_ns % Stored.TICK
    ends = min(header.cap, used + header.idle) if header.idle else header.cap
    if now >= ends:
        return None
    return Summary(
        locator="#" + place.key.decode("ascii"),
        size=info.st_size,
        created_at=header.created / SECOND,
        used_at=used / SECOND,
        expires_at=None if ends == 2**63 - 1 else ends / SECOND,
        idle=header.idle / SECOND if header.idle else None,
        bound=_bound(header, data),
    )


def _bound(header: codec.Header, data: bytes) -> bool | None:
    if header.flags & codec.FLAG_SEALED:
        return None
    if MARKER not in data:
        return False
    try:
        return USER_KEY in codec.unpack(data[codec.HEADER_SIZE :])
    except (CorruptRecord, TypeError):
        return False


# ---- the place --------------------------------------------------------------------------------------------


def examine(directory: Directory, *, durability: str, sealed: bool) -> Iterator[Finding]:
    yield from _who_gets_in(directory)
    yield from _file_system(directory.path)
    yield _durability(durability)
    yield _encryption(sealed)
    yield from _room(directory)
    yield _times(directory)
    yield _clean_up(directory)


def _who_gets_in(directory: Directory) -> Iterator[Finding]:
    info = os.fstat(directory.fd)
    mode = stat.S_IMODE(info.st_mode)
    if mode & 0o077:
        advice = f"chmod 700 {directory.path}: others may look at names and times of records"
        yield Finding(WARN, "permissions", f"mode {mode:04o}", advice)
    else:
        yield Finding(OK, "permissions", f"{directory.path} belongs to this user alone (mode {mode:04o})")
    path = os.path.dirname(directory.path)
    while True:
        info = os.stat(path)
        others = info.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not info.st_mode & stat.S_ISVTX
        if others or info.st_uid not in (0, os.geteuid()):
            advice = f"let root or this user own {path}, not writable by others: they could put another directory there"
            yield Finding(WARN, "directories above", f"others may replace what lies in {path}", advice)
        if path == os.path.dirname(path):
            break
        path = os.path.dirname(path)


def _file_system(path: str) -> Iterator[Finding]:
    kind = _mounted_as(path)
    if kind in BEGINS_ANEW:
        advice = (
            "all sessions end when the machine is started anew; name a directory on a disk if they should not"
        )
        yield Finding(WARN, "file system", kind, advice)
    elif kind in FAR_AWAY:
        advice = (
            "locks and renames of network file systems are not to be relied on; use a local disk, or Redis"
        )
        yield Finding(FAIL, "file system", kind, advice)
    else:
        yield Finding(OK, "file system", kind)


def _mounted_as(path: str) -> str:
    """The type of the file system, by the longest mount point above the path (proc(5), mountinfo)."""
    best, kind = "", "unknown"
    with (
        contextlib.suppress(OSError),
        open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts,
    ):
        real = os.path.realpath(path)
        for line in mounts:
            mount, _, about = line.partition(" - ")
            point = mount.split()[4].replace("\\040", " ")
            if len(point) >= len(best) and (real == point or real.startswith(point.rstrip("/") + "/")):
                best, kind = point, about.split()[0]
    return kind


def _durability(durability: str) -> Finding:
    means = {
        "none": "a power cut may lose the last seconds' commits, or bring back the state before",
        "data": "a commit is on the disk when it returns; a power cut may lose a new session or revive a destroyed one",
        "full": "a power cut neither loses a commit nor revives a destroyed session",
    }
    advice = 'durability="data" or "full" flushes each commit' if durability == "none" else ""
    return Finding(WARN if advice else OK, "durability", f"{durability}: {means[durability]}", advice)


def _encryption(sealed: bool) -> Finding:
    if sealed:
        return Finding(OK, "encryption", "records are encrypted at rest")
    return Finding(OK, "encryption", "none; whoever reads the disk or a backup reads the data (but no ids)")


def space_of(directory: Directory) -> dict[str, float]:
    room = os.fstatvfs(directory.fd)
    space = {
        "free_bytes": float(room.f_bavail * room.f_frsize),
        "bytes": float(room.f_blocks * room.f_frsize),
    }
    if room.f_files:  # some file systems make inodes as they go
        space |= {"free_inodes": float(room.f_favail), "inodes": float(room.f_files)}
    return space


def _room(directory: Directory) -> Iterator[Finding]:
    space = space_of(directory)
    free, share = space["free_bytes"], space["free_bytes"] / max(space["bytes"], 1)
    state = f"{free / MIB:,.0f} MiB free ({share:.0%})"
    yield _how_full("space", state, free < 16 * MIB, share < 0.05 or free < 256 * MIB)
    if "inodes" in space:
        free, share = space["free_inodes"], space["free_inodes"] / max(space["inodes"], 1)
        state = f"{free:,.0f} free ({share:.0%}); each session takes one"
        yield _how_full("inodes", state, free < 1000, share < 0.05 or free < 20_000)


def _how_full(what: str, state: str, full: bool, nearly: bool) -> Finding:
    if full:
        return Finding(FAIL, what, state, "commits are about to fail; make room now")
    return Finding(WARN, what, state, "make room soon") if nearly else Finding(OK, what, state)


def _times(directory: Directory) -> Finding:
    """Whether the file system's clock is ours (a server's may not be), and what it keeps of a time."""
    name = f"{CONTROL}/examine-{os.getpid()}"
    wanted = time.time_ns() // 1000 * 1000 + 1
    fd = os.open(
        name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory.fd
    )
    try:
        skew = os.fstat(fd).st_mtime - time.time()
        os.utime(fd, ns=(wanted, wanted))
        exact = os.fstat(fd).st_mtime_ns == wanted
    finally:
        os.close(fd)
        os.unlink(name, dir_fd=directory.fd)
    if abs(skew) > 2:
        advice = "set both clocks by NTP: sessions would end early or late"
        return Finding(FAIL, "clock", f"the file system's clock is {skew:+.1f} s off this machine's", advice)
    if not exact:
        advice = "it works, but nothing is kept in memory: every request reads its record anew"
        return Finding(WARN, "clock", "the file system keeps times coarser than a nanosecond", advice)
    return Finding(OK, "clock", "the file system's and this machine's agree, to the nanosecond")


def round_ended(directory: Directory) -> float | None:
    """When the last round of the clean-up ended; None: there was none yet."""
    try:
        return os.stat(f"{CONTROL}/sweep", dir_fd=directory.fd, follow_symlinks=False).st_mtime
    except FileNotFoundError:
        return None


def _clean_up(directory: Directory) -> Finding:
    ended = round_ended(directory)
    advice = (
        "who writes cleans up every 5 minutes; where none runs that long, a timer can run `cysession sweep`"
    )
    if ended is None:
        return Finding(OK, "clean-up", "there was none yet", "")
    age = time.time() - ended
    if age > 3600:
        return Finding(WARN, "clean-up", f"the last round was {age / 3600:,.0f} h ago", advice)
    return Finding(OK, "clean-up", f"the last round was {age / 60:.0f} min ago")
