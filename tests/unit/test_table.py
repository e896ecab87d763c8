"""SessionTable: one statement a test. Random histories are in test_table_model.py."""

import gc
import sys
import tracemalloc
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from cysession import Record, StorageFull, StorageMisconfigured
from cysession._core import Delta, SessionTable
from cysession.errors import SessionGone
from cysession.ids import new_id

SECOND = 10**9
TICK = 1 << 30


class Clock:
    def __init__(self) -> None:
        self.ns = 1000 * SECOND

    def __call__(self) -> float:
        return self.ns / 1e9

    def wait(self, seconds: float) -> None:
        self.ns += round(seconds * 1e9)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def table(clock: Clock) -> SessionTable:
    return SessionTable(10, clock=clock)


def record(**data: Any) -> Record:
    return Record.build(data, 0)


def sweep(table: SessionTable) -> int:
    removed, more = table.expire()
    while more:
        n, more = table.expire()
        removed += n
    return removed


# ---- ids -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("session_id", [None, 1, b"a", ["a"], type("Text", (str,), {})("a")])
def test_an_id_that_is_no_str_is_a_type_error(table: SessionTable, session_id: Any) -> None:
    for call in (table.get, table.peek, table.touch, table.add, table.put, table.pop):
        with pytest.raises(TypeError, match="a session id is a str"):
            call(session_id)
    with pytest.raises(TypeError):
        session_id in table  # noqa: B015


@pytest.mark.parametrize("session_id", ["", "x" * 129, "ü", "a\u0100", "\ud800", "x" * 10**6])
def test_an_id_that_cannot_be_stored_is_absent_and_refused(table: SessionTable, session_id: str) -> None:
    assert table.get(session_id) is None
    assert session_id not in table
    assert not table.pop(session_id)
    assert table.rename(session_id, "new") is None
    for store in (table.add, table.put):
        with pytest.raises(ValueError, match="1 to 128 ASCII characters"):
            store(session_id)
    table.add("a")
    with pytest.raises(ValueError, match="1 to 128 ASCII characters"):
        table.rename("a", session_id)
    assert "a" in table
    assert len(table) == 1


@pytest.mark.parametrize("session_id", ["a", "x" * 128, "a b", "\0", "a\0b", "a" * 47, "a" * 48, "/../x"])
def test_every_ascii_id_up_to_128_characters_is_kept_apart(table: SessionTable, session_id: str) -> None:
    r = record(a=1)
    assert table.add(session_id, r)
    assert table.get(session_id) is r
    assert table.get(session_id + "x" if len(session_id) < 128 else session_id[1:]) is None
    assert [row for shard in range(64) for row in table.snapshot(shard)] == [(session_id, r)]


def test_a_str_that_is_equal_but_not_identical_finds_it(table: SessionTable) -> None:
    a = new_id()
    b = "".join(list(a))
    assert a is not b
    table.add(a, record(x=1))
    assert b in table


# ---- what a call answers -----------------------------------------------------------------------------


def test_add_stores_only_what_is_absent(table: SessionTable) -> None:
    first = record(a=1)
    assert table.add("a", first) is True
    assert table.add("a", record(a=2)) is False
    assert table.get("a") is first


def test_a_session_without_data_is_an_empty_record(table: SessionTable) -> None:
    table.add("a")
    got = table.get("a")
    assert got is not None
    assert got.to_dict() == {}
    assert table.touch("a")


def test_replace_is_a_compare_and_swap(table: SessionTable) -> None:
    first, second, third = record(a=1), record(a=2), record(a=3)
    table.add("a", first)
    assert table.replace("a", first, second)
    assert not table.replace("a", first, third)
    assert table.get("a") is second
    assert not table.replace("b", first, third)
    for wrong in (None, {}, 1):
        with pytest.raises(TypeError):
            table.replace("a", wrong, third)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            table.replace("a", second, wrong)  # type: ignore[arg-type]


def test_replace_of_a_session_without_data_takes_the_empty_record_it_gave_out(table: SessionTable) -> None:
    table.add("a")
    empty = table.get("a")
    assert empty is not None
    r = record(a=1)
    assert table.replace("a", empty, r)
    assert not table.replace("a", empty, record(a=2))
    assert table.get("a") is r


def test_pop_says_whether_there_was_a_live_session(table: SessionTable, clock: Clock) -> None:
    table.add("a", record(a=1))
    assert table.pop("a") is True
    assert table.pop("a") is False
    table.add("b", record(a=1))
    clock.wait(10)
    assert table.pop("b") is False


