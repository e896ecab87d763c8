"""Record and Delta: committed state as an immutable mapping, and the merge by key that makes the next one."""

import copy
import gc
import pickle
import sys
import weakref
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cysession import Delta, NotSerializable, Record, SessionTooLarge

# Short and long ASCII keys and others, values inline and not: every form of an entry meets every other.
KEYS = ["a", "b", "", "é", "日本", "k" * 255, "k" * 256, "é" * 300, "\0", "B" * 8, "address!"]
VALUES: list[Any] = [
    None,
    True,
    7,
    2**70,
    1.5,
    "",
    "s" * 1023,
    "s" * 1024,
    "é",
    b"b",
    b"b" * 1024,
    [1],
    {"k": [1]},
    (1, 2),
]
keys = st.sampled_from(KEYS) | st.text(max_size=3) | st.integers(0, 40).map(lambda i: f"key{i}")
datas = st.dictionaries(keys, st.sampled_from(VALUES), max_size=40)


# ---- a mapping -------------------------------------------------------------------------------------------


@given(datas)
def test_a_record_is_a_mapping_over_its_data(data: dict[str, Any]) -> None:
    record = Record.build(data, 5)
    assert isinstance(record, Mapping)
    assert len(record) == len(data)
    assert list(record) == list(record.keys()) == list(data)
    assert list(record.values()) == list(data.values())
    assert list(record.items()) == list(data.items()) == record.raw_items()
    assert dict(record) == record.to_dict() == data
    for key in [*KEYS, *data]:
        assert (key in record) is (key in data)
        assert record.get(key, KEYS) == data.get(key, KEYS)
    for key in KEYS:
        if key not in data:
            with pytest.raises(KeyError):
                record[key]


@pytest.mark.parametrize("key", [1, None, b"a", ("a",), 1.5, [], type("Text", (str,), {})("a")])
def test_what_is_no_str_is_no_key(key: Any) -> None:
    record = Record.build({"a": 1}, 0)
    assert key not in record
    assert record.get(key, "default") == "default"
    with pytest.raises(KeyError):
        record[key]


def test_a_key_with_an_evil_eq_is_not_asked() -> None:
    class Evil:
        def __eq__(self, other: object) -> bool:
            raise AssertionError("asked")

        __hash__ = None  # type: ignore[assignment]

    assert Evil() not in Record.build({"a": 1, "é": 2}, 0)


def test_a_record_carries_its_times_and_its_birth() -> None:
    record = Record.build({"a": 1}, 5, 99, 7, 2**64 - 1)
    assert (record.created, record.cap, record.ttl, record.birth) == (5, 99, 7, 2**64 - 1)
    record = Record.build({}, 5)
    assert (record.created, record.cap, record.ttl) == (5, Record.NEVER, 0)
    assert Record.NEVER == 2**63 - 1


def test_births_are_random_and_never_nothing() -> None:
    births = {Record.build({}, 0).birth for _ in range(1000)}
    assert len(births) == 1000
    assert 0 not in births
    assert max(births) > 2**60


@pytest.mark.parametrize("data", [{}, {"a": 1}, {"a": [1]}, {"é": "x" * 2000}])
def test_records_are_compared_by_identity(data: dict[str, Any]) -> None:
    one, other = Record.build(data, 0, birth=1), Record.build(data, 0, birth=1)
    assert one == one
    assert one != other
    assert len({one, other}) == 2


def test_a_record_shows_no_data_and_no_times() -> None:
    text = repr(Record.build({"secret-key": "secret-value"}, 0))
    assert "secret" not in text
    assert "1 keys" in text


def test_only_the_core_makes_records() -> None:
    for make in (
        lambda: Record(),
        lambda: Record({}),
        lambda: Record.__new__(Record),
        lambda: object.__new__(Record),
    ):
        with pytest.raises(TypeError):
            make()
    with pytest.raises(TypeError):
        type("Mine", (Record,), {})


