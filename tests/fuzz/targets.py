"""What is fuzzed: every way in which bytes from a disk or a server become a record. Only CorruptRecord may come out.

A plain fuzzer never gets past the checksum. So `forged` gives whatever it is handed a valid frame, as somebody would
who can write to the storage, and the decoder behind it sees the fuzzer's bytes.
"""

import contextlib
import struct
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from uuid import UUID
from zlib import crc32
from zoneinfo import ZoneInfo

from cysession import Record, codec
from cysession._core import Place, Stored
from cysession.errors import CorruptRecord
from cysession.storage.file.directory import Directory
from cysession.storage.file.records import Files
from cysession.storage.file.seal import Sealer
from cysession.storage.redis.hash import Hashes
from cysession.storage.redis.records import Blobs, Tokens
from cysession.storage.redis.records import Place as RedisPlace

__all__ = ["TARGETS", "run", "seeds"]

KEY = "ab" * 32
PLACE = Place(KEY)
SEALER = Sealer([b"k" * 32, b"an older key of more than 32 bytes"])
REDIS = RedisPlace(b"cysession:", KEY, Blobs.load)
FRONT = 8 + Tokens.SIZE  # before the record: the last use and the tokens
HEAD = FRONT + codec.HEADER_SIZE
_TAIL = struct.Struct("<II")
_SUM = struct.Struct("<IQ")


class Reader:
    """What FileStorage reads records with, without any file."""

    def __init__(self, sealer: Sealer | None) -> None:
        self._root = tempfile.TemporaryDirectory(prefix="cysession-fuzz-")
        directory = Directory(self._root.name, sync=False)
        self._files = Files(
            directory, sync_file=False, sync_dir=False, sealer=sealer, tell_corrupt=self._count
        )

    def _count(self, place: Place) -> None: ...

    def decode(self, data: bytes) -> Stored:
        return self._files._decode(PLACE, data, 1, 1)


_plain, _sealing = Reader(None), Reader(SEALER)


def forged(data: bytes, name: bytes = b"", seed: int = 0) -> bytes:
    """The same flags, times and payload, in a frame that is whole."""
    head = b"CySR\x01" + data[5 : codec.HEAD_SIZE].ljust(codec.HEAD_SIZE - 5, b"\1")
    payload = data[codec.HEADER_SIZE :]
    return head + _TAIL.pack(len(payload), crc32(payload, crc32(head, crc32(name, seed)))) + payload


def _again(record: Record) -> None:
    """What was accepted is what a session can hold: it is written, and read to the same bytes."""
    written = codec.encode(record)
    assert codec.encode(codec.decode(written)) == written


def bytes_as_they_are(data: bytes) -> None:
    codec.peek(data)
    codec.is_from_the_future(data)
    _again(codec.decode(data))


def forged_record(data: bytes) -> None:
    _again(codec.decode(forged(data, b"name"), bound_to=b"name"))


def one_value(data: bytes) -> None:
    codec.pack(codec.unpack(data))


def file(data: bytes) -> None:
    stored = _plain.decode(forged(data, PLACE.key))
    assert stored.alias is None or len(stored.alias) == 64
    _again(stored.record)


def redis_string(data: bytes) -> None:
    """The last use, the tokens, and a record bound to them."""
    front = data[:FRONT].ljust(FRONT, b"\1")
    _again(Blobs().decode(REDIS, front + forged(data[FRONT:], front[8:], REDIS.seed)).record)


def redis_hash(data: bytes) -> None:
    """A head, and fields with their checksums put right."""
    front = data[:FRONT].ljust(FRONT, b"\1")
    header = data[FRONT:HEAD].ljust(codec.HEADER_SIZE, b"\1")
    fields = {key: _with_crc(key, value) for key, value in _pairs(data[HEAD:])}
    total = sum(crc32(value[4:], crc32(key, REDIS.seed)) for key, value in fields.items())
    fields[b""] = front + forged(header + _SUM.pack(len(fields), total), front[8:], REDIS.seed)
    flat = [part for pair in fields.items() for part in pair]
    for reply in fields, flat:  # by protocol version
        _again(Hashes().decode(REDIS, reply).record)


