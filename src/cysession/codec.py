"""A session record as bytes: one fixed header, one MessagePack payload, one decoder.

    offset size
      0     4   magic        b"CySR"
      4     1   format       1; anything else is not ours to read
      5     1   flags        what the payload is, see FLAG_*
      6     2   reserved     zero
      8     8   birth        the record's identity (unsigned)
     16     8   created      ns on the storage's clock
     24     8   cap          absolute deadline, ns on the storage's clock; 2**63-1 = none
     32     8   idle         idle ttl in ns: the session's own (FLAG_OWN_TTL) or its users' longest
     40     4   length       bytes of the payload
     44     4   crc          CRC-32 of what this record is bound to, of bytes 0 to 39 and of the payload
     48     .   payload      MessagePack of the session's data: a map with str keys

MessagePack knows None, bool, int up to 64 bits, float, str, bytes, list and dict, and round-trips those
exactly. The other types are ours: a scalar is one extension value (EXT_*); a tuple, set or frozenset is an
array whose first element is a marker extension. Markers keep the decoder free of recursion, so what was
written at the top of a stack can be read at the bottom of one, and members of sets are sorted by their bytes,
so equal data gives equal bytes in every process.

The checksum finds accidents, not attackers. Decoding can only ever build the types listed here; whatever is
wrong with the bytes, `CorruptRecord` is the one error that leaves `decode` and `unpack`.
"""

import struct
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from sys import modules
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID
from zlib import crc32

import msgpack  # type: ignore[import-untyped]

from ._core import (
    Header,
    Record,
    _use_scalars,
    framed,
    head_of,
    header_of,
    msgpack_of,
    msgpack_of_record,
    record_of,
    require_storable,
    unframed,
)
from .errors import CorruptRecord, NotSerializable

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo  # not at import: it reads the configuration of the whole interpreter

__all__ = ["MAX_BYTES", "Header", "decode", "encode", "frame", "pack", "peek", "unframe", "unpack"]

MAGIC: Final = Header.MAGIC
FORMAT: Final = Header.FORMAT
MAX_BYTES: Final = Header.RECORD_MAX  # of one record, checked before anything is decoded
HEAD_SIZE: Final = Header.HEAD_SIZE  # what a record is, before its payload is known
HEADER_SIZE: Final = Header.SIZE

FLAG_OWN_TTL: Final = Header.OWN_TTL  # `idle` was set on the session itself
FLAG_ALIAS: Final = (
    Header.ALIAS
)  # payload = the storage key of another record; used by storages during rotation
FLAG_SEALED: Final = Header.SEALED  # payload is encrypted; only the storage that holds the keys can open it
FLAG_INDEX: Final = Header.INDEX  # the index of one user's sessions, which is no session


# ---- records -----------------------------------------------------------------------------------------


def encode(record: Record, *, idle: int = 0, bound_to: bytes = b"", seed: int = 0, flags: int = 0) -> bytes:
    """The bytes of a record. Raises NotSerializable or SessionTooLarge, nothing else.

    idle:     idle ttl (ns) to note for a session that has none of its own, for whoever cleans up later.
    bound_to: a name that goes into the checksum; decode() under another name fails.
    seed:     crc32(bound_to), for whoever has computed it before.
    """
    payload = msgpack_of_record(record)
    return framed(head_of(record, flags, idle), payload, crc32(bound_to, seed) if bound_to else seed)


def decode(data: bytes, *, bound_to: bytes = b"") -> Record:
    """The record that `encode` turned into these bytes. Raises CorruptRecord, nothing else."""
    header, payload = unframe(data, bound_to=bound_to)
    if header.flags & ~FLAG_OWN_TTL:
        raise CorruptRecord("not a plain record")
    return build(header, payload)


def payload_of(record: Record) -> bytes:
    """The payload that `encode` gives a record."""
    return msgpack_of_record(record)


def frame(
    record: Record,
    payload: bytes,
    *,
    flags: int = 0,
    idle: int = 0,
    bound_to: bytes = b"",
    seed: int = 0,
    seal: Callable[[bytes, bytes], bytes] | None = None,
) -> bytes:
    """A header for `record` and the payload behind it.

    seal: (payload, head) -> encrypted payload; `head` is the part of the header to authenticate with it,
          the first HEAD_SIZE bytes of the result.
    """
    head = head_of(record, flags | FLAG_SEALED if seal is not None else flags, idle)
    if seal is not None:
        payload = seal(payload, head)
    return framed(head, payload, crc32(bound_to, seed))


def peek(data: bytes) -> Header:
    """The header at the start of `data`, which need not be the whole record. Checks no checksum."""
    return header_of(data)


def is_from_the_future(data: bytes) -> bool:
    """Whether these are the first bytes of a record that a later version of this library wrote."""
    return data[:4] == MAGIC and len(data) > 4 and data[4] > FORMAT


def unframe(data: bytes, *, bound_to: bytes = b"", seed: int = 0) -> tuple[Header, bytes]:
    """The header and the payload of a whole, unchanged record."""
    return unframed(data, crc32(bound_to, seed) if bound_to else seed)


def build(header: Header, payload: bytes) -> Record:
    """The record of an (opened) payload."""
    data = _unpack(payload)
    if type(data) is not dict:
        raise CorruptRecord("the payload is not a map")
    try:
        return record_of(header, data)
    except (NotSerializable, TypeError):  # too deep, a foreign type, a key that is not a str
        pass
    raise CorruptRecord("the payload holds what no session can hold")


# ---- values to bytes ---------------------------------------------------------------------------------

