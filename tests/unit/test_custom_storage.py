"""A storage that overrides only some of the methods works with everything (docs/custom_storage.md)."""

import asyncio
import logging
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cysession import Delta, Manager, Record, Storage
from cysession.errors import (
    CorruptRecord,
    SessionGone,
    StorageFull,
    StorageMisconfigured,
    StorageUnavailable,
)
from cysession.storage.base import META
from examples.custom_storage import SqliteStorage

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # these tests fork beside threads

SECOND = 1_000_000_000
TTL = 100 * SECOND


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class WholeStorage(Storage):
    """The four methods over a dict, with its own idle time; counts what is asked of it."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[float, Record]] = {}
        self.calls: list[str] = []

    def time(self) -> float:
        assert self.clock is not None
        return self.clock()

    def get_session(self, session_id: str, ttl: float) -> Record | None:
        self.calls.append("get_session")
        ends, record = self.rows.get(session_id, (0.0, None))
        return record if ends > self.time() else None

    def set_session(self, session_id: str, record: Record, ttl: float) -> None:
        self.calls.append("set_session")
        self.rows[session_id] = (self.time() + ttl, record)

    def update_ttl(self, session_id: str, ttl: float) -> bool:
        self.calls.append("update_ttl")
        if self.rows.get(session_id, (0.0,))[0] <= self.time():
            return False
        self.rows[session_id] = (self.time() + ttl, self.rows[session_id][1])
        return True

    def remove_all(self, session_id: str) -> bool:
        self.calls.append("remove_all")
        return self.rows.pop(session_id, None) is not None


class KeyedStorage(Storage):
    """GoFrame's hash table kind: every key for itself."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}
        self.ends: dict[str, float] = {}
        self.written: list[str] = []

    def time(self) -> float:
        assert self.clock is not None
        return self.clock()

    def get_map(self, session_id: str) -> dict[str, Any]:
        return dict(self.rows[session_id]) if self.ends.get(session_id, 0) > self.time() else {}

    def get(self, session_id: str, key: str, default: Any = None) -> Any:
        return self.get_map(session_id).get(key, default)

    def set(self, session_id: str, key: str, value: Any, ttl: float) -> None:
        self.set_map(session_id, {key: value}, ttl)

    def set_map(self, session_id: str, mapping: Any, ttl: float) -> None:
        self.written = sorted(mapping)
        row = self.get_map(session_id)
        row.update(mapping)
        self.rows[session_id] = row
        self.ends[session_id] = self.time() + ttl

    def remove(self, session_id: str, *keys: str) -> None:
        for key in keys:
            self.rows.get(session_id, {}).pop(key, None)

    def update_ttl(self, session_id: str, ttl: float) -> bool:
        if not self.get_map(session_id):
            return False
        self.ends[session_id] = self.time() + ttl
        return True


class TouchlessStorage(WholeStorage):
    update_ttl = Storage.update_ttl


Make = Callable[[], Storage]


@pytest.fixture(params=["whole", "keyed", "sqlite"])
def storage(request: pytest.FixtureRequest, clock: Clock) -> Iterator[Storage]:
    kinds: dict[str, Make] = {
        "whole": WholeStorage,
        "keyed": KeyedStorage,
        "sqlite": lambda: SqliteStorage(":memory:"),
    }
    made = kinds[request.param]()
    made.use_clock(clock)
    yield made
    if isinstance(made, SqliteStorage):
        made.db.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def record(storage: Storage, data: dict[str, Any], **times: int) -> Record:
    return Record.build(data, storage.now_ns(), **times)


# ---- with a Manager ----------------------------------------------------------------------------------


def test_a_whole_life_of_a_session(storage: Storage, clock: Clock) -> None:
    manager = Manager(ttl=100, storage=storage, max_age=250, clock=clock)
    with manager.new() as s:
        s["cart"] = ["tea"]
        first = s.id
    with manager.new(first) as s:
        assert not s.is_new
        s["cart"].append("milk")
        second = s.regenerate_id()
    assert manager.new(first).is_new
    assert manager.new(second)["cart"] == ["tea", "milk"]
    for _ in range(3):  # idle time slides ...
        clock.now += 80
        assert manager.new(second).is_new == (clock.now >= 1250)  # ... but not past max_age
    clock.now = 1249.999
    assert manager.new(second)["cart"] == ["tea", "milk"]
    clock.now = 1250.0
    assert manager.new(second).is_new


