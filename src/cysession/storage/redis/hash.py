"""One session in one Redis hash, a field for every key: a commit sends what it changes and nothing else.

For sessions of many or large keys of which a request changes few; a small session is better off as one string
(a hash takes three times as long to read and, with one value of more than 64 bytes, twice the memory).

    ""       the head: exactly what records.py describes, with the payload below
    "=key"   4 bytes: CRC-32 of the session's name in Redis, of the field and of what follows
             4 bytes: the key's place among the others, since a hash keeps no order
             the value, see codec.pack

    payload  4 bytes: number of the fields of keys; 8 bytes: the sum of their checksums

So a field that is missing, left over, damaged or another session's shows, and the session counts as missing: never
is a part of one taken for the whole.
"""

import struct
from time import time_ns
from typing import Any, ClassVar, Final, NamedTuple
from zlib import crc32

from cysession import codec
from cysession._core import Delta, Record, stored_remote
from cysession.errors import CorruptRecord, NotSerializable
from cysession.storage.base import SECOND

from . import scripts
from .records import (
    HEAD,
    KIND,
    RECORD,
    USED,
    Check,
    Clock,
    Layout,
    Place,
    Request,
    Stored,
    Tokens,
    birth_of,
    command,
    key_in,
    kind_of,
    script,
)
from .storage import RedisStorage
from .wire import Template

__all__ = ["RedisHashStorage"]

SUM = struct.Struct("<IQ")
CRC = struct.Struct("<I")
ORDER = struct.Struct("<I")
FRONT: Final = CRC.size + ORDER.size
FIELD: Final = b"="


class Patch(NamedTuple):
    """What a write sends beside the head."""

    whole: bool  # in place of all there is
    gone: list[bytes]
    fields: list[bytes]  # and their values, in turn


class Hashes:
    """One hash a session."""

    load = Template(b"HGETALL", Template.HOLE)

    def decode(self, place: Place, reply: object) -> Stored:
        fields = _fields(reply)
        head = fields.pop(b"", b"")
        if len(head) < HEAD:
            raise CorruptRecord("a hash without a session's head")
        seen = place.stored
        known = {} if seen is None else seen.checks or {}
        if seen is not None and known and head == seen.head and _unchanged(fields, known):
            # As this process itself wrote it: from now on an equal reply says so at once.
            return stored_remote(
                seen.record, None, seen.idle, seen.used, seen.tokens, head, reply, seen.size, seen.checks
            )
        tokens = head[USED.size : RECORD]
        header, payload = codec.unframe(head[RECORD:], bound_to=tokens, seed=place.seed)
        if header.flags & codec.FLAG_SEALED:
            raise CorruptRecord("an encrypted record")
        (used,) = USED.unpack_from(head)
        if header.flags & codec.FLAG_ALIAS:
            record = Record.build({}, header.created, header.cap, 0, header.birth)
            return stored_remote(
                record, key_in(payload), header.idle, used, tokens, head, reply, len(head), {}
            )
        checks = {
            field: check
            if (check := known.get(field)) is not None and check.raw == value
            else _check(place, field, value)
            for field, value in fields.items()
        }
        checks = dict(sorted(checks.items(), key=lambda item: item[1].order))
        if payload != _sum(checks):
            raise CorruptRecord("a hash that lacks fields of its session, or has others")
        record = _record(header, checks, seen)
        size = len(head) + sum(len(field) + len(value) for field, value in fields.items())
        return stored_remote(record, None, header.idle, used, tokens, head, reply, size, checks)

    def version(self, stored: Stored) -> bytes:
        return stored.head[USED.size :]

    def version_read(self, reply: object) -> bytes:
        return _fields(reply).get(b"", b"")[USED.size :]

    def build(self, place: Place, record: Record, tokens: bytes, idle: int, used: int) -> Stored:
        return self._build(place, record, tokens, idle, used, None, {})

    def attempt(
        self, place: Place, stored: Stored, delta: Delta, token: bytes, ttl: int, clock: Clock
    ) -> tuple[Stored | None, bytes]:
        now, record = time_ns() if clock is None else round(clock() * SECOND), stored.record
        delta = delta.against(record)
        merged = delta.apply(record, now, record.cap)
        if merged is None:
            return None, self.swap(place, self.version(stored), None, 0)
        tokens = Tokens.after(stored.tokens, token)
        changes, known = (None, {}) if delta.cleared else (delta, stored.checks)
        made = self._build(place, merged, tokens, ttl, now, changes, known)
        return made, self.swap(place, self.version(stored), made, made.life(ttl, now, now, clock))

    @staticmethod
    def _build(
        place: Place,
        record: Record,
        tokens: bytes,
        idle: int,
        used: int,
        delta: Delta | None,
        known: dict[bytes, Check],
    ) -> Stored:
        """delta: what to write of it; None: all. known: the fields there are."""
        data, checks = dict(record.raw_items()), dict(known)
        if delta is None:
            names, gone = list(data), list[bytes]()
        else:
            names = [name for name in delta.values if name in data]
            gone = [_field(name) for name in delta.removed if name not in data and _field(name) in checks]
        fields: list[bytes] = []
        last = max((check.order for check in checks.values()), default=0)
        for name in names:
            field = _field(name)
            before = checks.get(field)
            if before is None:
                last += 1
            order = last if before is None else before.order
            content = ORDER.pack(order) + _pack(name, data[name])
            crc = _crc(place, field, content)
            checks[field] = Check(crc, order, CRC.pack(crc) + content)
            fields += (field, checks[field].raw)
        for field in gone:
            del checks[field]
        framed = codec.frame(record, _sum(checks), idle=idle, bound_to=tokens, seed=place.seed)
        head = b"".join((USED.pack(used), tokens, framed))
        patch = Patch(delta is None, gone, fields)
        return stored_remote(record, None, idle, used, tokens, head, patch, len(head) + record.size, checks)

    def build_alias(self, place: Place, target: Place, end: Record, tokens: bytes) -> Stored:
        name = target.name.encode("ascii")
        framed = codec.frame(end, name, flags=codec.FLAG_ALIAS, bound_to=tokens, seed=place.seed)
        head = b"".join((USED.pack(end.created), tokens, framed))
        return stored_remote(
            end, target.name, 0, end.created, tokens, head, Patch(True, [], []), len(head), {}
        )

    def create(self, place: Place, new: Stored, ttl_ms: int) -> Request:
        fields = _patch(new).fields
        return script(scripts.HASH_CREATE, place.key, b"%d" % ttl_ms, new.head, *fields, changes=True)

    def swap(self, place: Place, version: bytes, new: Stored | None, ttl_ms: int) -> bytes:
        if new is None:
            return scripts.HASH_SWAP(place.key, version, b"0", b"", b"", b"0")
        patch = _patch(new)
        whole = b"1" if patch.whole else b""
        count = b"%d" % len(patch.gone)
        args = (version, b"%d" % ttl_ms, new.head, whole, count, *patch.gone, *patch.fields)
        return scripts.HASH_SWAP(place.key, *args)

    def touch(self, place: Place, stored: Stored, ttl_ms: int, used: int | None) -> Request:
        more = () if used is None else (USED.pack(used),)
        return script(scripts.HASH_TOUCH, place.key, kind_of(stored.head[KIND]), b"%d" % ttl_ms, *more)

    def remove(self, place: Place, birth: int | None, *, alias: bool) -> Request:
        return script(scripts.HASH_REMOVE, place.key, birth_of(birth), b"1" if alias else b"", changes=True)

    def glance(self, place: Place) -> Request:
        return command(place.key, b"HGET", place.key, b"")

    def head_in(self, reply: object) -> bytes:
        return _fields(reply).get(b"", b"")