def test_commit_lands_on_what_is_stored_now(table: SessionTable) -> None:
    base = Record.build({"a": 1, "b": 1}, 0, birth=5)
    table.add("x", base)
    table.replace("x", base, Record.build({"a": 2, "b": 1}, 0, birth=5))
    stored = table.commit("x", base, Delta({"c": 3}, ["b"]), 10 * SECOND)
    assert stored is not None
    assert stored.to_dict() == {"a": 2, "c": 3}
    assert table.get("x") is stored
    assert table.commit("x", base, Delta(removed=["a", "c"]), 10 * SECOND) is None
    assert "x" not in table


def test_commit_knows_a_reborn_session(table: SessionTable) -> None:
    base = Record.build({"a": 1}, 0, birth=5)
    table.add("x", Record.build({"a": 1}, 0, birth=6))
    for gone in ("x", "y"):
        with pytest.raises(SessionGone):
            table.commit(gone, base, Delta({"c": 3}), 10 * SECOND)
    assert table.get("x").to_dict() == {"a": 1}  # type: ignore[union-attr]


# ---- time --------------------------------------------------------------------------------------------


def test_a_session_ends_on_the_millisecond(table: SessionTable, clock: Clock) -> None:
    table.add("a")
    clock.wait(9.999)
    assert table.peek("a") is not None
    clock.wait(0.001)
    assert table.peek("a") is None
    assert "a" not in table
    assert not table.touch("a")
    assert table.get("a") is None


def test_get_and_touch_begin_the_idle_time_anew_and_peek_does_not(table: SessionTable, clock: Clock) -> None:
    table.add("get")
    table.add("touch")
    table.add("peek")
    clock.wait(6)
    table.get("get")
    table.touch("touch")
    table.peek("peek")
    clock.wait(6)
    assert ["get" in table, "touch" in table, "peek" in table] == [True, True, False]


@pytest.mark.parametrize(
    "ttl", [0.001, 0.5, 1.0, 59.0, 3600.0, 86_400.0, 49.8 * 86_400, 300 * 86_400.0, 4.6e9]
)
def test_idle_times_from_a_millisecond_to_146_years(clock: Clock, ttl: float) -> None:
    table = SessionTable(1, clock=clock)
    table.add("a", None, ttl)
    clock.wait(ttl - 0.001)
    assert "a" in table
    clock.wait(0.002)
    assert "a" not in table
    clock.wait(3)
    sweep(table)
    assert len(table) == 0


@pytest.mark.parametrize("ttl", [0, -1, 4.7e9, float("nan"), float("inf")])
def test_an_idle_time_out_of_range_is_refused(table: SessionTable, ttl: float) -> None:
    with pytest.raises(ValueError, match="ttl"):
        SessionTable(ttl)
    with pytest.raises(ValueError, match="ttl"):
        table.add("a", None, ttl)
    assert len(table) == 0


@pytest.mark.parametrize("ttl", ["1", True, b"1", [1]])
def test_an_idle_time_that_is_no_number_is_refused(table: SessionTable, ttl: Any) -> None:
    with pytest.raises(TypeError, match="ttl"):
        table.put("a", None, ttl)


def test_no_touch_passes_the_records_cap(table: SessionTable, clock: Clock) -> None:
    table.add("a", Record.build({}, clock.ns, clock.ns + 25 * SECOND))
    for _ in range(5):
        clock.wait(5 - 0.001)
        assert table.touch("a")
    clock.wait(0.005)
    assert not table.touch("a")


def test_a_records_own_idle_time_wins(table: SessionTable, clock: Clock) -> None:
    table.add("a", Record.build({}, clock.ns, ttl=3 * SECOND), 100)
    clock.wait(2.999)
    assert table.touch("a")
    clock.wait(3)
    assert not table.touch("a")


def test_a_clock_that_goes_back_kills_nobody(table: SessionTable, clock: Clock) -> None:
    table.add("a")
    clock.wait(-900)
    assert table.touch("a")
    clock.wait(9.999)
    assert table.touch("a")
    table._check()


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), 9.3e9])
def test_a_clock_without_a_time_is_an_error_and_changes_nothing(clock: Clock, seconds: float) -> None:
    times = [1.0]
    table = SessionTable(10, clock=lambda: times[0])
    table.add("a")
    times[0] = seconds
    for call in (table.get, table.add, table.pop):
        with pytest.raises(ValueError, match="clock"):
            call("a")
    times[0] = 1.0
    assert "a" in table
    assert len(table) == 1