def test_a_record_cannot_be_changed_pickled_or_given_attributes() -> None:
    record = Record.build({"a": [1]}, 0)
    for name in ("created", "cap", "ttl", "birth", "size", "other"):
        with pytest.raises(AttributeError):
            setattr(record, name, 1)
    with pytest.raises(TypeError):
        record["a"] = 1  # type: ignore[index]
    with pytest.raises(TypeError):
        del record["a"]  # type: ignore[attr-defined]
    for clone in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            clone(record)  # type: ignore[operator]


@pytest.mark.parametrize("data", [None, 1, [1], [("a",)]])
def test_data_that_is_no_mapping_is_refused(data: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        Record.build(data, 0)


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1])
def test_a_time_beyond_64_bits_is_refused(number: int) -> None:
    for arguments in ((number,), (0, number), (0, 0, number)):
        with pytest.raises(OverflowError):
            Record.build({}, *arguments)
    with pytest.raises(OverflowError):
        Record.build({}, 0, birth=2**64)


# ---- the collector, references, memory ---------------------------------------------------------------------


def test_a_record_and_what_it_copied_are_invisible_to_the_collector() -> None:
    gc.collect()
    before = len(gc.get_objects())
    records = [Record.build({"a": [i, {"k": {i}}], "b": ([i],)}, 0) for i in range(500)]
    gc.collect()
    assert len(gc.get_objects()) - before < 50
    assert not gc.is_tracked(records[0])
    assert not any(gc.is_tracked(value) for _, value in records[0].raw_items())


def test_copies_handed_out_are_tracked_again() -> None:
    record = Record.build({"a": [[1]]}, 0)
    loop = record["a"]
    assert gc.is_tracked(loop)
    loop.append(loop)
    loop[0].append(loop)


def test_a_record_gives_back_every_reference() -> None:
    class Value:
        pass

    big_key, big_text, thing = "é" * 300, "x" * 5000, Value()
    before = [sys.getrefcount(o) for o in (big_key, big_text, thing)]
    record = Record.build({big_key: big_text, "list": [big_text, thing], "thing": thing}, 0, any_object=True)
    later: Record | None = record
    for i in range(30):
        later = Delta({f"k{i}": i, "list": [thing]}, ["thing"] if i == 20 else [], any_object=True).apply(
            later, 0, 0
        )
        assert later is not None
        later.to_dict()
        later.items()
    later = Delta(removed=later.keys()).apply(later, 0, 0)
    assert later is None
    del record
    gc.collect()
    assert [sys.getrefcount(o) for o in (big_key, big_text, thing)] == before


def test_a_record_that_could_not_be_built_keeps_nothing() -> None:
    class Value:
        pass

    value, text = Value(), "x" * 5000
    before = sys.getrefcount(value), sys.getrefcount(text)
    for _ in range(10):
        with pytest.raises(NotSerializable):
            Record.build({"a": [text], "é": text, "b": {"k": [value]}, "c": text}, 0)
        with pytest.raises(SessionTooLarge):
            Delta({"a": [text], "é" * 300: text}, max_bytes=100).apply(Record.build({"z": [text]}, 0), 0, 0)
    gc.collect()
    assert (sys.getrefcount(value), sys.getrefcount(text)) == before


def test_sizeof_grows_with_the_data() -> None:
    empty = sys.getsizeof(Record.build({}, 0))
    assert empty <= 80
    assert sys.getsizeof(Record.build({"abc": "x" * 100}, 0)) == empty + 4 + 3 + 100


def test_the_error_in_flight_survives_the_death_of_a_record() -> None:
    def raise_with_a_record() -> None:
        record = Record.build({"a": [1], "é": 2}, 0)
        assert record
        raise ValueError("kept")

    with pytest.raises(ValueError, match="kept"):
        raise_with_a_record()


# ---- Delta -------------------------------------------------------------------------------------------------


