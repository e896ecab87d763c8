"""Threads on one table, one manager, one session: nothing is lost, torn, counted twice or seen half done."""

import asyncio
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from cysession import (
    Delta,
    Manager,
    MemoryStorage,
    Record,
    SessionClosed,
    SessionGone,
    Storage,
    StorageFull,
)
from cysession._core import Numbers, SessionTable
from cysession.testing import FakeClock, FaultyStorage

pytestmark = pytest.mark.stress


@pytest.fixture(autouse=True)
def quick_switches() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(params=[MemoryStorage, lambda: FaultyStorage(MemoryStorage())], ids=["table", "protocol"])
def storage(request: pytest.FixtureRequest) -> Iterator[Storage]:
    storage = request.param()
    yield storage
    storage.close()


def together(*works: Callable[[], object]) -> None:
    """Run each in a thread of its own, all from the same moment on; raise what one of them raised."""
    barrier, errors = threading.Barrier(len(works)), []

    def run(work: Callable[[], object]) -> None:
        barrier.wait()
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


# ---- the table -----------------------------------------------------------------------------------


def test_rows_are_whole_while_others_write() -> None:
    """Every row that an iteration hands out is a session as somebody stored it, under its own id."""

    def write(thread: int) -> None:
        draw = random.Random(thread)
        for n in range(4000):
            i = f"id-{draw.randrange(400)}"
            what = draw.random()
            if what < 0.5:
                table.put(i, Record.build({"id": i, "n": n}, 0), draw.choice((1, 1000)))
            elif what < 0.7:
                table.pop(i)
            elif what < 0.8:
                table.rename(i, f"{i}-{thread}-{n}", draw.choice((0, 50)))
            elif what < 0.9:
                clock.advance(0.01)
            else:
                table.get(i)
        done.append(thread)

    def read() -> None:
        while len(done) < 3:
            for shard in range(64):
                for i, record in table.snapshot(shard):
                    assert record is not None
                    assert i.startswith(record["id"])
            assert 0 <= len(table) <= 12_500
            stats = table.stats()
            assert stats["created"] >= stats["destroyed"]
            table.expire(100)

    done: list[int] = []
    clock = FakeClock(1000)
    table = SessionTable(1000, clock=clock)
    together(*(lambda t=t: write(t) for t in range(3)), read)
    table._check()
    clock.advance(5000)
    while table.expire()[1]:
        pass
    table._check()
    assert len(table) == 0


@pytest.mark.parametrize("threads", [2, 4])
def test_each_session_is_added_popped_and_announced_by_one_thread(threads: int) -> None:
    clock, heard = FakeClock(1000), []
    table = SessionTable(10, clock=clock, on_expire=heard.extend)
    ids = [f"id-{n}" for n in range(2000)]
    added: list[list[str]] = [[] for _ in range(threads)]
    popped: list[list[str]] = [[] for _ in range(threads)]
    together(*(lambda t=t: added[t].extend(i for i in ids if table.add(i)) for t in range(threads)))
    assert sorted(i for line in added for i in line) == sorted(ids)
    assert len(table) == len(ids)
    together(*(lambda t=t: popped[t].extend(i for i in ids[::2] if table.pop(i)) for t in range(threads)))
    assert sorted(i for line in popped for i in line) == sorted(ids[::2])
    clock.advance(100)

    def sweep() -> None:
        while table.expire(7)[1]:
            pass

    together(*(sweep for _ in range(threads)))
    sweep()
    assert sorted(i for i, _ in heard) == sorted(ids[1::2])
    assert len(table) == 0
    table._check()


def test_compare_and_swap_loses_no_step() -> None:
    table = SessionTable(10)
    table.add("counter", Record.build({"n": 0}, 0))

    def count() -> None:
        steps = 0
        while steps < 1500:
            old = table.get("counter")
            assert old is not None
            steps += table.replace("counter", old, Record.build({"n": old["n"] + 1}, 0))

    together(*(count for _ in range(3)))
    assert table.get("counter")["n"] == 4500  # type: ignore[index]


def test_commits_of_all_threads_add_up() -> None:
    table = SessionTable(10)
    base = Record.build({"first": 1}, 0)
    table.add("s", base)

    def commit(thread: int) -> None:
        for n in range(500):
            table.commit("s", base, Delta({f"{thread}": n, f"{thread}-{n % 50}": n}), 10**10)

    together(*(lambda t=t: commit(t) for t in range(4)))
    stored = table.get("s")
    assert stored is not None
    assert len(stored) == 1 + 4 * 51
    assert [stored[f"{t}"] for t in range(4)] == [499] * 4