class RedisHashStorage(RedisStorage):
    """Sessions in Redis or Valkey, a hash each: one field a key, and commits that send only what they change.

    The same guarantees and arguments as RedisStorage. Its sessions have a prefix of their own, because they are of
    another type.
    """

    _layout: ClassVar[Layout] = Hashes()
    _kind: ClassVar[bytes] = b"hash:"


# ---- fields --------------------------------------------------------------------------------------------


def _fields(reply: object) -> dict[bytes, bytes]:
    """HGETALL's answer as a dict: by protocol version it is one, or a flat list."""
    if type(reply) is dict:
        return dict(reply)
    if type(reply) is list and len(reply) % 2 == 0:
        return dict(zip(reply[::2], reply[1::2], strict=True))
    return {}


def _field(name: str) -> bytes:
    try:
        return FIELD + name.encode("utf-8")
    except UnicodeEncodeError:
        pass
    raise NotSerializable(f"[{name!r}]", "a str with a lone surrogate, which is not valid text")


def _pack(name: str, value: object) -> bytes:
    try:
        return codec.pack(value)
    except NotSerializable as error:
        path, what = f"[{name!r}]{error.path}", error.type_name
    raise NotSerializable(path, what)


def _crc(place: Place, field: bytes, content: bytes) -> int:
    return crc32(content, crc32(field, place.seed))


def _check(place: Place, field: bytes, value: bytes) -> Check:
    """What is known of a field that is intact."""
    if len(value) <= FRONT or field[:1] != FIELD:
        raise CorruptRecord("a field that no session has")
    (crc,) = CRC.unpack_from(value)
    if crc != _crc(place, field, value[CRC.size :]):
        raise CorruptRecord("a damaged field, or one that belongs elsewhere")
    (order,) = ORDER.unpack_from(value, CRC.size)
    return Check(crc, order, value)


def _unchanged(fields: dict[bytes, bytes], known: dict[bytes, Check]) -> bool:
    return len(fields) == len(known) and all(
        (check := known.get(field)) is not None and check.raw == value for field, value in fields.items()
    )


def _sum(checks: dict[bytes, Check]) -> bytes:
    return SUM.pack(len(checks), sum(check.crc for check in checks.values()))


def _record(header: codec.Header, checks: dict[bytes, Check], seen: Stored | None) -> Record:
    """Fields that are as they were seen are not decoded again."""
    known = {} if seen is None else seen.checks or {}
    values = dict(seen.record.raw_items()) if seen is not None and known else {}
    data: dict[str, Any] = {}
    try:
        for field, check in checks.items():
            name = field[1:].decode("utf-8")
            data[name] = values[name] if known.get(field) is check else codec.unpack(check.raw[FRONT:])
        return Record.build(data, header.created, header.cap, header.own_ttl, header.birth)
    except (UnicodeDecodeError, NotSerializable, TypeError):
        pass
    raise CorruptRecord("a field whose name no session can hold")


def _patch(new: Stored) -> Patch:
    assert isinstance(new.raw, Patch)
    return new.raw
