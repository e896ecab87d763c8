"""The codec: exact types both ways (Z3), the same bytes anywhere (Z8), one error for all that is bad (Z7)."""

import contextlib
import copy
import gc
import math
import os
import struct
import subprocess
import sys
import threading
from collections import OrderedDict
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import IntEnum
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import msgpack
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cysession import codec
from cysession._core import Record
from cysession.errors import CorruptRecord, NotSerializable, SessionTooLarge
from tests.unit.plain_encoder import packed

# ---- what a session can hold -------------------------------------------------------------------------

fixed_zones = st.builds(
    timezone,
    st.timedeltas(min_value=timedelta(hours=-23), max_value=timedelta(hours=23)),
) | st.builds(timezone, st.just(timedelta(hours=1)), st.text("abc é", max_size=4))
zones = st.none() | st.just(UTC) | fixed_zones | st.sampled_from(["UTC", "Europe/Berlin"]).map(ZoneInfo)
edges = st.sampled_from([7, 8, 15, 16, 31, 32, 63, 64, 127, 1000])
folds = st.sampled_from([0, 1])
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.builds(
        lambda bits, off, sign: sign * (2**bits + off), edges, st.integers(-1, 1), st.sampled_from([1, -1])
    )
    | st.floats()
    | st.text()
    | st.binary()
    | st.builds(lambda d, z, f: d.replace(tzinfo=z, fold=f), st.datetimes(), zones, folds)
    | st.dates()
    | st.builds(lambda t, z, f: t.replace(tzinfo=z, fold=f), st.times(), zones, folds)
    | st.timedeltas()
    | st.decimals()
    | st.sampled_from(["sNaN", "-sNaN12", "-0", "1E+100000", "Infinity"]).map(Decimal)
    | st.uuids()
)
hashable = scalars.filter(lambda v: not (isinstance(v, Decimal) and v.is_snan()))
# deferred: printed by name, where the whole of them would fill pages
members: st.SearchStrategy[Any] = st.deferred(
    lambda: hashable | st.lists(members, max_size=3).map(tuple) | st.frozensets(members, max_size=3)
)
values: st.SearchStrategy[Any] = st.deferred(
    lambda: (
        scalars
        | st.lists(values, max_size=4)
        | st.lists(values, max_size=4).map(tuple)
        | st.dictionaries(members, values, max_size=4)
        | st.sets(members, max_size=4)
        | st.frozensets(members, max_size=4)
    )
)
sessions = st.dictionaries(st.text(max_size=20), values, min_size=1, max_size=5)


def shape(value: Any) -> Any:
    """A form of the value in which equal means: same types, same values, same order, same time zones."""
    kind = type(value)
    if kind in (list, tuple):
        return kind, [shape(item) for item in value]
    if kind in (set, frozenset):
        return kind, sorted(repr(shape(item)) for item in value)
    if kind is dict:
        return kind, [(shape(key), shape(item)) for key, item in value.items()]
    if kind is float:
        return kind, struct.pack("d", value)
    if kind in (datetime, time):
        zone = value.tzinfo
        return kind, value.replace(tzinfo=None).isoformat(), value.fold, type(zone), str(zone), repr(zone)
    return kind, repr(value)


NOW = 1_700_000_000_000_000_000


def record(data: dict[str, Any], **times: int) -> Record:
    return Record.build(data, times.pop("created", NOW), **times)


# ---- round trips -------------------------------------------------------------------------------------


@given(values)
def test_Z3_every_type_comes_back_exactly(value: Any) -> None:
    assert shape(codec.unpack(codec.pack(value))) == shape(value)


@given(sessions)
def test_Z3_a_record_comes_back_exactly(data: dict[str, Any]) -> None:
    made = record(data)
    back = codec.decode(codec.encode(made))
    assert shape(back.to_dict()) == shape(data)
    assert (back.birth, back.created, back.cap, back.ttl) == (made.birth, made.created, made.cap, made.ttl)


around = st.sampled_from([0, 5, 7, 8, 15, 16, 31, 32, 63, 64]).flatmap(
    lambda bits: st.integers(-(2**bits) - 1, -(2**bits) + 1) | st.integers(2**bits - 1, 2**bits + 1)
)
lengths = st.sampled_from([0, 31, 32, 255, 256, 1023, 1024, 65535, 65536])
long_ones = st.builds(lambda c, n: c * n, st.sampled_from(["x", "ä", b"x"]), lengths)
long_keys = st.builds(lambda c, n: c * n, st.sampled_from("kü"), lengths)


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.dictionaries(st.text(max_size=20) | long_keys, scalars | around | long_ones, max_size=40))
@example({f"k{n}": n for n in range(70_000)})
@example({"k": [*range(70_000)], "t": tuple(range(65_535)), "d": {n: n for n in range(65_536)}})
@example({"k": set(range(15)), "l": frozenset(range(14)), "m": [[0] * 15, [0] * 16, {}, (), set()]})
@example({"k": (2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 2**2000)})
def test_Z8_the_core_writes_what_msgpack_writes(data: dict[str, Any]) -> None:
    assert codec.payload_of(record(data)) == packed(data)
    assert codec.pack(data) == packed(data)


