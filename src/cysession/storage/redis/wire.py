"""What goes over the wire: packed commands, scripts, and what an error reply means.

hiredis packs and parses. A command whose shape never changes is packed once and for all (`Template`): only what differs
is put between bytes that are already there.

No text of a server is ever repeated in a message of ours: Redis quotes commands and arguments in its errors, and so
would give away keys and values. Only the code of the error, one word in capitals, is.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

import hiredis

from cysession._core import packed
from cysession.errors import SessionError, StorageFull, StorageMisconfigured, StorageUnavailable

__all__ = [
    "Argument",
    "ErrorReply",
    "Reply",
    "Script",
    "Template",
    "WrongType",
    "explain",
    "pack",
    "pack_many",
    "split",
    "strict",
    "whole",
]

# Its own stub knows tuples of one length only.
pack_command: Callable[..., bytes] = hiredis.pack_command

Argument: TypeAlias = bytes | int | str
# What a server answers: bytes, int, None, (nested) lists of these; an ErrorReply only where the caller asked for it.
Reply: TypeAlias = Any


class ErrorReply(Exception):
    """An error that the server answered; `code` is its first word ("NOSCRIPT"), `text` may hold secrets."""

    __slots__ = ("code", "text")

    def __init__(self, text: str) -> None:
        super().__init__()  # nothing that a traceback could show
        self.text = text
        self.code = _code(text)


_CODE = re.compile(r"[A-Z]{2,20}(?= |$)")
# Before Redis 7 an error inside a script was wrapped: "ERR Error running script (call to f_...): ... -OOM command ..."
_WRAPPED = re.compile(r"ERR Error running script.* -([A-Z]{2,20}) ")
_UNCODED = {
    "ERR max number of clients reached": "MAXCLIENTS",
    "ERR invalid password": "WRONGPASS",  # before Redis 6
    "ERR AUTH ": "WRONGPASS",
    "ERR Client sent AUTH": "WRONGPASS",
    "ERR DB index is out of range": "NODB",
    "ERR invalid DB index": "NODB",
    "ERR SELECT is not allowed in cluster mode": "NODB",
    "ERR This instance has cluster support disabled": "NOCLUSTER",
    "ERR unknown command": "NOCOMMAND",
    "ERR unknown subcommand": "NOCOMMAND",
}


def _code(text: str) -> str:
    for start, code in _UNCODED.items():
        if text.startswith(start):
            return code
    if wrapped := _WRAPPED.match(text):
        return wrapped[1]
    found = _CODE.match(text)
    return found[0] if found else "ERR"


_UNAVAILABLE = {
    "LOADING": "Redis is still loading its data; try again",
    "BUSY": "Redis is busy with a script of somebody; try again",
    "MASTERDOWN": "this Redis replica has lost its master; try again",
    "READONLY": "Redis is a read-only replica (a failover?); try again",
    "NOREPLICAS": "Redis refuses writes: not enough replicas are connected (min-replicas-to-write); try again",
    "CLUSTERDOWN": "the Redis cluster is down or misses slots; try again",
    "TRYAGAIN": "the Redis cluster is moving these keys; try again",
    "MOVED": "the Redis cluster keeps moving this key; try again",
    "NOSCRIPT": "Redis keeps forgetting a script; try again",
    "ASK": "the Redis cluster keeps moving this key; try again",
    "MISCONF": "Redis refuses writes: it cannot save its data to disk; look at its log",
    "MAXCLIENTS": "Redis has too many clients; raise its maxclients",
}
_MISCONFIGURED = {
    "NOAUTH": "Redis wants a password and none is configured",
    "WRONGPASS": "Redis refuses the configured username or password",
    "NOPERM": "the Redis user may not run a command or touch a key that sessions need; look at its ACL",
    "WRONGTYPE": "a Redis key of a session holds something else; give sessions a key prefix of their own",
    "NODB": "Redis has no database of the configured number (a cluster has only 0)",
    "NOCLUSTER": "this Redis is not a cluster; use a redis:// URL",
    "NOCOMMAND": "this Redis server lacks a command that sessions need; use Redis 6 or newer, or Valkey",
    "DENIED": "Redis runs in protected mode and refuses connections from other hosts",
}


class WrongType(StorageMisconfigured):
    """The key holds something of another type."""


def explain(error: ErrorReply) -> SessionError:
    """Our own error for what the server answered: which class, and what to do. Never holds text of the server."""
    code = error.code
    if code == "OOM":
        return StorageFull(
            "Redis has no memory left for this write (maxmemory); the stored session is unchanged"
        )
    if (message := _MISCONFIGURED.get(code)) is not None:
        return (WrongType if code == "WRONGTYPE" else StorageMisconfigured)(message)
    if (message := _UNAVAILABLE.get(code)) is not None:
        return StorageUnavailable(message)
    return StorageUnavailable(f"Redis refused a command ({code}); look at its log")


def strict(replies: list[Reply]) -> list[Reply]:
    """The replies, or the first error among them raised as one of ours."""
    for reply in replies:
        if type(reply) is ErrorReply:
            raise explain(reply) from None
    return replies


def pack(*command: Argument) -> bytes:
    """One command as it goes over the wire."""
    return pack_command(command)


def pack_many(commands: Sequence[Sequence[Argument]]) -> bytes:
    """Several commands, to be written at once."""
    return b"".join([pack_command(tuple(command)) for command in commands])


class Template:
    """A command most of whose arguments are known beforehand: all but some in a row.

    `Template(b"SET", Template.HOLE, Template.HOLE, b"XX")(key, value)` is several times as fast as `pack`.
    """

    HOLE: Final = object()
    __slots__ = ("_back", "_holes", "front")

    def __init__(self, *parts: object) -> None:
        holes = [n for n, part in enumerate(parts) if part is Template.HOLE]
        if not holes or holes != list(range(holes[0], holes[-1] + 1)):
            raise ValueError("a template has something to fill in, in one place")
        self._holes = len(holes)
        known = [part if isinstance(part, bytes) else str(part).encode() for part in parts]
        self.front = packed(b"*%d\r\n" % len(parts), tuple(known[: holes[0]]), b"")
        self._back = packed(b"", tuple(known[holes[-1] + 1 :]), b"")

    def __call__(self, *parts: bytes | int) -> bytes:
        """The command, packed. Raises ValueError for another number of arguments than it lacks."""
        if len(parts) != self._holes:
            raise ValueError(f"{self._holes} arguments are to be filled in")
        return packed(self.front, parts, self._back)


class Script:
    """A Lua script, called by its digest; `Client` sends it whole to a server that does not know it yet."""

    __slots__ = ("digest", "source")

    def __init__(self, source: str) -> None:
        self.source = source.encode()
        self.digest = hashlib.sha1(self.source, usedforsecurity=False).hexdigest().encode()
        _sources[self.digest] = self.source

    def __call__(self, key: bytes, *args: Argument) -> bytes:
        """EVALSHA with one key, packed."""
        return pack_command((b"EVALSHA", self.digest, 1, key, *args))


_sources: dict[bytes, bytes] = {}  # of all scripts, by their digests


def whole(command: bytes) -> bytes | None:
    """A packed EVALSHA as an EVAL, after which the server knows the script; None: it is no EVALSHA of ours."""
    name, *args = _unpack(command)[0]
    source = _sources.get(args[0]) if name == b"EVALSHA" else None
    return None if source is None else pack_command((b"EVAL", source, *args[1:]))


def split(packed: bytes) -> list[bytes]:
    """Packed commands, one by one."""
    return [pack_command(tuple(command)) for command in _unpack(packed)]


def _unpack(packed: bytes) -> list[list[bytes]]:
    reader = hiredis.Reader(notEnoughData=None)
    reader.feed(packed)
    return list(iter(reader.gets, None))
