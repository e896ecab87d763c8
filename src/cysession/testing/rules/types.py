"""Rule 8: what goes in comes out, type for type; anything else is refused, by the path of keys to it."""

import enum
import math
import sys
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any, ClassVar, Final
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ...errors import NotSerializable
from ..kit import Kit

__all__ = ["TypeRules", "difference", "session_data", "session_values"]

DEPTH: Final = 64  # containers inside each other

EXAMPLES: Final[dict[str, Any]] = {
    "None": None,
    "True": True,
    "False": False,
    "zero": 0,
    "2**63-1": 2**63 - 1,
    "2**63": 2**63,
    "2**64": 2**64,
    "-2**63": -(2**63),
    "-2**63-1": -(2**63) - 1,
    "10**300": 10**300,
    "-10**300": -(10**300),
    "float": 0.1,
    "a whole float": 1.0,
    "minus zero": -0.0,
    "infinity": math.inf,
    "minus infinity": -math.inf,
    "nan": math.nan,
    "smallest float": 5e-324,
    "empty str": "",
    "str": "anna",
    "str with NUL": "a\0b",
    "umlauts": "\u00e4\u00f6\u00fc",
    "emoji": "\U0001f36a",
    "long str": "x" * 5000,
    "empty bytes": b"",
    "bytes": b"\x00\xff\x80abc",
    "long bytes": b"\xfe" * 5000,
    "empty list": [],
    "list": [1, "a", [2.0, None]],
    "empty tuple": (),
    "tuple": (1, ("a", [2.0]), ()),
    "empty dict": {},
    "dict": {"a": {"b": [1]}, "c": None},
    "dict in an order of its own": {"z": 1, "a": 2, "m": 3},
    "dict with all kinds of keys": {1: "int", "1": "str", (1, "a"): "tuple", None: 0, 2.5: 1, b"k": 2},
    "dict with dates as keys": {date(2024, 2, 29): 1, UUID(int=7): 2, Decimal("1.0"): 3, frozenset({1}): 4},
    "empty set": set(),
    "set": {1, "a", None, (1, 2), 2.5},
    "empty frozenset": frozenset(),
    "frozenset": frozenset({b"a", frozenset({1})}),
    "list of sets": [{1}, frozenset({2}), {3: {4}}],
    "naive datetime": datetime(2024, 2, 29, 12, 30, 59, 999999),
    "first datetime": datetime.min,
    "last datetime": datetime.max,
    "datetime in the second of two hours": datetime(2024, 10, 27, 2, 30, fold=1),
    "UTC datetime": datetime(2024, 2, 29, 12, 30, tzinfo=UTC),
    "datetime with an offset": datetime(2024, 2, 29, tzinfo=timezone(timedelta(hours=-3, minutes=-30))),
    "datetime with an odd offset": datetime(2024, 2, 29, tzinfo=timezone(timedelta(microseconds=2))),
    "datetime with a named offset": datetime(2024, 2, 29, tzinfo=timezone(timedelta(hours=1), "CET")),
    "datetime in a zone": datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")),
    "date": date(2024, 2, 29),
    "first date": date.min,
    "last date": date.max,
    "time": time(23, 59, 59, 999999),
    "time with an offset": time(1, 2, tzinfo=timezone(timedelta(hours=5, minutes=45))),
    "time with fold": time(2, 30, fold=1),
    "timedelta": timedelta(days=-3, seconds=5, microseconds=7),
    "shortest timedelta": timedelta.min,
    "longest timedelta": timedelta.max,
    "Decimal": Decimal("1.10"),
    "Decimal of many digits": Decimal("3." + "14159265358979" * 10),
    "Decimal minus zero": Decimal("-0"),
    "Decimal infinity": Decimal("-Infinity"),
    "Decimal nan": Decimal("NaN"),
    "Decimal with exponent": Decimal("1E+30"),
    "UUID": UUID("12345678-1234-5678-1234-567812345678"),
}


class Colour(enum.Enum):
    RED = 1


class Weekday(enum.IntEnum):
    MONDAY = 1


class Text(str):
    pass


class Number(int):
    pass


class Zone(tzinfo):
    def utcoffset(self, _: datetime | None) -> timedelta:
        return timedelta(0)

    def dst(self, _: datetime | None) -> timedelta:
        return timedelta(0)

    def tzname(self, _: datetime | None) -> str:
        return "somewhere"


Point = namedtuple("Point", "x y")
REFUSED: Final[dict[str, Any]] = {
    "object": object(),
    "function": len,
    "class": int,
    "bytearray": bytearray(b"a"),
    "memoryview": memoryview(b"a"),
    "complex": 1j,
    "range": range(3),
    "iterator": iter(()),
    "exception": ValueError("x"),
    "enum": Colour.RED,
    "int enum": Weekday.MONDAY,
    "a subclass of str": Text("a"),
    "a subclass of int": Number(1),
    "a named tuple": Point(1, 2),
    "a subclass of dict": OrderedDict(a=1),
    "a datetime in a zone nobody knows": datetime(2024, 2, 29, tzinfo=Zone()),
}


