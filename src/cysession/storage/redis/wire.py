"""What goes over the wire: packed commands, scripts, and what an error reply means.

hiredis packs and parses. A command whose shape never changes is packed once and for all (`Template`): only its key
and value are put between bytes that are already there.

No text of a server is ever repeated in a message of ours: Redis quotes commands and arguments in its errors, and so
would give away keys and values. Only the code of the error, one word in capitals, is.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import hiredis

from cysession.errors import SessionError, StorageFull, StorageMisconfigured, StorageUnavailable

__all__ = [
    "Argument",
    "ErrorReply",
    "NoScript",
    "Reply",
    "Script",
    "Template",
    "WrongType",
    "explain",
    "pack",
    "pack_many",
    "strict",
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


class NoScript(StorageUnavailable):
    """The server does not know the script; it has to be sent whole."""


def explain(error: ErrorReply) -> SessionError:
    """Our own error for what the server answered: which class, and what to do. Never holds text of the server."""
    code = error.code
    if code == "NOSCRIPT":
        return NoScript("Redis has forgotten a script; try again")
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
    """A command with one key, whose arguments but for the key and at most one value are known beforehand.

    `Template(b"SET", Template.KEY, Template.VALUE, b"XX")(key, value)` is about five times as fast as `pack`.
    """

    KEY = object()
    VALUE = object()
    __slots__ = ("_format", "_takes_value")

    def __init__(self, *parts: object) -> None:
        made = [b"*%d\r\n" % len(parts)]
        self._takes_value = Template.VALUE in parts
        for part in parts:
            if part is Template.KEY or part is Template.VALUE:
                made.append(b"$%d\r\n%b\r\n")
            else:
                data = part if isinstance(part, bytes) else str(part).encode()
                made.append(b"$%d\r\n%b\r\n" % (len(data), data.replace(b"%", b"%%")))
        self._format = b"".join(made)
        places = [part for part in parts if part is Template.KEY or part is Template.VALUE]
        if places not in ([Template.KEY], [Template.KEY, Template.VALUE]):
            raise ValueError("a template has one key, and at most one value after it")

    def __call__(self, key: bytes, value: bytes | None = None) -> bytes:
        if value is None:
            return self._format % (len(key), key)
        return self._format % (len(key), key, len(value), value)


class Script:
    """A Lua script, called by its digest; sent whole only to a server that does not know it yet."""

    __slots__ = ("digest", "source")

    def __init__(self, source: str) -> None:
        self.source = source.encode()
        self.digest = hashlib.sha1(self.source, usedforsecurity=False).hexdigest().encode()

    def by_digest(self, keys: Sequence[bytes], args: Sequence[Argument]) -> bytes:
        """EVALSHA, packed."""
        return pack_command((b"EVALSHA", self.digest, len(keys), *keys, *args))

    def by_source(self, keys: Sequence[bytes], args: Sequence[Argument]) -> bytes:
        """EVAL, packed; the server then knows the script."""
        return pack_command((b"EVAL", self.source, len(keys), *keys, *args))