def test_the_async_twins_work_too(storage: Storage, clock: Clock) -> None:
    async def life() -> None:
        manager = Manager(ttl=100, storage=storage, clock=clock)
        async with manager.new() as s:
            s["n"] = 1
            name = s.id
        async with manager.new(name) as s:
            await s.aload()
            assert s["n"] == 1
            name = await s.aregenerate_id()
        s = manager.new(name)
        await s.aload()
        await s.adestroy()
        assert manager.new(name).is_new

    asyncio.run(life())


# ---- the record protocol, made of the storage's own methods ------------------------------------------


def test_R2_commits_of_different_keys_merge(storage: Storage) -> None:
    storage.create_record("a", record(storage, {"x": 0, "old": 1}), TTL)
    one, two = storage.load_record("a", TTL), storage.load_record("a", TTL)
    assert one is not None and two is not None
    storage.commit_record("a", one, Delta({"x": 1}), TTL)
    after = storage.commit_record("a", two, Delta({"y": [2]}, removed=["old"]), TTL)
    assert after is not None and after.to_dict() == {"x": 1, "y": [2]} and after.birth == one.birth
    stored = storage.load_record("a", TTL)
    assert stored is not None and stored.to_dict() == {"x": 1, "y": [2]} and stored.birth == one.birth


def test_create_must_not_exist(storage: Storage) -> None:
    assert storage.create_record("a", record(storage, {"x": 1}), TTL)
    assert not storage.create_record("a", record(storage, {"x": 2}), TTL)
    assert storage.get("a", "x") == 1


def test_V5_destroy_is_final(storage: Storage) -> None:
    storage.create_record("a", record(storage, {"x": 1}), TTL)
    base = storage.load_record("a", TTL)
    assert base is not None
    assert storage.delete_record("a") and not storage.delete_record("a")
    with pytest.raises(SessionGone):
        storage.commit_record("a", base, Delta({"x": 2}), TTL)
    assert not storage.touch_record("a", base, TTL)
    assert storage.rename_record("a", "b", base, TTL, 0) is None
    assert storage.load_record("a", TTL) is storage.load_record("b", TTL) is None


def test_V5_a_commit_never_lands_in_a_session_reborn_under_the_same_id(storage: Storage) -> None:
    storage.create_record("a", record(storage, {"x": 1}), TTL)
    base = storage.load_record("a", TTL)
    assert base is not None
    storage.delete_record("a")
    storage.create_record("a", record(storage, {"x": "reborn"}), TTL)
    with pytest.raises(SessionGone):
        storage.commit_record("a", base, Delta({"x": 2}), TTL)
    assert not storage.touch_record("a", base, TTL)
    assert storage.rename_record("a", "b", base, TTL, 0) is None
    assert storage.get_map("a").get("x") == "reborn"


def test_a_commit_that_leaves_no_data_deletes(storage: Storage) -> None:
    storage.create_record("a", record(storage, {"x": 1}), TTL)
    base = storage.load_record("a", TTL)
    assert base is not None
    assert storage.commit_record("a", base, Delta(removed=["x"]), TTL) is None
    assert storage.load_record("a", TTL) is None and not storage.delete_record("a")


def test_the_grace_of_an_old_id_leads_to_the_new_record_and_ends(storage: Storage, clock: Clock) -> None:
    storage.create_record("a", record(storage, {"x": 1}), TTL)
    base = storage.load_record("a", TTL)
    assert base is not None
    moved = storage.rename_record("a", "b", base, TTL, 30 * SECOND)
    assert moved is not None and moved.birth == base.birth
    clock.now += 29.999
    through_old = storage.load_record("a", TTL)
    assert through_old is not None and through_old.to_dict() == {"x": 1}
    storage.commit_record("a", base, Delta({"y": 2}), TTL)  # a request that still holds the old id
    assert storage.get("b", "y") == 2
    assert not storage.create_record("a", record(storage, {"x": 1}), TTL)
    clock.now += 0.001
    assert storage.load_record("a", TTL) is None
    assert storage.get("b", "y") == 2