def test_an_error_of_the_clock_reaches_the_caller() -> None:
    def clock() -> float:
        if broken:
            raise RuntimeError("no time today")
        return 1.0

    broken = False
    table = SessionTable(10, clock=clock)
    table.add("a")
    broken = True
    with pytest.raises(RuntimeError, match="no time today"):
        table.get("a")


def test_the_clock_is_set_while_the_table_is_empty_or_never(clock: Clock) -> None:
    table = SessionTable(10)
    table._set_clock(clock)
    assert table.now_ns() == clock.ns
    table.add("a")
    with pytest.raises(StorageMisconfigured):
        table._set_clock(clock)
    clock.wait(10)
    assert "a" not in table


def test_the_native_clock_is_monotonic_nanoseconds() -> None:
    table = SessionTable(10)
    times = [table.now_ns() for _ in range(1000)]
    assert times == sorted(times)
    assert times[0] > 0


# ---- expiry -------------------------------------------------------------------------------------------


def test_len_counts_what_the_sweep_has_not_reached(table: SessionTable, clock: Clock) -> None:
    for i in range(100):
        table.add(str(i))
    clock.wait(20)
    assert len(table) == 100
    assert sweep(table) == 100
    assert len(table) == 0


@pytest.mark.parametrize("budget", [1, 2, 31, 32, 33, 100])
def test_expire_does_no_more_than_its_budget_and_says_whether_more_is_due(clock: Clock, budget: int) -> None:
    table = SessionTable(10, clock=clock)
    for i in range(200):
        table.add(str(i))
    clock.wait(20)
    total = calls = 0
    more = True
    while more:
        removed, more = table.expire(budget)
        assert removed <= budget
        total += removed
        calls += 1
        table._check()
        assert calls <= 2 * 200 // budget + 64, "it makes no progress"
    assert total == 200
    assert table.stats()["largest_slice"] <= min(budget, 32)


def test_a_backlog_shrinks_under_traffic_alone(table: SessionTable, clock: Clock) -> None:
    for i in range(2000):
        table.add(f"old{i}")
    clock.wait(20)
    for i in range(1500):
        table.add(f"new{i}")
    assert len(table) < 2000


def test_next_due_is_never_after_a_session_has_ended(table: SessionTable, clock: Clock) -> None:
    assert table.next_due() is None
    table.add("a")
    due = table.next_due()
    assert due is not None
    assert 0 < due <= 10 + 2 * TICK / 1e9
    clock.wait(20)
    assert table.next_due() == 0.0
    table.expire(0)
    assert table.next_due() == 0.0
    sweep(table)
    assert table.next_due() is None


def test_on_expire_hears_of_each_session_once(clock: Clock) -> None:
    heard: list[tuple[str, Record | None]] = []
    table = SessionTable(10, clock=clock, on_expire=heard.extend)
    kept, gone, ended = record(a=1), record(a=2), record(a=3)
    table.add("kept", kept, 1000)
    table.add("popped", gone)
    table.add("replaced", gone)
    table.add("renamed", gone)
    table.add("ended", ended)
    table.add("empty")
    table.pop("popped")
    table.put("replaced", kept, 1000)
    table.rename("renamed", "moved", 5)
    table.put("moved", kept, 1000)
    clock.wait(20)
    assert table.add("ended", kept, 1000)  # its id is taken again before the sweep comes by
    sweep(table)
    clock.wait(200)
    sweep(table)
    assert sorted(heard, key=lambda row: row[0]) == [("empty", None), ("ended", ended)]


def test_on_expire_hears_in_batches_of_a_slice(clock: Clock) -> None:
    batches: list[int] = []
    table = SessionTable(10, clock=clock, on_expire=lambda gone: batches.append(len(gone)))
    for i in range(3000):
        table.add(str(i))
    clock.wait(20)
    sweep(table)
    assert sum(batches) == 3000
    assert max(batches) <= 32
    assert len(batches) < 3000 / 5


def test_R38_what_on_expire_raises_is_reported_and_breaks_nothing(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on_expire(gone: list[Any]) -> None:
        raise ValueError("from on_expire")

    reported: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: reported.append(args.exc_value))
    table = SessionTable(10, clock=clock, on_expire=on_expire)
    for i in range(100):
        table.add(str(i))
    clock.wait(20)
    assert table.add("new")
    assert table.get("new") is not None
    sweep(table)
    assert len(table) == 1
    assert {str(error) for error in reported} == {"from on_expire"}
    table._check()