def test_a_rotation_under_fire_carries_the_last_commit_over() -> None:
    def clock() -> float:
        time.sleep(0)  # lets a commit in between the steps of a rotation
        return 1000.0

    table = SessionTable(10, clock=clock)
    base = Record.build({"n": -1}, 0, birth=9)
    table.add("0", base)
    last, moves = [-1], 300

    def commit() -> None:
        n = 0
        while last[0] < moves:
            for i in range(max(0, last[0]), last[0] + 3):
                with suppress(SessionGone):
                    table.commit(str(i), base, Delta({"n": n}), 10**10)
                    n += 1

    def rotate() -> None:
        try:
            for i in range(moves):
                assert table.rename(str(i), str(i + 1), 5 if i % 2 else 0) is not None
                last[0] = i + 1
        finally:
            last[0] = moves  # whatever happened, the others end

    together(commit, commit, rotate)
    assert table.get(str(moves)) is not None
    assert len(table) == 1
    table._check()


def test_wake_is_called_once_however_many_add_first() -> None:
    rounds = 300
    calls = [0] * rounds
    tables = [SessionTable(10) for _ in range(rounds)]
    for n, table in enumerate(tables):
        table._wake_on_add(lambda n=n: calls.__setitem__(n, calls[n] + 1))
    at = [-1, -1]

    def add(thread: int) -> None:
        for n, table in enumerate(tables):
            at[thread] = n
            while at[1 - thread] < n:  # spin: two threads that wake from a barrier hardly ever meet
                pass
            table.add(f"{thread}")

    together(lambda: add(0), lambda: add(1))
    assert calls == [1] * rounds


def test_max_sessions_holds_under_threads() -> None:
    table = SessionTable(10, max_sessions=100)

    def fill(thread: int) -> None:
        for n in range(200):
            with suppress(StorageFull):
                table.add(f"{thread}-{n}")
            assert len(table) <= 100 + 3  # every thread may have passed the check before another one added
            if n % 3 == 0:
                table.pop(f"{thread}-{n - 1}")

    together(*(lambda t=t: fill(t) for t in range(4)))
    table._check()


# ---- one manager ---------------------------------------------------------------------------------


def test_commits_of_different_keys_from_four_threads_all_survive(storage: Storage) -> None:
    manager = Manager(storage=storage, max_bytes=0)
    with manager.new() as session:
        session["first"] = 1

    def work(thread: int) -> None:
        for n in range(100):
            with manager.new(session.id) as mine:
                mine[f"{thread}-{n}"] = [n]
                mine[f"{thread}"] = mine.get(f"{thread}", 0) + 1

    together(*(lambda t=t: work(t) for t in range(4)))
    data = manager.new(session.id).get_map()
    assert data == {"first": 1} | {f"{t}": 100 for t in range(4)} | {
        f"{t}-{n}": [n] for t in range(4) for n in range(100)
    }


def test_sessions_come_and_go_while_the_manager_is_turned(storage: Storage) -> None:
    """Settings, statistics and other threads' sessions change under way; nobody sees another's data."""
    manager = Manager(storage=storage)
    stop: list[int] = []

    def visit(thread: int) -> None:
        session_id = ""
        for n in range(400):
            with manager.new(session_id) as session:
                assert session.get("owner", thread) == thread
                session["owner"] = thread
                session["path"] = [*session.get("path", [])[-3:], n]
                if n % 50 == 49:
                    session.regenerate_id(delete_old=bool(n % 100 == 99))
                if n % 160 == 159:
                    session.destroy()
            session_id = session.id if session.cookie_state != "drop" else ""
        stop.append(thread)

    def turn() -> None:
        while len(stop) < 3:
            manager.ttl = random.randrange(1000, 2000)
            assert manager.storage is storage
            storage.stats()
            repr(manager)

    together(*(lambda t=t: visit(t) for t in range(3)), turn)


# ---- one session shared by threads ---------------------------------------------------------------


def test_threads_that_share_a_session_lose_no_write_to_a_save(storage: Storage) -> None:
    manager = Manager(storage=storage, max_bytes=0)
    session = manager.new()
    done: list[int] = []

    def write(thread: int) -> None:
        for n in range(300):
            session[f"{thread}-{n}"] = n
            if n % 5 == 0:
                session[f"{thread}-{n}"] = session.pop(f"{thread}-{n}")
        done.append(thread)

    def save() -> None:
        while len(done) < 3:
            session.save()

    together(*(lambda t=t: write(t) for t in range(3)), save)
    session.save()
    assert manager.new(session.id).get_map() == {f"{t}-{n}": n for t in range(3) for n in range(300)}


