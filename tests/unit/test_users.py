"""Whose sessions they are: bind, sessions_of, revoke, max_per_user, on three kinds of storage.

Security: S8 (end one, all or the other sessions of a user), R1 (a revoked session is not written back).
"""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cysession import FileStorage, Manager, MemoryStorage, SessionGone, Storage
from cysession.storage import users
from cysession.testing import FakeClock
from examples.custom_storage import SqliteStorage


class Sqlite(SqliteStorage):
    def now(self) -> float:
        return self.now_ns() / 1e9


@pytest.fixture(params=["memory", "file", "custom"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    made: Storage
    if request.param == "memory":
        made = MemoryStorage()
    elif request.param == "file":
        made = FileStorage(tmp_path / "sessions", durability="none", sweep_every=0)
    else:
        made = Sqlite(str(tmp_path / "sessions.db"))
    yield made
    made.close()
    if isinstance(made, SqliteStorage):
        made.db.close()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def manager(storage: Storage, clock: FakeClock) -> Manager:
    return Manager(600, storage, clock=clock)


def log_in(manager: Manager, user: str, **data: object) -> str:
    with manager.new() as session:
        session.bind(user)
        session.set_map(data)
        return session.id


def names(manager: Manager, user: str) -> list[object]:
    return [info.data.get("device") for info in manager.sessions_of(user)]


def test_the_sessions_of_a_user_are_listed_oldest_first(manager: Manager, clock: FakeClock) -> None:
    for device in ("phone", "laptop", "tablet"):
        log_in(manager, "ann", device=device)
        clock.advance(1)
    log_in(manager, "bob", device="desk")
    assert names(manager, "ann") == ["phone", "laptop", "tablet"]
    assert names(manager, "bob") == ["desk"]
    assert names(manager, "nobody") == []


def test_a_list_of_sessions_says_when_each_began_and_never_its_id(manager: Manager, clock: FakeClock) -> None:
    session_id = log_in(manager, "ann")
    (info,) = manager.sessions_of("ann")
    assert info.created_at == pytest.approx(clock())
    assert session_id not in repr(info)
    with manager.new(session_id) as session:
        assert session.handle == info.handle
        session.regenerate_id()
        assert session.handle == info.handle


def test_looking_at_a_list_does_not_keep_the_sessions_alive(manager: Manager, clock: FakeClock) -> None:
    session_id = log_in(manager, "ann")
    clock.advance(599)
    assert len(manager.sessions_of("ann")) == 1
    clock.advance(2)
    assert manager.sessions_of("ann") == []
    assert manager.new(session_id).is_new


def test_S8_revoking_a_user_ends_all_sessions_but_the_one_to_keep(manager: Manager) -> None:
    ids = [log_in(manager, "ann", n=n) for n in range(4)]
    other = log_in(manager, "bob")
    keep = manager.new(ids[2])
    assert manager.revoke("ann", keep=keep) == 3
    assert [manager.new(i).is_new for i in ids] == [True, True, False, True]
    assert not manager.new(other).is_new
    assert manager.revoke("ann") == 1
    assert manager.revoke("ann") == 0


def test_one_session_is_revoked_by_its_handle(manager: Manager, clock: FakeClock) -> None:
    ids = []
    for n in range(3):
        ids.append(log_in(manager, "ann", n=n))
        clock.advance(1)
    handles = [info.handle for info in manager.sessions_of("ann")]
    assert manager.revoke("bob", handles[0]) == 0  # a handle alone is no key to another user's session
    assert manager.revoke("ann", handles[1], "0" * 16) == 1
    assert [manager.new(i).is_new for i in ids] == [False, True, False]


def test_R1_a_revoked_session_in_the_middle_of_a_request_is_not_written_back(manager: Manager) -> None:
    session = manager.new(log_in(manager, "ann", cart=[]))
    session["cart"].append("book")
    assert manager.revoke("ann") == 1
    with pytest.raises(SessionGone):
        session.save()
    assert manager.sessions_of("ann") == []


@pytest.mark.parametrize("delete_old", [True, False])
def test_a_rotated_session_is_still_its_users(manager: Manager, delete_old: bool) -> None:
    session = manager.new(log_in(manager, "ann"))
    for _ in range(3):
        session.regenerate_id(delete_old)
    session.close()
    assert len(manager.sessions_of("ann")) == 1
    assert manager.revoke("ann") == 1
    assert manager.new(session.id).is_new


def test_a_session_bound_to_another_user_is_no_longer_the_first_ones(manager: Manager) -> None:
    session_id = log_in(manager, "ann")
    with manager.new(session_id) as session:
        session.bind("bob")
    assert manager.sessions_of("ann") == []
    assert manager.revoke("ann") == 0
    with manager.new(session_id) as session:
        assert session.user == "bob"
        session.bind(None)
        session["kept"] = True
    assert manager.sessions_of("bob") == []
    assert manager.new(session_id)["kept"] is True


def test_a_destroyed_or_emptied_session_leaves_the_list(manager: Manager) -> None:
    manager.new(log_in(manager, "ann")).destroy()
    with manager.new(log_in(manager, "ann")) as session:
        session.remove_all()
    assert manager.sessions_of("ann") == []


def test_the_limit_revokes_the_oldest(storage: Storage, clock: FakeClock) -> None:
    manager = Manager(600, storage, clock=clock, max_per_user=2)
    for device in ("phone", "laptop", "tablet", "watch"):
        log_in(manager, "ann", device=device)
        clock.advance(1)
    assert names(manager, "ann") == ["tablet", "watch"]
    assert manager.stats()["revoked"] == 2


def test_the_limit_never_revokes_the_session_that_was_just_bound(storage: Storage, clock: FakeClock) -> None:
    manager = Manager(600, storage, clock=clock, max_per_user=1)
    with manager.new() as early:
        early["device"] = "early"
    clock.advance(1)
    log_in(manager, "ann", device="late")
    with manager.new(early.id) as again:
        again.bind("ann")
    assert names(manager, "ann") == ["early"]


def test_a_bound_session_that_is_used_stays_in_the_index(manager: Manager, clock: FakeClock) -> None:
    session_id = log_in(manager, "ann")
    for _ in range(30):
        clock.advance(300)
        with manager.new(session_id) as session:
            session.get("anything")
    assert len(manager.sessions_of("ann")) == 1


def test_entries_of_dead_sessions_go_from_the_index(storage: Storage, clock: FakeClock) -> None:
    manager = Manager(600, storage, clock=clock)
    for _ in range(20):
        log_in(manager, "ann")
    clock.advance(700)
    log_in(manager, "ann")
    manager.sessions_of("ann")
    if isinstance(storage, MemoryStorage):
        storage._sweep()
        assert len(storage._users["ann"]) == 1
        clock.advance(700)
        storage._sweep()
        assert storage._users == {}
    else:
        index = storage.peek_record(users.index_name("ann"), 10**12)
        assert index is not None and len(index) == 1


def test_the_index_holds_no_id_and_is_no_session(storage: Storage, clock: FakeClock, tmp_path: Path) -> None:
    session_id = log_in(Manager(600, storage, clock=clock), "ann")
    if not isinstance(storage, MemoryStorage):
        stored = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
        assert session_id.encode() not in stored
    if isinstance(storage, MemoryStorage | FileStorage):
        assert len(storage) == 1
    name = users.index_name("ann")
    assert Manager(600, storage).new(name).is_new  # nobody can present it


@pytest.mark.parametrize("user", ["", 7, b"ann", True])
def test_a_user_is_a_str(manager: Manager, user: object) -> None:
    with pytest.raises(TypeError, match=r"str\(user.id\)"):
        manager.new().bind(user)  # type: ignore[arg-type]


def test_the_async_twins_do_the_same(storage: Storage, clock: FakeClock) -> None:
    manager = Manager(600, storage, clock=clock, max_per_user=2)

    async def visit() -> None:
        ids = []
        for n in range(3):
            async with manager.new() as session:
                session["n"] = n
                session.bind("ann")
                ids.append(session.id)
            clock.advance(1)
        assert [info.data["n"] for info in await manager.asessions_of("ann")] == [1, 2]
        async with manager.new(ids[2]) as session:
            await session.aload()
            await session.aregenerate_id()
        assert await manager.arevoke("ann", keep=manager.new(session.id)) == 1
        assert [info.data["n"] for info in await manager.asessions_of("ann")] == [2]
        assert await manager.arevoke("ann") == 1
        assert await manager.asessions_of("ann") == []

    asyncio.run(visit())


def when_asked(storage: Storage, method: str, act: Callable[[], object]) -> None:
    """Run `act` once, right after the next call of a method of the storage."""
    plain = getattr(storage, method)

    def wrapped(*args: object) -> object:
        delattr(storage, method)
        answer = plain(*args)
        act()
        return answer

    setattr(storage, method, wrapped)


@pytest.mark.parametrize("storage", ["file", "custom"], indirect=True)
@pytest.mark.parametrize("delete_old", [True, False])
def test_a_rotation_while_the_index_is_read_is_not_missed(
    manager: Manager, storage: Storage, delete_old: bool
) -> None:
    session = manager.new(log_in(manager, "ann"))
    session.load()
    when_asked(storage, "peek_record", lambda: session.regenerate_id(delete_old))
    assert manager.revoke("ann") == 1
    assert manager.new(session.id).is_new


@pytest.mark.parametrize("storage", ["file", "custom"], indirect=True)
def test_a_crash_between_index_and_record_leaves_an_entry_and_no_session(
    manager: Manager, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bool:
        raise OSError("power cut")

    session = manager.new()
    session.bind("ann")
    plain = storage.create_record
    monkeypatch.setattr(
        storage, "create_record", lambda name, *rest: plain(name, *rest) if users.is_index(name) else fail()
    )
    with pytest.raises(OSError, match="power cut"):
        session.save()
    assert manager.sessions_of("ann") == []
