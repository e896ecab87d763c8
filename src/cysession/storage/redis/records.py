"""One session in one Redis string: its name, its bytes, and what a reader may believe.

    offset size
      0     8   used      ns: last use, on the storage's clock; the one part that a touch may write
      8     8   token     of the write that made this string: its version
     16    24   tokens    of the three writes before it
     40     .   record    codec.frame(): magic, format, flags, birth, created, cap, idle, length, crc, payload

The key is a prefix and the SHA-256 of the session's id, so nothing at rest, in a slow log or in MONITOR logs
anybody in. The record's checksum covers key and tokens too: a string that was copied to another key, or put
together from two, is as good as none.

A writer shows what it has read, all of it or a digest, and brings a fresh token. If what is stored has changed
since, the write is refused and answered with what is stored now; a writer that finds its own token there, or among
the three before it, learns that its first attempt did arrive and only the answer was lost. No token is ever given
out twice, so a write that was delayed on its way changes nothing after any later one.

Idle time is the key's own time to live, kept by the server: nodes need no common clock for it. Only with a
clock of the manager's (`Manager(clock=...)`) does `used` decide, and the time to live merely cleans up.
"""

import os
import struct
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol, TypeAlias
from zlib import crc32

from cysession import codec
from cysession._core import (
    Delta,
    Numbers,
    Record,
    stored_remote,
    stored_string,
    string_attempt,
    string_version,
)
from cysession._core import StoredRemote as Stored
from cysession.errors import CorruptRecord

from . import scripts
from .wire import Script, Template, pack

__all__ = [
    "FOREIGN",
    "Blobs",
    "Check",
    "Layout",
    "Place",
    "Request",
    "Stored",
    "Tokens",
    "command",
    "is_alias",
    "new_token",
    "read_head",
    "script",
]

KEY_LENGTH: Final = 64  # hex digits of SHA-256
TOKEN: Final = 8
USED = struct.Struct("<q")

Clock: TypeAlias = "Callable[[], float] | None"

FOREIGN: Final = object()
"""In place of the reply of a server that has something of another type under that key."""


class Request(NamedTuple):
    """What the client is asked: a packed command that names one key.

    changes: it may change what a load of that key reads; a new time to live is no change.
    """

    key: bytes
    packed: bytes
    changes: bool = False


def command(key: bytes, *parts: bytes) -> Request:
    return Request(key, pack(*parts))


def script(of: Script, key: bytes, *args: bytes, changes: bool = False) -> Request:
    return Request(key, of(key, *args), changes)


# ---- versions ------------------------------------------------------------------------------------------

_numbers = Numbers()


def _begin_counting() -> None:
    """Where this process's tokens begin is drawn at random, and again in a forked child."""
    global _numbers
    _numbers = Numbers(int.from_bytes(os.urandom(TOKEN), "little", signed=True))


_begin_counting()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_counting)


def new_token() -> bytes:
    """A version that no other write has."""
    return _numbers.take_bytes()


class Tokens:
    """The version of a record, and the three before it."""

    SIZE: Final = 4 * TOKEN
    NONE: Final = bytes(4 * TOKEN)

    @staticmethod
    def after(before: bytes, token: bytes) -> bytes:
        return token + before[: 3 * TOKEN]

    @staticmethod
    def has(tokens: bytes, token: bytes) -> bool:
        return any(tokens[n : n + TOKEN] == token for n in range(0, len(tokens), TOKEN))


# ---- what is stored, and where -------------------------------------------------------------------------


class Check(NamedTuple):
    """What is known of a field that is intact."""

    crc: int
    order: int
    raw: bytes  # as it is stored: an equal one is intact too, and needs no decoding


class Place:
    """Where a session is kept, and what this process last saw there."""

    __slots__ = ("ends", "key", "load", "name", "noted", "seed", "stored")

    def __init__(self, prefix: bytes, name: str, load: Template) -> None:
        self.name = name  # 64 hex digits
        self.key = prefix + name.encode("ascii")
        self.seed = crc32(self.key)  # of the record's checksum
        self.load = load(self.key)
        self.stored: Stored | None = None
        self.noted = 0  # when its use was last noted
        self.ends = (
            0  # when the server was last seen to end it, if it was; what is known of the uses of others
        )


class Layout(Protocol):
    """How sessions lie in Redis. Reads and builds; whoever calls it talks to the server."""

    load: Template  # reads a whole session

    def decode(self, place: Place, reply: object) -> Stored:
        """Raises CorruptRecord."""
        ...

    def version(self, stored: Stored) -> bytes:
        """What `swap` compares."""
        ...

    def version_read(self, reply: object) -> bytes:
        """The same of a reply, also of one that does not decode."""
        ...

    def build(self, place: Place, record: Record, tokens: bytes, idle: int, used: int) -> Stored:
        """What to store of a session."""
        ...

    def attempt(
        self, place: Place, stored: Stored, delta: Delta, token: bytes, ttl: int, clock: Clock
    ) -> tuple[Stored | None, bytes]:
        """One try to commit onto what is stored: what that makes of it, and the `swap` that does it."""
        ...

    def build_alias(self, place: Place, target: Place, end: Record, tokens: bytes) -> Stored: ...

    def create(self, place: Place, new: Stored, ttl_ms: int) -> Request:
        """Answers OK or 1, and nil or 0 if the key is taken."""
        ...

    def swap(self, place: Place, version: bytes, new: Stored | None, ttl_ms: int) -> bytes:
        """Packed. Answers 1, 0 if there is nothing, or what is there if that is of another version. None: delete."""
        ...

    def touch(self, place: Place, stored: Stored, ttl_ms: int, used: int | None) -> Request:
        """Answers 1, or 0 if that session, as far as its deadlines go, is not there."""
        ...

    def remove(self, place: Place, birth: int | None, *, alias: bool) -> Request:
        """Answers 0 if there is nothing (of that birth), else the record's head; an alias stays unless `alias`."""
        ...

    def glance(self, place: Place) -> Request:
        """Answers the head alone, or nothing."""
        ...

    def head_in(self, reply: object) -> bytes:
        """The head in what `remove` answered."""
        ...