@given(sessions)
def test_Z8_the_core_writes_containers_as_msgpack_does(data: dict[str, Any]) -> None:
    assert codec.payload_of(record(data)) == codec.pack(data) == packed(data)


@given(
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(0, 2**62),
    st.integers(1, 2**64 - 1),
)
def test_the_times_and_the_identity_are_part_of_the_record(
    created: int, cap: int, ttl: int, birth: int
) -> None:
    back = codec.decode(codec.encode(Record.build({"k": 1}, created, cap, ttl, birth), idle=77))
    assert (back.created, back.cap, back.ttl, back.birth) == (created, cap, ttl, birth)


def test_the_noted_idle_ttl_is_not_the_sessions_own() -> None:
    plain = codec.encode(record({"k": 1}), idle=77)
    assert codec.peek(plain).idle == 77 and codec.peek(plain).own_ttl == 0 and codec.decode(plain).ttl == 0
    own = codec.encode(record({"k": 1}, ttl=5), idle=77)
    assert codec.peek(own).idle == codec.peek(own).own_ttl == 5


@given(sessions)
def test_Z8_equal_data_gives_equal_bytes(data: dict[str, Any]) -> None:
    assert codec.pack(data) == codec.pack(copy.deepcopy(data))


def test_Z8_bytes_do_not_depend_on_the_hash_seed() -> None:
    code = "from cysession.codec import pack; print(pack({str(n) for n in range(50)} | {(1, b'x')}).hex())"
    seen = set()
    for seed in "0", "1", "4711":
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        seen.add(
            subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True).stdout
        )
    assert len(seen) == 1


def test_Z10_two_decodings_share_no_mutable_value() -> None:
    data = codec.encode(record({"cart": [["a"]]}))
    one, two = codec.decode(data)["cart"], codec.decode(data)["cart"]
    assert one == two and one is not two and one[0] is not two[0]


def test_what_was_decoded_costs_the_collector_nothing() -> None:
    back = codec.decode(codec.encode(record({"a": [1, (2, [3])], "b": {"c": {4}}, "d": (5, frozenset({6}))})))
    values = [value for _, value in back.raw_items()]
    inner = [values[0][1], values[0][1][1], values[1]["c"], values[2][1]]
    assert not any(gc.is_tracked(value) for value in values + inner)


def test_threads_pack_at_the_same_time() -> None:
    wrong: list[object] = []

    def work(n: int) -> None:
        value = {"n": n, "many": {(n, i) for i in range(20)}}
        wrong.extend(1 for _ in range(200) if codec.unpack(codec.pack(value)) != value)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# ---- what cannot be stored ---------------------------------------------------------------------------


class Colour(IntEnum):
    RED = 1


class Odd(tzinfo):
    def utcoffset(self, _: datetime | None) -> timedelta:
        return timedelta(0)


class Name(str):
    __slots__ = ()


@pytest.mark.parametrize(
    "bad",
    [object(), Colour.RED, Name("x"), bytearray(b"x"), memoryview(b"x"), 1j, OrderedDict(a=1), range(3),
     datetime(2024, 1, 1, tzinfo=Odd()), time(1, tzinfo=Odd()), msgpack.ExtType(3, b""), msgpack.Timestamp(1),
     Exception, len],
)  # fmt: skip
def test_Z3_any_other_type_is_refused_with_its_path(bad: object) -> None:
    with pytest.raises(NotSerializable) as caught:
        codec.pack({"cart": [1, {"x": bad}]})
    assert caught.value.path == "['cart'][1]['x']"
    with pytest.raises(NotSerializable):
        codec.encode(Record.build({"cart": [bad]}, NOW, any_object=True))


def test_Z4_a_lone_surrogate_is_refused_with_its_path() -> None:
    with pytest.raises(NotSerializable) as caught:
        codec.pack({"a": "fine \0 é", "b": [("x", "\ud800")]})
    assert caught.value.path == "['b'][0][1]"


def nest(depth: int, wrap: type = list) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = wrap([value])
    return value


@pytest.mark.parametrize("wrap", [list, tuple, frozenset])
def test_Z5_V18_64_levels_are_stored_and_65_are_refused(wrap: type) -> None:
    assert codec.decode(codec.encode(record({"k": nest(64, wrap)})))["k"] == nest(64, wrap)
    with pytest.raises(NotSerializable):
        codec.pack(nest(65, wrap))
    with pytest.raises(NotSerializable):
        record({"k": nest(65, wrap)})


