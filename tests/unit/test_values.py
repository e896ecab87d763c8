"""What a session can hold: types come back exactly, everything else is refused with its path."""

import enum
import io
import math
import sys
from collections import OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from typing import Any
from uuid import UUID, SafeUUID, uuid4
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cysession import Manager, MemoryStorage, NotSerializable, Record, SessionTooLarge
from cysession._core import Delta

NAN = float("nan")


def there_and_back(value: Any) -> Any:
    """Through a session and its commit, as another request sees it."""
    manager = Manager(storage=MemoryStorage(), max_bytes=0)
    with manager.new() as session:
        session["value"] = value
    return manager.new(session.id)["value"]


def identical(a: Any, b: Any) -> bool:
    """Equal in type, value, sign, fold, zone and order, all the way down."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    if isinstance(a, Decimal):
        return str(a) == str(b)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(identical, a, b))
    if isinstance(a, dict):
        return len(a) == len(b) and all(
            identical(x, y) and identical(a[x], b[y]) for x, y in zip(a, b, strict=True)
        )
    if isinstance(a, set | frozenset):
        return {(type(x), repr(x)) for x in a} == {(type(x), repr(x)) for x in b}
    if isinstance(a, datetime | time):
        return a.replace(tzinfo=None) == b.replace(tzinfo=None) and a.fold == b.fold and a.tzinfo == b.tzinfo
    return bool(a == b)


EXAMPLES: list[Any] = [
    None, True, False,
    0, 1, -1, 255, 256, 2**31, 2**63 - 1, -(2**63), 2**63, -(2**63) - 1, 2**64, 10**100, -(10**1000),
    0.0, -0.0, 1.5, -1e308, 5e-324, math.inf, -math.inf, NAN,
    "", "a", "ascii only", "é", "日本", "🎉", "\0", "a\0b", "x" * 1022, "x" * 1023, "x" * 1024, "é" * 600,
    "x" * 70_000,
    b"", b"\0\xff", b"x" * 1022, b"x" * 1023, b"x" * 1024, b"x" * 70_000,
    [], [1], [[[]]], [None, True, 1, 1.0, "1", b"1"], list(range(1000)),
    (), (1,), ((), ((),)), (1, "a", None), ([1], {"a": (2,)}),
    {}, {"a": 1}, {1: "int", "1": "str", None: 0, 2.5: "float", b"b": 1, (1, 2): 3, frozenset({1}): 4},
    {"b": 1, "a": 2},
    set(), {1, 2}, {"a", b"a", 1, None, (1, 2)}, frozenset(), frozenset({1, frozenset({2})}),
    date(1, 1, 1), date(9999, 12, 31), time(0, 0), time(23, 59, 59, 999999, fold=1),
    time(1, 2, tzinfo=UTC), time(1, 2, tzinfo=timezone(timedelta(hours=-3, minutes=-30))),
    datetime(1, 1, 1), datetime(2024, 10, 27, 2, 30, fold=1), datetime(2024, 1, 2, 3, 4, 5, 6, tzinfo=UTC),
    datetime(2024, 1, 2, tzinfo=timezone(timedelta(seconds=1))),
    datetime(2024, 1, 2, tzinfo=timezone(timedelta(hours=1), "X")),
    datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")),
    timedelta(0), timedelta(days=-1, microseconds=1), timedelta.max, timedelta.min,
    Decimal("0"), Decimal("-0.00"), Decimal("1E+400"), Decimal("NaN"), Decimal("-Infinity"),
    Decimal("3.14000"),
    UUID(int=0), UUID("12345678-1234-5678-1234-567812345678"),
]  # fmt: skip


@pytest.mark.parametrize("value", EXAMPLES, ids=lambda v: f"{type(v).__name__}-{str(v)[:20]!r}")
def test_what_goes_in_comes_out(value: Any) -> None:
    assert identical(there_and_back(value), value)


@pytest.mark.parametrize("value", EXAMPLES, ids=lambda v: f"{type(v).__name__}-{str(v)[:20]!r}")
def test_what_goes_in_nested_comes_out(value: Any) -> None:
    nested = {"list": [value], "tuple": (value, [value]), "dict": {"k": {"k": value}}}
    assert identical(there_and_back(nested), nested)


def is_nan(value: Any) -> bool:
    return value.is_nan() if isinstance(value, Decimal) else isinstance(value, float) and math.isnan(value)


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30) | st.binary(max_size=30)
    | st.datetimes(timezones=st.none() | st.just(UTC)) | st.dates() | st.times() | st.timedeltas()
    | st.decimals() | st.uuids()
)  # fmt: skip
hashable = st.recursive(
    scalars.filter(lambda v: not is_nan(v)),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=4,
)
values = st.recursive(
    scalars | hashable,
    lambda inner: (
        st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.dictionaries(hashable, inner, max_size=4)
        | st.sets(hashable, max_size=4)
    ),
    max_leaves=12,
)  # fmt: skip


@given(values)
def test_any_value_of_the_supported_types_comes_out(value: Any) -> None:
    assert identical(there_and_back(value), value)


# ---- private copies ------------------------------------------------------------------------------------


def test_what_was_committed_does_not_follow_the_object_it_was_made_from() -> None:
    manager = Manager(storage=MemoryStorage())
    mine: Any = {"list": [1, [2]], "set": {1}, "tuple": ([3],)}
    with manager.new() as session:
        session["v"] = mine
    mine["list"][1].append(9)
    mine["set"].add(9)
    mine["tuple"][0].append(9)
    assert manager.new(session.id)["v"] == {"list": [1, [2]], "set": {1}, "tuple": ([3],)}


def test_every_reader_gets_copies_of_its_own() -> None:
    record = Record.build({"v": {"list": [1, [2]], "set": {1}, "tuple": ([3],)}}, 0)
    for read in (lambda: record["v"], lambda: record.get("v"), lambda: record.to_dict()["v"],
                 lambda: record.values()[0], lambda: record.items()[0][1]):  # fmt: skip
        one, other = read(), read()
        assert one == other
        one["list"][1].append(9)
        one["set"].add(9)
        one["tuple"][0].append(9)
        one["new"] = 9
        assert read() == other == {"list": [1, [2]], "set": {1}, "tuple": ([3],)}


def test_immutable_values_are_shared_not_copied() -> None:
    big, deep = "x" * 5000, (1, ("a", frozenset({2})))
    record = Record.build({"big": big, "deep": deep}, 0)
    assert record["big"] is big
    assert record["deep"] is deep


def test_an_object_that_stands_in_two_places_comes_out_as_two() -> None:
    shared = [1]
    out = there_and_back([shared, shared])
    out[0].append(2)
    assert out == [[1, 2], [1]]


# ---- refusals --------------------------------------------------------------------------------------------


class Text(str): ...


class Number(int): ...


class Colour(enum.IntEnum):
    RED = 1


class Flag(enum.StrEnum):
    ON = "on"


class Listing(list[Any]): ...


class Zone(tzinfo): ...


class Moment(datetime): ...


Point = namedtuple("Point", "x y")

UNSUPPORTED: dict[str, Callable[[], Any]] = {
    "object": object, "str subclass": lambda: Text("a"), "int subclass": lambda: Number(1),
    "IntEnum": lambda: Colour.RED,
    "StrEnum": lambda: Flag.ON, "Enum class": lambda: Colour, "bytearray": lambda: bytearray(b"a"),
    "memoryview": lambda: memoryview(b"a"), "list subclass": Listing, "OrderedDict": OrderedDict,
    "defaultdict": lambda: defaultdict(int), "deque": deque, "namedtuple": lambda: Point(1, 2),
    "complex": lambda: 1j,
    "range": lambda: range(3), "Fraction": lambda: Fraction(1, 3), "function": lambda: len,
    "lambda": lambda: lambda: 0,
    "iterator": lambda: iter([]), "Ellipsis": lambda: ..., "NotImplemented": lambda: NotImplemented,
    "type": lambda: int,
    "exception": ValueError, "module": lambda: sys, "datetime subclass": lambda: Moment(2024, 1, 1),
    "zone of one's own": lambda: datetime(2024, 1, 1, tzinfo=Zone()),
    "time in such a zone": lambda: time(1, tzinfo=Zone()),
    "dict view": lambda: {}.keys(), "timezone": lambda: UTC, "SafeUUID": lambda: SafeUUID.unknown,
}  # fmt: skip


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_an_unsupported_value_is_refused_when_it_is_set(name: str) -> None:
    session = Manager(storage=MemoryStorage()).new()
    with pytest.raises(NotSerializable) as caught:
        session["profile"] = UNSUPPORTED[name]()
    assert caught.value.path == "['profile']"
    assert session.size() == 0
    assert not session.is_dirty


PLACES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "list": (lambda v: [0, v], "['k'][1]"),
    "tuple": (lambda v: (0, 1, v), "['k'][2]"),
    "dict": (lambda v: {"a": {"b": v}}, "['k']['a']['b']"),
    "deep": (lambda v: [{"a": ([], {"b": [v]})}], "['k'][0]['a'][1]['b'][0]"),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", UNSUPPORTED)
def test_an_unsupported_value_inside_is_refused_at_the_commit_with_its_path(name: str, place: str) -> None:
    manager = Manager(storage=MemoryStorage())
    with manager.new() as session:
        session["old"] = 1
    wrap, path = PLACES[place]
    session = manager.new(session.id)
    session["k"] = wrap(UNSUPPORTED[name]())
    with pytest.raises(NotSerializable) as caught:
        session.save()
    assert caught.value.path == path
    assert path in str(caught.value)
    assert session.id not in str(caught.value)
    assert manager.new(session.id).get_map() == {"old": 1}
    session["k"] = "mended"
    session.save()
    assert manager.new(session.id).get_map() == {"old": 1, "k": "mended"}


@pytest.mark.parametrize("name", ["object", "str subclass", "IntEnum", "namedtuple", "complex", "Fraction"])
def test_unsupported_keys_and_members_are_refused(name: str) -> None:
    value = UNSUPPORTED[name]()
    for container in ({value: 1}, {value}, frozenset({value}), {(1, value): 1}, {frozenset({value})}):
        with pytest.raises(NotSerializable, match=r"\['k'\]"):
            Record.build({"k": container}, 0)


@pytest.mark.parametrize("place", ["{}", "[{}]", "({},)", "{{1: {}}}"])
def test_a_lone_surrogate_is_refused_wherever_it_stands(place: str) -> None:
    value = eval(place.format("'\\ud800'"))  # noqa: S307
    with pytest.raises(NotSerializable, match="surrogate"):
        there_and_back(value)


@pytest.mark.parametrize("container", [{"\ud800": 1}, {"\ud800"}, frozenset({"\ud800"}), {("\ud800",): 1}])
def test_a_lone_surrogate_in_a_key_or_member_is_refused(container: Any) -> None:
    with pytest.raises(NotSerializable, match="surrogate"):
        Record.build({"k": container}, 0)


def test_a_lone_surrogate_in_a_session_key_is_refused() -> None:
    with pytest.raises(NotSerializable, match="surrogate"):
        Record.build({"\ud800": 1}, 0)


def nested(depth: int, wrap: Callable[[Any], Any]) -> Any:
    value: Any = wrap(0)
    for _ in range(depth - 1):
        value = wrap(value)
    return value


@pytest.mark.parametrize(
    "wrap", [lambda v: [v], lambda v: (v,), lambda v: {"k": v}, lambda v: frozenset({v})]
)
def test_containers_nest_64_deep_and_no_deeper(wrap: Callable[[Any], Any]) -> None:
    assert there_and_back(nested(64, wrap)) == nested(64, wrap)
    with pytest.raises(NotSerializable, match="nested deeper than 64"):
        there_and_back(nested(65, wrap))


def test_a_container_in_itself_is_refused_not_followed() -> None:
    loop: list[Any] = []
    loop.append(loop)
    ring: dict[str, Any] = {}
    ring["a"] = [ring]
    for value in (loop, ring, [1, loop], (loop,)):
        with pytest.raises(NotSerializable, match="contains itself"):
            there_and_back(value)


def test_depth_beyond_any_stack_is_refused() -> None:
    value: list[Any] = []
    for _ in range(200_000):
        value = [value]
    with pytest.raises(NotSerializable):
        there_and_back(value)
    while value:  # taken apart by hand: not every interpreter frees so deep a list without recursion
        value = value[0]


def test_a_zone_without_a_name_is_refused() -> None:
    """One that was read from a file of its own: no other storage could find it again."""
    packed = b"TZif" + b"\0" * 16 + b"\0\0\0\0" * 4 + b"\0\0\0\1" + b"\0\0\0\4" + b"\0\0\0\0\0\0" + b"UTC\0"
    unnamed = ZoneInfo.from_file(io.BytesIO(packed))
    assert unnamed.key is None
    with pytest.raises(NotSerializable, match="time zone"):
        there_and_back([datetime(2024, 1, 1, tzinfo=unnamed)])


@pytest.mark.parametrize("key", [1, None, b"a", Text("a"), ("a",), 1.5])
def test_a_session_key_is_an_exact_str(key: Any) -> None:
    session = Manager(storage=MemoryStorage()).new()
    for write in (
        lambda: session.set(key, 1),
        lambda: session.__setitem__(key, 1),
        lambda: session.set_map({key: 1}),
        lambda: session.update({key: 1}),
        lambda: session.setdefault(key, 1),
        lambda: Record.build({key: 1}, 0),
    ):
        with pytest.raises(TypeError, match="keys are str"):
            write()
    assert session.get(key) is None
    assert key not in session
    session.remove(key)
    assert session.size() == 0


@pytest.mark.parametrize(
    "key", ["", "a", " ", "\0", "é", "日本", "🎉", "k" * 254, "k" * 255, "k" * 256, "é" * 300, "k" * 9000]
)
def test_any_text_is_a_session_key(key: str) -> None:
    manager = Manager(storage=MemoryStorage())
    with manager.new() as session:
        session[key] = 1
        session[key + "x"] = 2
    session = manager.new(session.id)
    assert session[key] == 1
    assert session[key + "x"] == 2
    assert list(session) == [key, key + "x"]
    del session[key]
    session.save()
    assert manager.new(session.id).get_map() == {key + "x": 2}


# ---- any_object --------------------------------------------------------------------------------------------


def test_any_object_shares_objects_by_reference() -> None:
    manager = Manager(storage=MemoryStorage(any_object=True))
    thing, loop = object(), [1]
    with manager.new() as session:
        session["thing"] = thing
        session["inside"] = [thing, {"k": Text("a")}]
        session["list"] = loop
    other = manager.new(session.id)
    assert other["thing"] is thing
    assert other["inside"][0] is thing
    assert type(other["inside"][1]["k"]) is Text
    assert other["list"] == loop
    assert other["list"] is not loop


def test_any_object_still_refuses_a_cycle_of_containers() -> None:
    loop: list[Any] = []
    loop.append(loop)
    session = Manager(storage=MemoryStorage(any_object=True)).new()
    session["loop"] = loop
    with pytest.raises(NotSerializable):
        session.save()


# ---- size --------------------------------------------------------------------------------------------------


SIZED: list[dict[str, Any]] = [
    {"a": 1}, {"k" * 200: "v"}, {"k" * 300: "v"}, {"é": []}, {"é": ()}, {"é": None}, {"日": {}},
    {"é" * 200: [1]},
    {"a": "x" * 2000}, {"a": "é" * 2000}, {"a": b"x" * 2000}, {"a": 10**100}, {"a": [["x" * 50] * 20]},
    {"é": "x"},
]  # fmt: skip


@pytest.mark.parametrize("data", SIZED, ids=lambda d: str(d)[:25])
def test_the_size_of_a_session_does_not_depend_on_how_it_came_about(data: dict[str, Any]) -> None:
    manager = Manager(storage=MemoryStorage())
    with manager.new() as session:
        session.set_map(data)
    table = manager.storage.table
    assert table is not None
    for key, value in (("b", 1), ("c", 2), ("d", "x" * 500)):
        with manager.new(session.id) as later:
            later[key] = value
    with manager.new(session.id) as later:
        later["e"], later["f"] = [1], "é"
    stored = table.peek(session.id)
    assert stored is not None
    assert stored.size == Record.build(stored.to_dict(), 0).size


def test_max_bytes_bounds_what_many_commits_add_up_to() -> None:
    manager = Manager(storage=MemoryStorage(), max_bytes=2000)
    with manager.new() as session:
        session["first"] = 1
    with pytest.raises(SessionTooLarge) as caught:
        for i in range(100):
            with manager.new(session.id) as later:
                later[f"{i}-" + "k" * 400] = 1
    assert caught.value.limit == 2000 < caught.value.size < 2500
    stored = manager.new(session.id).get_map()
    assert sum(map(len, stored)) <= 2000


some_keys = st.sampled_from(["a", "b", "é", "日本", "k" * 255, "k" * 256, "é" * 300, ""])
some_values = st.sampled_from(EXAMPLES)


@given(
    st.dictionaries(some_keys, some_values, max_size=4),
    st.lists(
        st.tuples(st.dictionaries(some_keys, some_values, max_size=3), st.sets(some_keys, max_size=2)),
        max_size=4,
    ),
)
def test_sizes_add_up_whatever_is_changed(
    data: dict[str, Any], steps: list[tuple[dict[str, Any], set[str]]]
) -> None:
    record = Record.build({**data, "kept": 1}, 0)
    for changes, gone in steps:
        gone -= changes.keys()
        merged = Delta(changes, gone).apply(record, 0, Record.NEVER)
        assert merged is not None
        expected = {k: v for k, v in record.to_dict().items() if k not in gone} | changes
        assert identical(merged.to_dict(), expected)
        assert merged.size == Record.build(expected, 0).size
        assert len(merged) == len(expected)
        record = merged


def test_what_counts_as_the_same_value_is_strict() -> None:
    """1, 1.0 and True are three values, as are 0.0 and -0.0: replacing one in place is a change."""
    pairs: list[tuple[Any, Any]] = [(1, True), (1, 1.0), (0.0, -0.0), ("a", b"a"), ([], ()), ({1}, {True})]
    pairs += [
        ({1: "x"}, {True: "x"}),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        (datetime(2024, 1, 1), date(2024, 1, 1)),
    ]
    pairs += [(Decimal("1.0"), Decimal("1.00")), (uuid4(), uuid4())]
    for before, after in pairs:
        manager = Manager(storage=MemoryStorage())
        with manager.new() as session:
            session["v"] = [before]
        with manager.new(session.id) as other:
            other["v"][0] = after
        assert identical(manager.new(session.id)["v"], [after]), (before, after)