def _pairs(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Each a byte for the key's length, one for the value's, the key and the value."""
    at = 0
    while at + 2 <= len(data):
        key_end = at + 2 + data[at]
        end = key_end + data[at + 1]
        yield data[at + 2 : key_end], data[key_end:end]
        at = end


def _with_crc(key: bytes, value: bytes) -> bytes:
    return crc32(value, crc32(key, REDIS.seed)).to_bytes(4, "little") + value


def sealed_file(data: bytes) -> None:
    """As it is: nobody without a key gets past the seal."""
    stored = _sealing.decode(forged(data, PLACE.key))
    assert codec.encode(stored.record, idle=stored.idle) in _sealed_by_us, "opened what we never sealed"


def sealed_by_a_key(data: bytes) -> None:
    """The payload as somebody would seal it who has a key: the decoder behind the seal."""
    head = forged(data)[: codec.HEAD_SIZE]
    head = head[:5] + bytes([head[5] | codec.FLAG_SEALED]) + head[6:]
    box = SEALER.seal(data[codec.HEADER_SIZE :], head + PLACE.key)
    _again(_sealing.decode(forged(head + bytes(8) + box, PLACE.key)).record)


TARGETS: tuple[Callable[[bytes], None], ...] = (
    bytes_as_they_are,
    forged_record,
    one_value,
    file,
    sealed_file,
    sealed_by_a_key,
    redis_string,
    redis_hash,
)


def run(data: bytes) -> None:
    """One input: its first byte chooses the target. Any exception that leaves this is a finding."""
    if data:
        with contextlib.suppress(CorruptRecord):
            TARGETS[data[0] % len(TARGETS)](data[1:])


# ---- what the fuzzer begins with: real encodings ------------------------------------------------------------------

_DATA: tuple[dict[str, object], ...] = (
    {"uid": "u00000001", "name": "another name", "csrf": "0" * 32},
    {"n": None, "t": True, "f": False, "i": -1, "big": 2**70, "x": 1.5, "b": b"\0\xff", "ü": "ä€😀"},
    {"list": [1, [2, [3, []]]], "dict": {"a": {"b": {1: 2, (1, 2): None}}}, "tuple": (1, (2,), ())},
    {"set": {1, 2, 3}, "frozen": frozenset({frozenset({1}), frozenset()}), "mixed": {(1, "a"), b"b", None}},
    {
        "aware": datetime(2026, 1, 2, 3, 4, 5, 6, UTC),
        "naive": datetime(1, 1, 1),
        "named": datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=1), "é")),
        "place": datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1),
        "date": date(9999, 12, 31),
        "time": time(23, 59, 59, 999999, timezone(timedelta(minutes=-90))),
        "delta": timedelta(-1, 5, 7),
        "decimal": [Decimal("1E+1000"), Decimal("sNaN"), Decimal("-0")],
        "uuid": UUID(int=1),
    },
    {f"key{n}": n * "x" for n in range(40)},
)
_NOW = 1_700_000_000_000_000_000
_RECORDS = [Record.build(data, _NOW, _NOW + n, n * 1000, n + 1) for n, data in enumerate(_DATA)]


def _seal(record: Record) -> bytes:
    return codec.frame(
        record,
        codec.payload_of(record),
        idle=5,
        bound_to=PLACE.key,
        seal=lambda payload, head: SEALER.seal(payload, head + PLACE.key),
    )


def _hash(record: Record) -> bytes:
    stored = Hashes().build(REDIS, record, Tokens.NONE, 5, 7)
    fields = stored.raw.fields  # type: ignore[attr-defined]
    pairs = [(key, value[4:]) for key, value in zip(fields[::2], fields[1::2], strict=True)]
    short = [
        bytes([len(key), len(value)]) + key + value for key, value in pairs if max(len(key), len(value)) < 256
    ]
    return stored.head[:HEAD] + b"".join(short)


_sealed_by_us = {codec.encode(record, idle=record.ttl or 5) for record in _RECORDS}


def seeds() -> Iterator[bytes]:
    """Inputs for every target, all of them accepted by it."""
    for record in _RECORDS:
        yield b"\0" + codec.encode(record, idle=7)
        yield b"\1" + codec.encode(record, bound_to=b"name")
        yield b"\2" + codec.pack(record.to_dict())
        yield b"\3" + codec.encode(record, bound_to=PLACE.key)
        yield b"\4" + _seal(record)
        yield b"\5" + codec.encode(record)
        yield b"\6" + Blobs().build(REDIS, record, Tokens.NONE, 5, 7).head
        yield b"\7" + _hash(record)
    alias = codec.frame(_RECORDS[0], b"cd" * 32, flags=codec.FLAG_ALIAS, bound_to=PLACE.key)
    yield b"\3" + alias
    yield b"\3" + codec.encode(_RECORDS[0], flags=codec.FLAG_INDEX, bound_to=PLACE.key)