def test_Z5_a_cycle_is_refused() -> None:
    cycle: list[Any] = []
    cycle.append([cycle])
    with pytest.raises(NotSerializable):
        codec.pack(cycle)


def test_Z5_what_was_saved_at_the_top_of_a_stack_loads_at_the_bottom_of_one() -> None:
    data = codec.encode(record({"k": [nest(63, tuple), nest(63, frozenset), nest(63, list)]}))

    def dive(depth: int) -> Record:
        return codec.decode(data) if depth == 0 else dive(depth - 1)

    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len_of_stack() + 1000)
    try:
        assert len(dive(900)["k"]) == 3
    finally:
        sys.setrecursionlimit(limit)


def len_of_stack() -> int:
    depth, frame = 0, sys._getframe()
    while frame.f_back is not None:
        depth, frame = depth + 1, frame.f_back
    return depth


def test_sets_in_sets_cost_no_more_than_their_size() -> None:
    inner: frozenset[Any] = frozenset({1, 2})
    for n in range(60):  # sorted naively, each level would double the work
        inner = frozenset({inner, n + 10})
    assert codec.unpack(codec.pack(inner)) == inner


def test_Z6_more_than_the_cap_is_refused_in_both_directions() -> None:
    with pytest.raises(SessionTooLarge):
        codec.encode(record({"k": b"x" * codec.MAX_BYTES}))
    with pytest.raises(CorruptRecord):
        codec.decode(b"CySR" + bytes(codec.MAX_BYTES))


# ---- whatever arrives --------------------------------------------------------------------------------


def framed(payload: bytes, flags: int = 0) -> bytes:
    return codec.frame(record({"k": 1}), payload, flags=flags)


@given(st.binary())
@example(b"")
@example(b"CySR")
def test_Z7_only_CorruptRecord_leaves_decode_for_random_bytes(data: bytes) -> None:
    with pytest.raises(CorruptRecord):
        codec.decode(data)


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=400)
@given(st.binary(max_size=80) | st.lists(st.sampled_from(
    [b"\x91", b"\x92", b"\x81", b"\x82", b"\x01", b"\xc0", b"\xa1k", b"\xd4\x01t", b"\xd4\x01s", b"\xd4\x01f",
     b"\xd4\x01x", b"\xd4\x02\x00", b"\xd4\x03x", b"\xd4\x05x", b"\xd6\xff\0\0\0\0",
     b"\xcb\x7f\xf8\0\0\0\0\0\0",
     b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xa2\xff\xff"]
), max_size=12).map(b"".join))  # fmt: skip
def test_Z7_only_CorruptRecord_leaves_decode_for_a_crafted_payload(payload: bytes) -> None:
    with contextlib.suppress(CorruptRecord):
        codec.decode(framed(payload))


@pytest.mark.parametrize(
    "payload",
    [
        b"\x91" * 1100 + b"\x01",  # deeper than the C decoder goes
        b"\x81\xa1k" + b"\x91" * 65 + b"\x01",  # deeper than ours
        b"\x81\x01\x01",  # a key that is not a str
        b"\x93\x01\x02\x03",  # not a map
        b"\x81\xa1k\x01\x01",  # trailing bytes
        b"\x81\xa1k\xd4\x01t",  # a marker on its own
        b"\x81\xa1k\x92\x01\xd4\x01t",  # a marker that is not first
        b"\x81\xa1k\xd6\xff\0\0\0\0",  # MessagePack's own timestamp
        b"\x81\xa1k\xc7\x00\x7f",  # an extension that is not ours
        b"\x81\xa1k\x93\xd4\x01s\x01\x01",  # a set with equal members
        b"\x81\xa1k\x92\xd4\x01s\x90",  # a set of lists
        b"\x81\xa1k\x81\x90\x01",  # a list as a key
        b"\x81\xa1k\xc7\x04z",  # cut in the middle
        b"\x81\xa1k\xc7\x15\x05" + bytes(11) + b"z../../etc",  # year 0, and no path either
        b"(lp0\n.",
        b"\x80\x04\x95\x00",
        b'{"k": 1}',
    ],
)
def test_Z1_a_payload_of_something_else_is_corrupt(payload: bytes) -> None:
    with pytest.raises(CorruptRecord):
        codec.decode(framed(payload))


def test_R13_every_flipped_bit_and_every_cut_is_noticed() -> None:
    data = codec.encode(record({"user": "ada", "cart": [1, 2]}))
    for n in range(len(data)):
        for bit in range(8):
            with pytest.raises(CorruptRecord):
                codec.decode(data[:n] + bytes([data[n] ^ 1 << bit]) + data[n + 1 :])
        with pytest.raises(CorruptRecord):
            codec.decode(data[:n])
    with pytest.raises(CorruptRecord):
        codec.decode(data + b"\0")


def test_V11_a_record_bound_to_one_name_does_not_decode_under_another() -> None:
    data = codec.encode(record({"user": "ada"}), bound_to=b"one")
    assert codec.decode(data, bound_to=b"one")["user"] == "ada"
    for other in b"two", b"":
        with pytest.raises(CorruptRecord):
            codec.decode(data, bound_to=other)


@pytest.mark.parametrize("flags", [codec.FLAG_ALIAS, codec.FLAG_SEALED, 8, 128])
def test_Z2_a_record_of_another_kind_is_not_decoded_as_a_plain_one(flags: int) -> None:
    with pytest.raises(CorruptRecord):
        codec.decode(framed(codec.pack({"k": 1}), flags))


def test_Z6_V18_a_header_that_promises_gigabytes_allocates_nothing() -> None:
    code = """
import resource, sys
from cysession import codec
from cysession._core import Record
from cysession.errors import CorruptRecord
resource.setrlimit(resource.RLIMIT_AS, (256 << 20, 256 << 20))
for kind in b"\\xdd", b"\\xdf", b"\\xc6", b"\\xdb":
    payload = b"\\x81\\xa1k" + kind + b"\\xff" * 4
    try:
        codec.decode(codec.frame(Record.build({"k": 1}, 0), payload))
    except CorruptRecord:
        continue
    sys.exit("decoded")
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], env=env, check=True)


def test_V6_decoding_imports_and_executes_nothing() -> None:
    code = """
import sys
from cysession import codec
from cysession._core import Record
from cysession.errors import CorruptRecord
payloads = [
    b"cos\\nsystem\\n(S'touch x'\\ntR.", b"\\x80\\x04\\x8c\\x02os\\x94.",
    b"\\x81\\xa1k\\xc7\\x02\\x7fos",
]
good = codec.encode(Record.build({"k": [1, (2,), {3}]}, 0))
codec.decode(good)
bad = []
def watch(event, args):
    if event in ("import", "exec", "compile", "marshal.loads", "pickle.find_class", "open", "os.system"):
        bad.append(event)
sys.addaudithook(watch)
codec.decode(good)
for payload in payloads:
    try:
        codec.decode(codec.frame(Record.build({"k": 1}, 0), payload))
    except CorruptRecord:
        pass
sys.exit(str(bad) if bad else 0)
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], env=env, check=True)