def session_values(leaves: int = 20) -> st.SearchStrategy[Any]:
    """A hypothesis strategy of every value that a session can hold, nested."""
    offsets = st.timedeltas(timedelta(hours=-23), timedelta(hours=23)).map(timezone)
    zones = (
        st.none() | st.just(UTC) | offsets | st.sampled_from(["Europe/Berlin", "Asia/Kolkata"]).map(ZoneInfo)
    )
    hashable = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.floats(allow_nan=False),
        st.text(max_size=20),
        st.binary(max_size=20),
        st.datetimes(timezones=zones, allow_imaginary=False),
        st.dates(),
        st.times(),
        st.timedeltas(),
        st.decimals(allow_nan=False),
        st.uuids(),
    )
    members = st.recursive(
        hashable,
        lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
        max_leaves=4,
    )
    scalars = hashable | st.floats() | st.integers()
    return st.recursive(
        scalars | st.sets(members, max_size=4) | st.frozensets(members, max_size=4),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.lists(inner, max_size=4).map(tuple)
            | st.dictionaries(members, inner, max_size=4)
        ),
        max_leaves=leaves,
    )


def session_data() -> st.SearchStrategy[dict[str, Any]]:
    """A hypothesis strategy of the data of a session that is not empty."""
    return st.dictionaries(st.text(max_size=20), session_values(), min_size=1, max_size=5)


def difference(a: Any, b: Any, path: str = "") -> str | None:
    """Where two values differ in type, value, order, time zone or fold; None: nowhere. NaN is like NaN."""
    if type(a) is not type(b):
        return f"{path or 'the value'} was {type(a).__name__}, came back as {type(b).__name__}"
    if isinstance(a, list | tuple):
        if len(a) != len(b):
            return f"{path or 'the value'} had {len(a)} items, came back with {len(b)}"
        pairs = enumerate(zip(a, b, strict=True))
        return next(filter(None, (difference(x, y, f"{path}[{n}]") for n, (x, y) in pairs)), None)
    if isinstance(a, dict):
        return difference(list(a), list(b), f"keys of {path}") or next(
            filter(None, (difference(a[key], b[key], f"{path}[{key!r}]") for key in a)), None
        )
    if _tell_apart(a) == _tell_apart(b):
        return None
    return f"{path or 'the value'} was {a!r}, came back as {b!r}"


def _tell_apart(value: Any) -> object:
    """Equal for two values only if nothing at all differs."""
    if isinstance(value, tuple):
        return tuple, tuple(map(_tell_apart, value))
    if isinstance(value, set | frozenset):
        return type(value), frozenset(map(_tell_apart, value))
    if isinstance(value, datetime | time):
        return type(value), value.replace(tzinfo=None), value.fold, str(value.tzinfo), type(value.tzinfo)
    return type(value), repr(value)  # tells 0.0 from -0.0, and Decimal("1.0") from Decimal("1.00")


def nested(depth: int, kind: str = "list") -> Any:
    """`depth` containers inside each other."""
    value: Any = ()
    if kind == "list":
        value = []
    elif kind == "dict":
        value = {}
    for _ in range(depth - 1):
        value = {"k": value} if kind == "dict" else [value] if kind == "list" else (value,)
    return value


def at_depth(frames: int, do: Callable[[], Any]) -> Any:
    return do() if frames == 0 else at_depth(frames - 1, do)