def test_on_expire_may_use_the_table(clock: Clock) -> None:
    def on_expire(gone: list[tuple[str, Record | None]]) -> None:
        for session_id, _ in gone:
            assert session_id not in table
            table.add(f"again-{session_id}")
            table.expire()
            table.pop(f"again-{session_id}")
            len(table)
            heard.append(session_id)

    heard: list[str] = []
    table = SessionTable(10, clock=clock, on_expire=on_expire)
    for i in range(300):
        table.add(str(i))
    clock.wait(20)
    sweep(table)
    assert sorted(heard) == sorted(map(str, range(300)))
    assert len(table) == 0
    table._check()


# ---- rotation ------------------------------------------------------------------------------------------


def test_rename_without_grace_ends_the_old_id_at_once(table: SessionTable) -> None:
    r = record(a=1)
    table.add("old", r)
    assert table.rename("old", "new") is r
    assert "old" not in table
    assert table.get("new") is r
    assert len(table) == 1


def test_rename_with_grace_lets_the_old_id_lead_to_the_new_record(table: SessionTable, clock: Clock) -> None:
    r, newer = record(a=1), record(a=2)
    table.add("old", r)
    table.rename("old", "new", 5)
    assert len(table) == 1
    assert table.get("old") is r
    assert table.replace("new", r, newer)
    assert table.get("old") is newer
    clock.wait(4.999)
    assert table.get("old") is newer
    clock.wait(0.001)
    assert table.get("old") is None
    assert table.get("new") is newer


def test_the_grace_window_is_not_prolonged_by_use(table: SessionTable, clock: Clock) -> None:
    table.add("old")
    table.rename("old", "new", 5)
    for _ in range(5):
        clock.wait(0.999)
        assert table.touch("old")
    clock.wait(0.005)
    assert not table.touch("old")


def test_pop_through_the_old_id_kills_the_new_record(table: SessionTable) -> None:
    table.add("old", record(a=1))
    table.rename("old", "new", 5)
    assert table.pop("old")
    assert "new" not in table
    assert len(table) == 0
    table._check()


def test_ids_lead_on_through_several_rotations(table: SessionTable, clock: Clock) -> None:
    r = record(a=1)
    table.add("0", r, 1000)
    for i in range(50):
        assert table.rename("0", str(i + 1), 1000) is r
    assert table.get("0") is r
    assert table.get("25") is r
    assert len(table) == 1
    assert table.pop("3")
    assert table.get("0") is None
    assert "50" not in table
    table._check()


def test_an_old_id_leads_on_through_any_number_of_rotations(table: SessionTable) -> None:
    """However many there were within one grace window: no stack is deep enough for a call each."""
    table.add("id-0", record(a=1))
    last = 200_000
    for n in range(last):
        table.rename(f"id-{n}", f"id-{n + 1}", 30)
    assert table.peek("id-0") is table.peek(f"id-{last}") is not None
    assert table.rename("id-0", "other", 30) is not None  # of the session, wherever it is
    assert table.peek("id-0") is table.peek("other") is not None
    assert table.pop("id-0") and table.get("other") is None and len(table) == 0


def test_rename_to_an_id_in_use_is_refused(table: SessionTable) -> None:
    a, b = record(a=1), record(b=1)
    table.add("a", a)
    table.add("b", b)
    for taken in ("b", "a"):
        with pytest.raises(ValueError, match="in use"):
            table.rename("a", taken)
    assert table.get("a") is a
    assert table.get("b") is b


def test_rename_of_a_session_that_was_reborn_moves_nothing(table: SessionTable) -> None:
    table.add("a", Record.build({"a": 1}, 0, birth=7))
    assert table.rename("a", "b", 0, 8) is None
    assert table.rename("a", "b", 0, 7) is not None


# ---- limits, counts, memory ------------------------------------------------------------------------------


def test_R40_max_sessions_refuses_a_new_one_and_keeps_the_others(clock: Clock) -> None:
    table = SessionTable(10, clock=clock, max_sessions=3)
    for i in range(3):
        table.add(str(i))
    with pytest.raises(StorageFull):
        table.add("4")
    assert len(table) == 3
    assert table.rename("0", "0b") is not None
    assert table.get("1") is not None
    assert table.pop("2")
    assert table.add("4")