@pytest.mark.parametrize(
    "payload",
    [
        b"\xd4\x01t",
        b"\x92\x01\xd4\x01t",
        b"\x81\xa1k\xd4\x01s",
        b"\x92" + b"\xd4\x01t" * 2,
        b"\x91" * 70 + b"\x90",
    ],
    ids=["alone", "second", "in a map", "twice", "too deep"],
)
def test_Z7_one_value_alone_is_held_to_the_same_rules(payload: bytes) -> None:
    """Found by the fuzzer: a marker that marks nothing came out of unpack() as an object of ours."""
    with pytest.raises(CorruptRecord):
        codec.unpack(payload)


def test_an_error_never_quotes_the_data() -> None:
    with pytest.raises(CorruptRecord) as caught:
        codec.decode(framed(b"\x81\xa1k\xa6secret\xff"))
    assert "secret" not in str(caught.value) and caught.value.__cause__ is caught.value.__context__ is None


def test_R44_a_record_of_this_format_stays_readable() -> None:
    golden = bytes.fromhex(
        "4379535201010000efcdab896745230100002a36fe9c971705002a36fe9c9717070000000000000035000000bb"
        "85131b83a475736572a3616461a4636172749193d401740102a26174c7190507e8021d0c000000000000002b00"
        "0000000000000000000000"
    )
    back = codec.decode(golden, bound_to=b"name")
    assert back.to_dict() == {"user": "ada", "cart": [(1, 2)], "at": datetime(2024, 2, 29, 12, tzinfo=UTC)}
    assert (back.created, back.cap, back.ttl, back.birth) == (NOW, NOW + 5, 7, 0x0123456789ABCDEF)
    assert codec.encode(back, bound_to=b"name") == golden


def test_types_equal_in_value_stay_apart() -> None:
    names = ["int", "float", "bool", "Decimal", "str", "bytes", "UUID", "date", "float"]
    back = codec.unpack(codec.pack([1, 1.0, True, Decimal(1), "1", b"1", UUID(int=1), date(1, 1, 1), -0.0]))
    assert [type(v).__name__ for v in back] == names
    assert math.copysign(1, back[-1]) == -1