class TypeRules(Kit):
    type_examples: ClassVar[int] = 30
    """How many sessions with random data are stored and read back."""

    # ---- what goes in comes out --------------------------------------------------------------------------

    @pytest.mark.parametrize("value", EXAMPLES.values(), ids=EXAMPLES)
    def test_a_value_comes_back_as_it_went_in(self, value: Any) -> None:
        """Z3"""
        found = self.read(self.stored(value=value))
        assert found is not None
        assert difference(value, found["value"]) is None

    def test_values_survive_the_commit_of_another_key(self) -> None:
        """Z3, R2: what is carried over is not converted either."""
        session_id = self.stored(EXAMPLES)
        self.write(session_id, other=1)
        assert difference({**EXAMPLES, "other": 1}, self.read(session_id)) is None

    def test_any_data_come_back_as_they_went_in(self) -> None:
        """Z3"""

        @settings(
            max_examples=self.type_examples,
            deadline=None,
            database=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        )
        @given(session_data())
        def come_back(data: dict[str, Any]) -> None:
            session = self.open()
            session.set_map(data)
            self.save(session)
            assert difference(data, self.read(session.id)) is None

        come_back()

    def test_equal_keys_of_different_types_are_told_apart_where_python_does(self) -> None:
        """Z3: JSON makes one key of these two."""
        assert self.read(self.stored(value={1: "int", "1": "str"})) == {"value": {1: "int", "1": "str"}}

    # ---- what is refused ---------------------------------------------------------------------------------

    def refuses(self, value: Any, path: str) -> None:
        """Under the key "value": nothing is stored, not even the other key, and the error says where."""
        self.needs_checked_types()
        session_id = self.stored(user="anna")
        session = self.open(session_id)
        with pytest.raises(NotSerializable) as refused:
            session["user"] = "bert"
            session["value"] = value
            self.save(session)
        assert refused.value.path == path
        assert self.read(session_id) == {"user": "anna"}

    def test_a_value_of_another_type_is_refused_by_set(self) -> None:
        """Z3: at the line that did it."""
        self.needs_checked_types()
        session = self.open()
        for value in REFUSED.values():
            with pytest.raises(NotSerializable) as refused:
                session["value"] = value
            assert refused.value.path == "['value']"

    def test_a_nested_value_of_another_type_is_refused_with_its_path(self) -> None:
        """Z3"""
        for value in REFUSED.values():
            self.refuses({"cart": [1, (value,)]}, "['value']['cart'][1][0]")

    def test_a_value_of_another_type_put_in_place_is_refused_by_the_commit(self) -> None:
        """Z3"""
        self.needs_checked_types()
        session = self.open(self.stored(cart=["apple"]))
        session["cart"].append(object())
        with pytest.raises(NotSerializable) as refused:
            self.save(session)
        assert refused.value.path == "['cart'][1]"
        assert self.read(session.id) == {"cart": ["apple"]}

    def test_a_new_session_with_a_refused_value_is_not_stored(self) -> None:
        self.needs_checked_types()
        session = self.open()
        session["user"] = "anna"
        session["cart"] = [object()]
        with pytest.raises(NotSerializable):
            self.save(session)
        assert self.read(session.id) is None

    @pytest.mark.parametrize(
        "key", [1, None, b"user", ("a",), Text("user")], ids=lambda key: type(key).__name__
    )
    def test_a_key_that_is_no_str_is_a_type_error(self, key: Any) -> None:
        with pytest.raises(TypeError):
            self.open()[key] = 1

    @pytest.mark.parametrize(
        ("value", "path"),
        [
            ("\ud800", "['value']"),
            (["a", "b\udfff"], "['value'][1]"),
            ({"k": "\ud800"}, "['value']['k']"),
            ({"\ud800": 1}, "['value']['\\ud800']"),
            ({"\ud800"}, "['value']['\\ud800']"),
        ],
        ids=["str", "in a list", "in a dict", "key of a dict", "in a set"],
    )
    def test_a_lone_surrogate_is_refused_with_its_path(self, value: Any, path: str) -> None:
        """Z4: never stored, so never met at the next load."""
        self.refuses(value, path)

    def test_a_lone_surrogate_in_a_key_is_refused(self) -> None:
        """Z4"""
        session_id = self.stored(user="anna")
        session = self.open(session_id)
        session["\ud800"] = 1
        with pytest.raises(NotSerializable):
            self.save(session)
        assert self.read(session_id) == {"user": "anna"}

    # ---- depth -------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("kind", ["list", "dict", "tuple"])
    @pytest.mark.parametrize("depth", [DEPTH - 1, DEPTH])
    def test_containers_up_to_the_depth_limit_are_stored(self, depth: int, kind: str) -> None:
        """Z5"""
        found = self.read(self.stored(value=nested(depth, kind)))
        assert found is not None
        assert difference(nested(depth, kind), found["value"]) is None

    @pytest.mark.parametrize("kind", ["list", "dict", "tuple"])
    def test_containers_beyond_the_depth_limit_are_refused(self, kind: str) -> None:
        """Z5"""
        step = "['k']" if kind == "dict" else "[0]"
        self.refuses(nested(DEPTH + 1, kind), "['value']" + step * DEPTH)

    def test_a_cycle_is_refused(self) -> None:
        """Z5"""
        self.needs_checked_types()
        cycle: list[Any] = []
        cycle.append({"again": cycle})
        session_id = self.stored(user="anna")
        session = self.open(session_id)
        session["value"] = cycle
        with pytest.raises(NotSerializable) as refused:
            self.save(session)
        assert refused.value.path.startswith("['value'][0]['again'][0]")
        assert self.read(session_id) == {"user": "anna"}

    def test_what_was_stored_at_the_top_of_a_stack_is_read_at_its_bottom(self) -> None:
        """Z5: the caller's stack does not decide what can be loaded."""
        session_id = self.stored(value=nested(DEPTH))
        room = sys.getrecursionlimit() - stack_height() - 60
        found = at_depth(max(0, room), lambda: self.manager.new(session_id).get("value"))
        assert difference(nested(DEPTH), found) is None


def stack_height() -> int:
    height, frame = 0, sys._getframe()
    while frame.f_back is not None:
        height, frame = height + 1, frame.f_back
    return height