@given(datas, datas, st.sets(keys, max_size=30), st.booleans())
def test_a_delta_merges_by_key(
    base: dict[str, Any], changes: dict[str, Any], gone: set[str], cleared: bool
) -> None:
    record = Record.build(base, 5, 99, 7, 123)
    gone -= changes.keys()
    merged = Delta(changes, gone, cleared).apply(record, 1000, 2000)
    kept = {} if cleared else {key: value for key, value in base.items() if key not in gone}
    expected = {**kept, **changes}
    if not expected:
        assert merged is None
        return
    assert merged is not None
    assert merged.to_dict() == expected
    assert list(merged) == list(expected)  # stored order, then the new ones
    assert (merged.created, merged.cap, merged.ttl, merged.birth) == (5, 99, 7, 123)
    assert record.to_dict() == base


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 18, 31, 32, 33, 100, 1000])
@pytest.mark.parametrize("stored", [0, 1, 31, 32, 33, 300])
def test_many_changes_meet_many_entries(n: int, stored: int) -> None:
    base = {f"{'é' if i % 3 == 0 else 'k'}{i}": i for i in range(stored)}
    changes = {f"{'é' if i % 3 == 0 else 'k'}{i}": [i] for i in range(0, 2 * n, 2)}
    removed = [f"{'é' if i % 3 == 0 else 'k'}{i}" for i in range(1, n, 4)]
    record: Record | None = Record.build({"first": 1, **base}, 0)
    merged = Delta(changes, removed).apply(record, 0, 0)
    assert merged is not None
    kept = {k: v for k, v in base.items() if k not in removed}
    assert list(merged.items()) == list(({"first": 1} | kept | changes).items())


def test_without_a_record_a_delta_creates_one() -> None:
    record = Delta({"a": 1}, ["b"], ttl=9).apply(None, 1000, 2000)
    assert record is not None
    assert record.to_dict() == {"a": 1}
    assert (record.created, record.cap, record.ttl) == (1000, 2000, 9)
    assert record.birth not in (0, 1)
    assert Delta(removed=["a"]).apply(None, 1000, 2000) is None
    assert Delta().apply(None, 1000, 2000) is None


def test_nothing_changed_is_an_equal_record() -> None:
    record = Record.build({"a": 1, "é": [1]}, 0, birth=4)
    same = Delta().apply(record, 0, 0)
    assert same is not None
    assert same.to_dict() == record.to_dict()
    assert same.birth == 4


def test_a_ttl_of_its_own_travels_with_the_delta() -> None:
    record = Record.build({"a": 1}, 0, ttl=5)
    for delta, expected in (
        (Delta({"b": 1}), 5),
        (Delta({"b": 1}, ttl=6), 6),
        (Delta(cleared=True, values={"c": 1}), 5),
    ):
        merged = delta.apply(record, 0, 0)
        assert merged is not None
        assert merged.ttl == expected


def test_a_delta_keeps_to_max_bytes() -> None:
    record = Record.build({"a": "x" * 100}, 0)
    Delta({"b": "x" * 80}, max_bytes=200).apply(record, 0, 0)
    with pytest.raises(SessionTooLarge) as caught:
        Delta({"b": "x" * 100}, max_bytes=200).apply(record, 0, 0)
    assert (caught.value.size, caught.value.limit) == (210, 200)
    assert Delta({"a": "x" * 190}, max_bytes=200).apply(record, 0, 0) is not None


@pytest.mark.parametrize("key", [1, None, b"x" * 300, ("a",), 1.5])
def test_the_keys_of_a_delta_are_str(key: Any) -> None:
    record = Record.build({"a": 1, "é": 2}, 0)
    with pytest.raises(TypeError, match="keys are str"):
        Delta({key: 1}).apply(record, 0, 0)
    with pytest.raises(TypeError, match="keys are str"):
        Delta(removed=[key]).apply(record, 0, 0)


def test_a_delta_says_how_much_changes_and_not_what() -> None:
    assert repr(Delta({"secret": 1}, ["hidden"], True)) == "<Delta: 1 written, 1 removed, cleared>"


def test_a_delta_that_holds_itself_is_collected() -> None:
    class Value:
        pass

    value = Value()
    value.delta = Delta({"v": value}, any_object=True)  # type: ignore[attr-defined]
    alive = weakref.ref(value)
    del value
    gc.collect()
    assert alive() is None