def test_a_chain_of_rotations_is_followed_and_cut_by_one_without_grace(storage: Storage) -> None:
    storage.create_record("a", record(storage, {"x": 1}), TTL)
    base = storage.load_record("a", TTL)
    assert base is not None
    storage.rename_record("a", "b", base, TTL, 30 * SECOND)
    storage.rename_record("a", "c", base, TTL, 30 * SECOND)  # through the old id
    for name in "a", "b", "c":
        found = storage.load_record(name, TTL)
        assert found is not None and found.birth == base.birth
    storage.rename_record("c", "d", base, TTL, 0)  # a login: nobody keeps an older id
    assert [storage.load_record(name, TTL) for name in "abc"] == [None] * 3
    assert storage.get("d", "x") == 1


def test_V5_destroying_through_an_old_id_destroys_the_session(storage: Storage) -> None:
    storage.create_record("a", record(storage, {"x": 1}), TTL)
    base = storage.load_record("a", TTL)
    assert base is not None
    storage.rename_record("a", "b", base, TTL, 30 * SECOND)
    assert storage.delete_record("a")
    assert storage.load_record("a", TTL) is storage.load_record("b", TTL) is None


def test_an_alias_leads_only_to_the_session_it_was_made_for(storage: Storage) -> None:
    storage.create_record("a", record(storage, {"x": 1}), TTL)
    base = storage.load_record("a", TTL)
    assert base is not None
    storage.rename_record("a", "b", base, TTL, 30 * SECOND)
    storage.delete_record("b")
    storage.create_record("b", record(storage, {"x": "another user's"}), TTL)
    assert storage.load_record("a", TTL) is None
    assert not storage.delete_record("a") and storage.get("b", "x") == "another user's"


def test_S23_an_old_id_never_shows_the_new_one(storage: Storage) -> None:
    storage.create_record("a", record(storage, {"x": 1}), TTL)
    base = storage.load_record("a", TTL)
    assert base is not None
    storage.rename_record("a", "the-new-id", base, TTL, 30 * SECOND)
    found = storage.load_record("a", TTL)
    assert found is not None and found.to_dict() == {"x": 1}
    if not isinstance(storage, KeyedStorage):  # which has its own methods, for its own rows
        assert storage.get_map("a") == {"x": 1} and storage.get_size("a") == 1


def test_S7_no_touch_passes_the_absolute_deadline(storage: Storage, clock: Clock) -> None:
    cap = storage.now_ns() + 150 * SECOND
    storage.create_record("a", record(storage, {"x": 1}, cap=cap), TTL)
    clock.now += 99
    found = storage.load_record("a", TTL)
    assert found is not None and found.cap == cap
    clock.now += 50.999
    assert storage.load_record("a", TTL) is not None
    clock.now += 0.001
    assert storage.load_record("a", TTL) is None
    with pytest.raises(SessionGone):
        storage.commit_record("a", found, Delta({"x": 2}), TTL)


def test_a_sessions_own_ttl_counts_instead_of_the_managers(storage: Storage, clock: Clock) -> None:
    storage.create_record("a", record(storage, {"x": 1}, ttl=10 * SECOND), TTL)
    clock.now += 9.9
    base = storage.load_record("a", TTL)
    assert base is not None and base.ttl == 10 * SECOND
    storage.commit_record("a", base, Delta(ttl=20 * SECOND), TTL)
    clock.now += 19.9
    assert storage.load_record("a", TTL) is not None
    clock.now += 20.0
    assert storage.load_record("a", TTL) is None


def test_a_record_stays_what_it_is_when_it_is_merged(storage: Storage) -> None:
    made = record(storage, {"x": 1}, cap=storage.now_ns() + 500 * SECOND, ttl=7 * SECOND)
    storage.create_record("a", made, TTL)
    found = storage.load_record("a", TTL)
    assert found is not None
    storage.commit_record("a", found, Delta({"y": 1}), TTL)
    found = storage.load_record("a", TTL)
    assert found is not None
    want = (made.birth, made.created, made.cap, made.ttl)
    assert (found.birth, found.created, found.cap, found.ttl) == want