EXT_CONTAINER: Final = 1  # marker: the array it opens is a tuple (b"t"), set (b"s") or frozenset (b"f")
EXT_INT: Final = 2
EXT_DECIMAL: Final = 3
EXT_UUID: Final = 4
EXT_DATETIME: Final = 5
EXT_DATE: Final = 6
EXT_TIME: Final = 7
EXT_TIMEDELTA: Final = 8

_DATETIME = struct.Struct(">HBBBBBIB")  # year month day hour minute second microsecond fold
_DATE = struct.Struct(">HBB")
_TIME = struct.Struct(">BBBIB")
_TIMEDELTA = struct.Struct(">iII")  # days seconds microseconds


def pack(value: object) -> bytes:
    """One value as bytes: for storages that keep a session's keys apart. Raises NotSerializable."""
    return msgpack_of(value)


def _to_ext(value: Any) -> tuple[int, bytes]:
    """The code and the bytes of a scalar that MessagePack has no type for."""
    kind = type(value)
    if kind is datetime:
        day = (value.year, value.month, value.day)
        clock = (value.hour, value.minute, value.second, value.microsecond, value.fold)
        return EXT_DATETIME, _DATETIME.pack(*day, *clock) + _zone_to_bytes(value.tzinfo)
    if kind is date:
        return EXT_DATE, _DATE.pack(value.year, value.month, value.day)
    if kind is time:
        clock = (value.hour, value.minute, value.second, value.microsecond, value.fold)
        return EXT_TIME, _TIME.pack(*clock) + _zone_to_bytes(value.tzinfo)
    if kind is timedelta:
        return EXT_TIMEDELTA, _TIMEDELTA.pack(value.days, value.seconds, value.microseconds)
    if kind is Decimal:
        return EXT_DECIMAL, str(value).encode("ascii")
    if kind is UUID:
        return EXT_UUID, value.bytes
    return EXT_INT, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True)


_use_scalars(_to_ext)


def _zone_to_bytes(zone: Any) -> bytes:
    """Naive: nothing. A fixed offset: b"+", or b"n" with a name of its own. A place: b"z" and its key."""
    if zone is None:
        return b""
    zoneinfo = modules.get("zoneinfo")
    if zoneinfo is not None and type(zone) is zoneinfo.ZoneInfo:
        key: str = zone.key
        return b"z" + key.encode("utf-8")
    offset: timedelta = zone.utcoffset(None)
    packed = _TIMEDELTA.pack(offset.days, offset.seconds, offset.microseconds)
    name: str = zone.tzname(None)
    if name == timezone(offset).tzname(None):
        return b"+" + packed
    return b"n" + packed + name.encode("utf-8")


# ---- bytes to values ---------------------------------------------------------------------------------


class _Marker:
    """The first element of an array that stands for another container. No session can hold one."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[[list[object]], object]) -> None:
        self.make = make


def _make_set(members: list[object]) -> set[object]:
    made = set(members)
    if len(made) != len(members):
        raise ValueError("a set with equal members")
    return made


_MARKERS = {
    b"t": _Marker(tuple),
    b"s": _Marker(_make_set),
    b"f": _Marker(lambda members: frozenset(_make_set(members))),
}


def unpack(data: bytes) -> Any:
    """The value that `pack` turned into these bytes. Raises CorruptRecord, nothing else."""
    value = _unpack(data)
    try:
        require_storable(value)
    except (NotSerializable, TypeError):  # too deep, a foreign type, a key that is not a str
        pass
    else:
        return value
    raise CorruptRecord("the payload holds what no session can hold")


def _unpack(data: bytes) -> Any:
    """The same for whoever checks the value."""
    try:
        return msgpack.unpackb(
            data, ext_hook=_from_ext, list_hook=_from_list, strict_map_key=False, timestamp=0
        )
    except MemoryError:  # says nothing about the bytes: must not make a session look missing
        raise
    except Exception as error:
        reason = f"the payload does not decode ({type(error).__name__})"
    raise CorruptRecord(reason)  # outside of the handler: the original error may quote the data


def _from_list(items: list[object]) -> object:
    if items and type(items[0]) is _Marker:
        return items[0].make(items[1:])
    return items


def _from_ext(code: int, data: bytes) -> object:
    if code == EXT_CONTAINER:
        return _MARKERS[data]
    if code == EXT_INT:
        return int.from_bytes(data, "big", signed=True)
    if code == EXT_DECIMAL:
        return Decimal(data.decode("ascii"))
    if code == EXT_UUID:
        return UUID(bytes=data)
    if code == EXT_DATETIME:
        year, month, day, hour, minute, second, micro, fold = _DATETIME.unpack_from(data)
        zone = _zone_from_bytes(data[_DATETIME.size :])
        return datetime(year, month, day, hour, minute, second, micro, zone, fold=fold)
    if code == EXT_DATE:
        return date(*_DATE.unpack(data))
    if code == EXT_TIME:
        hour, minute, second, micro, fold = _TIME.unpack_from(data)
        return time(hour, minute, second, micro, _zone_from_bytes(data[_TIME.size :]), fold=fold)
    if code == EXT_TIMEDELTA:
        return timedelta(*_TIMEDELTA.unpack(data))
    raise ValueError("an unknown extension type")


def _zone_from_bytes(data: bytes) -> "timezone | ZoneInfo | None":
    if not data:
        return None
    if data[:1] == b"z":
        from zoneinfo import ZoneInfo

        return ZoneInfo(data[1:].decode("utf-8"))
    offset = timedelta(*_TIMEDELTA.unpack_from(data, 1))
    name = data[1 + _TIMEDELTA.size :].decode("utf-8")
    if data[:1] == b"n":
        return timezone(offset, name)
    if data[:1] != b"+" or name:
        raise ValueError("an unknown kind of time zone")
    return timezone(offset)
