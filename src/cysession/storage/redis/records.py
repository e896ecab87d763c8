"""One session in one Redis string: its name, its bytes, and what a reader may believe.

    offset size
      0     8   used      ns: last use, on the storage's clock; the one part that a touch may write
      8     8   token     of the write that made this string: its version
     16    24   tokens    of the three writes before it
     40     .   record    codec.frame(): magic, format, flags, birth, created, cap, idle, length, crc, payload

The key is a prefix and the SHA-256 of the session's id, so nothing at rest, in a slow log or in MONITOR logs
anybody in. The record's checksum covers key and tokens too: a string that was copied to another key, or put
together from two, is as good as none.

A writer names what it has read, by a digest, and brings a fresh token. If what is stored has changed since, the
write is refused and answered with what is stored now; a writer that finds its own token there, or among the
three before it, learns that its first attempt did arrive and only the answer was lost. No token is ever given
out twice, so a write that was delayed on its way changes nothing after any later one.

Idle time is the key's own time to live, kept by the server: nodes need no common clock for it. Only with a
clock of the manager's (`Manager(clock=...)`) does `used` decide, and the time to live merely cleans up.
"""

import itertools
import os
import struct
from hashlib import sha1
from typing import Final, NamedTuple, Protocol
from zlib import crc32

from cysession import codec
from cysession._core import Delta, Record
from cysession.errors import CorruptRecord

from . import scripts
from .wire import NoScript, Script, Template, pack

__all__ = [
    "FOREIGN",
    "Blobs",
    "Change",
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

FOREIGN: Final = object()
"""In place of the reply of a server that has something of another type under that key."""


class Request(NamedTuple):
    """What the client is asked: a packed command, which may be a script by its digest. It names one key.

    changes: it may change what a load of that key reads; a new time to live is no change.
    """

    key: bytes
    packed: bytes
    script: Script | None = None
    args: tuple[bytes, ...] = ()
    changes: bool = False

    def whole(self) -> bytes:
        """The same for a server that does not know the script."""
        if self.script is None:
            raise NoScript  # for a command that is none: the server is out of its mind
        return self.script.by_source((self.key,), self.args)


def command(key: bytes, *parts: bytes) -> Request:
    return Request(key, pack(*parts))


def script(of: Script, key: bytes, *args: bytes, changes: bool = False) -> Request:
    return Request(key, of.by_digest((key,), args), of, args, changes)


# ---- versions ------------------------------------------------------------------------------------------

_count = itertools.count()


def _begin_counting() -> None:
    """Where this process's tokens begin is drawn at random, and again in a forked child."""
    global _count
    _count = itertools.count(int.from_bytes(os.urandom(TOKEN), "little"))


_begin_counting()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_counting)


def new_token() -> bytes:
    """A version that no other write has."""
    return (next(_count) & 0xFFFF_FFFF_FFFF_FFFF).to_bytes(TOKEN, "little")


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


class Stored:
    """What is stored of one session. Never changes: threads and tasks may share it."""

    __slots__ = ("alias", "checks", "head", "idle", "raw", "record", "size", "tokens", "used")

    def __init__(
        self,
        record: Record,
        alias: str | None,
        idle: int,
        used: int,
        tokens: bytes,
        head: bytes,
        raw: object,
        size: int,
        checks: dict[bytes, Check] | None = None,
    ) -> None:
        self.record = record  # of an alias: only its birth and its end
        self.alias = alias  # the storage key of the record that this one leads to
        self.idle = idle  # the last writer's idle ttl
        self.used = used
        self.tokens = tokens
        self.head = head  # what holds all of the above but data: a string, whole, or the head of a hash
        self.raw = raw  # the reply that it is read from: an equal one needs no decoding
        self.size = size  # bytes, about
        self.checks = checks  # of a hash: what is known of every field


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


class Change(NamedTuple):
    """What a commit changes."""

    old: Stored
    delta: Delta  # against `old`