# ---- one string a session ------------------------------------------------------------------------------

RECORD = USED.size + Tokens.SIZE  # where codec's record begins
HEAD = RECORD + codec.HEADER_SIZE
FLAGS = RECORD + 5
KIND = slice(FLAGS, RECORD + 40)  # flags, birth, created, cap, idle: see codec


class Blobs:
    """One string a session."""

    load = Template(b"GET", Template.HOLE)

    def decode(self, place: Place, reply: object) -> Stored:
        if type(reply) is not bytes or len(reply) < HEAD:
            raise CorruptRecord("shorter than a session")
        tokens = reply[USED.size : RECORD]
        header, payload = codec.unframe(reply[RECORD:], bound_to=tokens, seed=place.seed)
        if header.flags & codec.FLAG_SEALED:
            raise CorruptRecord("an encrypted record")
        (used,) = USED.unpack_from(reply)
        if header.flags & codec.FLAG_ALIAS:
            record = Record.build({}, header.created, header.cap, 0, header.birth)
            return stored_remote(record, key_in(payload), header.idle, used, tokens, reply, reply, len(reply))
        record = codec.build(header, payload)
        return stored_remote(record, None, header.idle, used, tokens, reply, reply, len(reply))

    def version(self, stored: Stored) -> bytes:
        return string_version(stored.head)

    def version_read(self, reply: object) -> bytes:
        return string_version(reply if type(reply) is bytes else b"")

    def build(self, place: Place, record: Record, tokens: bytes, idle: int, used: int) -> Stored:
        return stored_string(record, idle, used, tokens, place.seed)

    def attempt(
        self, place: Place, stored: Stored, delta: Delta, token: bytes, ttl: int, clock: Clock
    ) -> tuple[Stored | None, bytes]:
        return string_attempt(stored, delta, token, ttl, clock, _SWAP.front, place.key, place.seed)

    def build_alias(self, place: Place, target: Place, end: Record, tokens: bytes) -> Stored:
        name = target.name.encode("ascii")
        framed = codec.frame(end, name, flags=codec.FLAG_ALIAS, bound_to=tokens, seed=place.seed)
        raw = b"".join((USED.pack(end.created), tokens, framed))
        return stored_remote(end, target.name, 0, end.created, tokens, raw, raw, len(raw))

    def create(self, place: Place, new: Stored, ttl_ms: int) -> Request:
        return Request(place.key, _SET(place.key, new.head, b"NX", b"PX", ttl_ms), True)

    def swap(self, place: Place, version: bytes, new: Stored | None, ttl_ms: int) -> bytes:
        return _SWAP(place.key, version, b"" if new is None else new.head, ttl_ms)

    def touch(self, place: Place, stored: Stored, ttl_ms: int, used: int | None) -> Request:
        kind = kind_of(stored.head[KIND])
        more = () if used is None else (USED.pack(used),)
        return script(scripts.TOUCH, place.key, kind, b"%d" % ttl_ms, *more)

    def remove(self, place: Place, birth: int | None, *, alias: bool) -> Request:
        return script(scripts.REMOVE, place.key, birth_of(birth), b"1" if alias else b"", changes=True)

    def glance(self, place: Place) -> Request:
        return command(place.key, b"GETRANGE", place.key, b"0", b"%d" % (HEAD - 1))

    def head_in(self, reply: object) -> bytes:
        return reply if type(reply) is bytes else b""


def is_alias(head: bytes) -> bool:
    return len(head) > FLAGS and head[FLAGS] == codec.FLAG_ALIAS


def read_head(head: bytes) -> tuple[codec.Header, int]:
    """The header and the last use. Raises CorruptRecord."""
    if len(head) < HEAD:
        raise CorruptRecord("shorter than a session")
    return codec.peek(head[RECORD:]), USED.unpack_from(head)[0]


_SWAP = Template(b"EVALSHA", scripts.SWAP.digest, 1, *[Template.HOLE] * 4)
_SET = Template(b"SET", *[Template.HOLE] * 5)


def birth_of(birth: int | None) -> bytes:
    return b"" if birth is None else birth.to_bytes(8, "little")


def kind_of(head: bytes) -> bytes:
    """What must be the same for a touch: flags, birth, created and cap, and the session's own ttl if it has one."""
    return head if head[0] & codec.FLAG_OWN_TTL else head[:-8]


def key_in(payload: bytes) -> str:
    if len(payload) != KEY_LENGTH or payload.strip(b"0123456789abcdef"):
        raise CorruptRecord("an alias that leads nowhere")
    return payload.decode("ascii")