def test_at_max_sessions_the_expired_make_room(clock: Clock) -> None:
    table = SessionTable(10, clock=clock, max_sessions=100)
    for i in range(100):
        table.add(str(i))
    clock.wait(20)
    for i in range(100):
        assert table.add(f"new{i}")
    with pytest.raises(StorageFull):
        table.add("one more")


def test_stats_add_up(clock: Clock) -> None:
    table = SessionTable(10, clock=clock)
    for i in range(1000):
        table.add(str(i))
    for i in range(100):
        table.pop(str(i))
    for i in range(50, 150):
        table.get(str(i))
    table.put("200", record(a=1))
    stats = table.stats()
    assert (stats["live"], stats["created"], stats["destroyed"], stats["expired"]) == (900, 1000, 100, 0)
    assert (stats["hits"], stats["misses"]) == (50, 50)
    assert stats["resizes"] >= 64  # from 8 slots a shard on
    clock.wait(20)
    sweep(table)
    stats = table.stats()
    assert (stats["live"], stats["expired"]) == (0, 900)
    assert stats["created"] == stats["live"] + stats["expired"] + stats["destroyed"]


def test_clear_removes_everything_and_announces_nothing(clock: Clock) -> None:
    heard: list[Any] = []
    table = SessionTable(10, clock=clock, on_expire=heard.extend)
    for i in range(1000):
        table.add(str(i), record(i=i))
    table.rename("1", "new", 5)
    table.clear()
    table._check()
    assert len(table) == 0
    assert table.get("new") is None
    assert table.add("1")
    assert heard == []


def test_a_table_is_freed_with_all_its_records() -> None:
    class Value:
        pass

    values = [Value() for _ in range(100)]
    refs = [weakref.ref(value) for value in values]
    table = SessionTable(10)
    for i, value in enumerate(values):
        table.add(str(i), Record.build({"v": value}, 0, any_object=True))
    values.clear()
    del value
    gc.collect()
    assert all(ref() is not None for ref in refs)
    alive = weakref.ref(table)
    del table
    assert alive() is None
    assert [ref for ref in refs if ref() is not None] == []


def test_a_table_in_a_cycle_through_its_callbacks_is_collected() -> None:
    class Owner:
        def __init__(self) -> None:
            self.table = SessionTable(10, on_expire=self.hear)
            self.table.add("a")

        def hear(self, gone: list[Any]) -> None:
            pass

    alive = weakref.ref(Owner())
    gc.collect()
    assert alive() is None


def test_records_are_invisible_to_the_collector(table: SessionTable) -> None:
    gc.collect()
    before = len(gc.get_objects())
    for i in range(2000):
        table.add(f"{i}", record(user=f"u{i}", cart=[1, 2, {"a": [i]}], when=None))
    gc.collect()
    assert len(gc.get_objects()) - before < 100


def look_everywhere(table: SessionTable, i: str) -> None:
    for shard in range(64):
        table.snapshot(shard)


def swap(table: SessionTable, i: str) -> None:
    stored = table.get(i)
    assert stored is not None
    assert table.replace(i, stored, record(b=[1]))


CYCLES: dict[str, Callable[[SessionTable, str], object]] = {
    "get": lambda table, i: table.get(i),
    "replace": swap,
    "rename": lambda table, i: table.rename(i, i + "b"),
    "grace": lambda table, i: (table.rename(i, i + "b", 9), table.pop(i)),
    "put": lambda table, i: table.put(i, record(b=[1])),
    "refused": lambda table, i: table.add(i, record(b=[1])),
    "snapshot": look_everywhere,
}


@pytest.mark.parametrize("cycle", CYCLES)
def test_R34_no_operation_leaks(cycle: str) -> None:
    table, run = SessionTable(10), CYCLES[cycle]

    def many() -> int:
        for i in range(300):
            table.add(f"id-{i}", record(a=[1]))
            run(table, f"id-{i}")
            table.clear()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        many()
        before = many()
        assert many() - before < 300 * 16  # a leak would be an object per turn
    finally:
        tracemalloc.stop()


def test_expiry_leaks_nothing(clock: Clock) -> None:
    table = SessionTable(10, clock=clock, on_expire=lambda gone: None)

    def many() -> int:
        for i in range(500):
            table.add(f"id-{i}", record(a=[i], b="x" * 2000))
        clock.wait(20)
        assert sweep(table) == 500
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        many()
        before = many()
        assert many() - before < 500 * 16
    finally:
        tracemalloc.stop()