class Layout(Protocol):
    """How sessions lie in Redis. Reads and builds; whoever calls it talks to the server."""

    load: Template  # reads a whole session
    wants_changes: bool  # whether `build` can do with less if it is told what a commit changes

    def decode(self, place: Place, reply: object) -> Stored:
        """Raises CorruptRecord."""
        ...

    def version(self, stored: Stored) -> bytes:
        """What `swap` compares."""
        ...

    def version_read(self, reply: object) -> bytes:
        """The same of a reply, also of one that does not decode."""
        ...

    def build(
        self,
        place: Place,
        record: Record,
        tokens: bytes,
        idle: int,
        used: int,
        change: "Change | None" = None,
    ) -> Stored:
        """What to store; `change` says how it differs from what is stored, if that is known."""
        ...

    def build_alias(self, place: Place, target: Place, end: Record, tokens: bytes) -> Stored: ...

    def create(self, place: Place, new: Stored, ttl_ms: int) -> Request:
        """Answers OK or 1, and nil or 0 if the key is taken."""
        ...

    def swap(self, place: Place, version: bytes, new: Stored | None, ttl_ms: int) -> Request:
        """Answers 1, 0 if there is nothing, or what is there if that is of another version. None: delete."""
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

    load = Template(b"GET", Template.KEY)
    wants_changes = False

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
            return Stored(record, key_in(payload), header.idle, used, tokens, reply, reply, len(reply))
        return Stored(codec.build(header, payload), None, header.idle, used, tokens, reply, reply, len(reply))

    def version(self, stored: Stored) -> bytes:
        return _digest(stored.head)

    def version_read(self, reply: object) -> bytes:
        return _digest(reply if type(reply) is bytes else b"")

    def build(
        self, place: Place, record: Record, tokens: bytes, idle: int, used: int, change: Change | None = None
    ) -> Stored:
        framed = codec.encode(record, idle=idle, bound_to=tokens, seed=place.seed)
        raw = b"".join((USED.pack(used), tokens, framed))
        return Stored(record, None, idle, used, tokens, raw, raw, len(raw))

    def build_alias(self, place: Place, target: Place, end: Record, tokens: bytes) -> Stored:
        name = target.name.encode("ascii")
        framed = codec.frame(end, name, flags=codec.FLAG_ALIAS, bound_to=tokens, seed=place.seed)
        raw = b"".join((USED.pack(end.created), tokens, framed))
        return Stored(end, target.name, 0, end.created, tokens, raw, raw, len(raw))

    def create(self, place: Place, new: Stored, ttl_ms: int) -> Request:
        packed = pack(b"SET", place.key, new.head, b"NX", b"PX", b"%d" % ttl_ms)
        return Request(place.key, packed, changes=True)

    def swap(self, place: Place, version: bytes, new: Stored | None, ttl_ms: int) -> Request:
        raw = b"" if new is None else new.head
        life = b"%d" % ttl_ms
        packed = _SWAP % (len(place.key), place.key, version, len(raw), raw, len(life), life)
        return Request(place.key, packed, scripts.SWAP, (version, raw, life), changes=True)

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


def _digest(raw: bytes) -> bytes:
    # What Redis can compute; it tells versions apart and keeps nobody out.
    return sha1(raw[USED.size :], usedforsecurity=False).hexdigest().encode("ascii")


# What every commit sends, packed by hand: five times as fast as by hiredis.
_SWAP = (
    b"*7\r\n$7\r\nEVALSHA\r\n$40\r\n%b\r\n$1\r\n1\r\n$%%d\r\n%%b\r\n$40\r\n%%b\r\n$%%d\r\n%%b\r\n$%%d\r\n%%b\r\n"
    % scripts.SWAP.digest
)


def birth_of(birth: int | None) -> bytes:
    return b"" if birth is None else birth.to_bytes(8, "little")


def kind_of(head: bytes) -> bytes:
    """What must be the same for a touch: flags, birth, created and cap, and the session's own ttl if it has one."""
    return head if head[0] & codec.FLAG_OWN_TTL else head[:-8]


def key_in(payload: bytes) -> str:
    if len(payload) != KEY_LENGTH or payload.strip(b"0123456789abcdef"):
        raise CorruptRecord("an alias that leads nowhere")
    return payload.decode("ascii")