def test_R2_threads_lose_no_change(storage: Storage) -> None:
    storage.create_record("a", record(storage, {"start": 0}), TTL)

    def work(worker: int) -> None:
        for n in range(25):
            base = storage.load_record("a", TTL)
            assert base is not None
            storage.commit_record("a", base, Delta({f"{worker}-{n}": n}), TTL)

    threads = [threading.Thread(target=work, args=(w,)) for w in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert storage.get_size("a") == 101


# ---- GoFrame's methods that a storage leaves out -----------------------------------------------------


def test_the_methods_a_storage_leaves_out_are_made_of_those_it_has(storage: Storage) -> None:
    def data() -> dict[str, Any]:
        return {key: value for key, value in storage.get_map("a").items() if key != META}

    assert (storage.get("a", "x", "none"), data(), storage.get_size("a")) == ("none", {}, 0)
    storage.set("a", "x", 1, 100)
    storage.set_map("a", {"y": (2,), "z": None}, 100)
    assert data() == {"x": 1, "y": (2,), "z": None}
    storage.remove("a", "z", "unknown")
    assert data() == {"x": 1, "y": (2,)} and storage.update_ttl("a", 100)
    found = storage.get_session("a", 100)
    assert found is not None and found.to_dict() == {"x": 1, "y": (2,)}
    storage.set_session("a", record(storage, {"only": 1}), 100)
    assert data() == {"only": 1}
    assert storage.remove_all("a") is True and storage.remove_all("a") is False
    assert not storage.update_ttl("a", 100) and data() == {}
    assert len(storage.new(100)) == 43


def test_V8_reading_and_removing_make_no_record(storage: Storage) -> None:
    storage.get("a", "x")
    storage.remove("a", "x")
    storage.update_ttl("a", 100)
    assert storage.load_record("a", TTL) is None
    assert not getattr(storage, "rows", None)


def test_a_keyed_storage_is_told_only_what_changed(clock: Clock) -> None:
    storage = KeyedStorage()
    storage.use_clock(clock)
    storage.create_record("a", record(storage, {"x": 1, "y": [1], "z": True}), TTL)
    base = storage.load_record("a", TTL)
    assert base is not None
    storage.commit_record("a", base, Delta({"x": 1, "y": [1, 2], "z": 1}), TTL)
    assert storage.written == sorted([META, "y", "z"])  # 1 and True are not the same


def test_keys_set_past_any_session_are_a_session(clock: Clock) -> None:
    storage = KeyedStorage()
    storage.use_clock(clock)
    storage.set("a", "x", 1, 100)
    base = storage.load_record("a", TTL)
    assert base is not None and base.to_dict() == {"x": 1}
    storage.commit_record("a", base, Delta({"y": 2}), TTL)
    storage.rows["a"][META] = "nonsense"
    assert storage.load_record("a", TTL) is None and storage.stats()["corrupt"] == 1


# ---- touches -----------------------------------------------------------------------------------------


def test_R7_touches_are_throttled_and_write_no_data(clock: Clock) -> None:
    storage = WholeStorage()
    storage.use_clock(clock)
    storage.create_record("a", record(storage, {"x": 1}), TTL)
    storage.calls.clear()
    for _ in range(20):
        storage.load_record("a", TTL)
        clock.now += 0.5
    assert storage.calls.count("update_ttl") == 1 and "set_session" not in storage.calls  # one every ttl / 20
    clock.now = 100.0  # the clock was put back: the idle time must not grow by that
    storage.load_record("a", TTL)
    assert storage.calls.count("update_ttl") == 2


def test_without_update_ttl_a_session_lives_from_its_last_write(clock: Clock) -> None:
    storage = TouchlessStorage()
    storage.use_clock(clock)
    storage.create_record("a", record(storage, {"x": 1}), TTL)
    for _ in range(2):
        clock.now += 49
        assert storage.load_record("a", TTL) is not None
    clock.now += 2
    assert storage.load_record("a", TTL) is None


# ---- failure -----------------------------------------------------------------------------------------


def test_R20_a_failing_storage_is_unavailable_and_never_empty(clock: Clock) -> None:
    class Broken(WholeStorage):
        def get_session(self, session_id: str, ttl: float) -> Record | None:
            raise sqlite3.OperationalError("disk I/O error")

    storage = Broken()
    storage.use_clock(clock)
    with pytest.raises(StorageUnavailable) as caught:
        storage.load_record("a", TTL)
    assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
    assert "Broken" in str(caught.value)

    class Full(WholeStorage):
        def set_session(self, session_id: str, record: Record, ttl: float) -> None:
            raise StorageFull

    full = Full()
    full.use_clock(clock)
    with pytest.raises(StorageFull):
        full.create_record("a", record(full, {"x": 1}), TTL)


def test_R13_a_corrupt_record_is_a_missing_session_counted_and_logged_without_its_id(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    class Torn(WholeStorage):
        def get_session(self, session_id: str, ttl: float) -> Record | None:
            raise CorruptRecord

    storage = Torn()
    storage.use_clock(clock)
    with caplog.at_level(logging.DEBUG):
        for _ in range(3):
            assert storage.load_record("the-session-id", TTL) is None
    assert storage.stats()["corrupt"] == 3 and len(caplog.records) == 1
    assert "the-session-id" not in caplog.text
    assert storage.create_record("the-session-id", record(storage, {"x": 1}), TTL)  # and may be replaced


def test_a_storage_that_returns_something_else_than_a_record_is_told_so(clock: Clock) -> None:
    class Wrong(WholeStorage):
        def get_session(self, session_id: str, ttl: float) -> Any:
            return {"x": 1}

    storage = Wrong()
    with pytest.raises(StorageUnavailable) as caught:
        storage.load_record("a", TTL)
    assert "not dict" in str(caught.value.__cause__)


@pytest.mark.parametrize(
    ("methods", "needs"),
    [
        ((), "get_session, set_session, update_ttl and remove_all"),
        (("get_session", "set_session"), "remove_all"),
        (("get_session", "remove_all"), "set_session"),
        (("get", "set"), "get_map and remove and set_map"),
        (("get_map", "set_map"), "remove"),
    ],
)
def test_a_storage_that_overrides_too_little_says_what_is_missing(
    methods: tuple[str, ...], needs: str
) -> None:
    half = type("Half", (Storage,), {name: lambda self, *args: None for name in methods})
    with pytest.raises(StorageMisconfigured, match=f"Half is no storage yet: it needs {needs}$"):
        half()
    with pytest.raises(StorageMisconfigured):
        Storage()


def test_what_a_class_overrides_is_decided_once() -> None:
    assert WholeStorage.overrides == {"get_session", "set_session", "update_ttl", "remove_all"}
    assert "update_ttl" not in TouchlessStorage.overrides


def test_a_storage_that_holds_nothing_is_still_true(clock: Clock) -> None:
    class Counted(WholeStorage):
        def __len__(self) -> int:
            return len(self.rows)

    assert Counted()


def test_R30_a_child_forked_while_a_lock_is_held_can_use_the_storage(clock: Clock) -> None:
    storage = WholeStorage()
    storage.use_clock(clock)
    storage.create_record("a", record(storage, {"x": 1}), TTL)
    with storage._stripes.hold("a"):
        pid = os.fork()
        if pid == 0:
            base = storage.load_record("a", TTL)
            assert base is not None
            storage.commit_record("a", base, Delta({"x": 2}), TTL)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0


# ---- the example -------------------------------------------------------------------------------------


def test_the_example_runs_and_is_about_as_short_as_the_docs_say(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "examples" / "custom_storage.py"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    out = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "{'cart': ['tea', 'milk']}"
    body = script.read_text().split("class SqliteStorage")[1].split("if __name__")[0]
    assert sum(1 for line in body.splitlines() if line.strip()) <= 30


def test_S21_the_example_never_stores_an_id(tmp_path: Path) -> None:
    storage = SqliteStorage(str(tmp_path / "s.db"))
    manager = Manager(storage=storage)
    with manager.new() as s:
        s["x"] = 1
        name = s.id
    storage.db.close()
    assert name.encode() not in (tmp_path / "s.db").read_bytes()