def test_what_is_set_while_a_save_waits_for_its_storage_is_saved_by_the_next() -> None:
    for name, prepare in (("create", lambda session: None), ("commit", lambda session: session.save())):
        storage = FaultyStorage(MemoryStorage())
        manager = Manager(storage=storage)
        session = manager.new()
        session["early"] = [0]
        prepare(session)
        session["early"] = [1]

        def meanwhile(step: str, _: str, name: str = name, session: Any = session) -> None:
            if step == name and "late" not in session:
                session["late"] = 1
                session["early"] = [2]

        storage.on_step = meanwhile
        session.save()
        assert (session["late"], session["early"]) == (1, [2]), name
        session.save()
        assert manager.new(session.id).get_map() == {"early": [2], "late": 1}, name
        storage.close()


def test_what_a_task_sets_while_another_awaits_the_save_is_saved_by_the_next() -> None:
    class Slow(FaultyStorage):
        async def acreate_record(self, *arguments: Any) -> bool:
            await asyncio.sleep(0.01)
            return await super().acreate_record(*arguments)

        async def acommit_record(self, *arguments: Any) -> Record | None:
            await asyncio.sleep(0.01)
            return await super().acommit_record(*arguments)

    async def story() -> None:
        session = manager.new()
        for n in range(2):
            session[f"early-{n}"] = n
            saving = asyncio.create_task(session.asave())
            await asyncio.sleep(0.002)
            session[f"late-{n}"] = n
            await saving
            assert session.is_dirty
        await session.asave()
        assert manager.new(session.id).get_map() == {"early-0": 0, "late-0": 0, "early-1": 1, "late-1": 1}

    storage = Slow(MemoryStorage())
    manager = Manager(storage=storage)
    asyncio.run(story())
    storage.close()


def test_what_on_expire_sets_on_a_session_being_saved_is_saved_by_the_next() -> None:
    def on_expire(gone: list[Any]) -> None:
        if gone and "late" not in session:
            session["late"] = 1

    clock = FakeClock()
    storage = MemoryStorage(on_expire=on_expire)
    manager = Manager(10, storage, clock=clock)
    session = manager.new()
    for n in range(500):
        storage.table.add(f"old-{n}", None, 10)
    clock.advance(100)
    session["early"] = 1
    session.save()
    assert session.get_map() == {"early": 1, "late": 1}
    session.save()
    assert manager.new(session.id).get_map() == {"early": 1, "late": 1}
    storage.close()


def test_a_shared_session_may_be_ended_by_any_thread(storage: Storage) -> None:
    for seed in range(60):
        manager = Manager(storage=storage)
        session = manager.new()
        session["a"] = [1]
        session.save()

        def use(session: Any = session, seed: int = seed) -> None:
            draw = random.Random(seed)
            with suppress(SessionClosed, SessionGone):
                for n in range(30):
                    session[f"k{n}"] = [n]
                    session.get("a", []).append(n) if draw.random() < 0.5 else session.get_map()
                    len(session), list(session), session.is_dirty, session.cookie_state
                    if n % 7 == 0:
                        session.save()
                    if draw.random() < 0.1:
                        session.discard()

        def end(session: Any = session, seed: int = seed) -> None:
            time.sleep(0.0005 * (seed % 4))
            with suppress(SessionClosed, SessionGone):
                (session.close, session.destroy, session.remove_all, session.regenerate_id)[seed % 4]()

        together(use, use, end)
        with suppress(SessionGone, SessionClosed):
            session.close()
        assert repr(session)
    getattr(storage, "inner", storage).table._check()


# ---- the expiry driver ---------------------------------------------------------------------------


def test_the_driver_expires_without_traffic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cysession.storage.memory.TICK", 0.01)
    heard: list[str] = []
    storage = MemoryStorage(on_expire=lambda gone: heard.extend(i for i, _ in gone))
    begin = time.monotonic()
    manager = Manager(10, storage, clock=lambda: (time.monotonic() - begin) * 200)
    assert not storage._driver.running
    for _ in range(1000):
        with manager.new() as session:
            session["a"] = 1
    assert storage._driver.running
    deadline = time.monotonic() + 10
    while len(heard) < 1000 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(heard) == len(set(heard)) == 1000
    assert len(storage) == 0
    storage.close()
    assert not storage._driver.running


def test_no_number_is_given_out_twice() -> None:
    """Versions in Redis and names of temporary files; also beyond the last of 64 bits."""
    last = 2**63 - 1
    numbers = Numbers(last - 5000)
    taken: list[set[bytes]] = [set() for _ in range(8)]
    start = threading.Barrier(len(taken))

    def take(mine: set[bytes]) -> None:
        start.wait()
        for _ in range(5000):
            mine.add(numbers.take_bytes())

    threads = [threading.Thread(target=take, args=(mine,)) for mine in taken]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    every = set().union(*taken)
    assert len(every) == 8 * 5000
    assert {(last - 5000 + n) % 2**64 for n in range(8 * 5000)} == {
        int.from_bytes(n, "little") for n in every
    }
    assert [Numbers(7).take(), Numbers().take()] == [7, 0]
