"""Events and counters: what a manager tells about its sessions, and what it never tells."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from cysession import Event, FileStorage, Manager, MemoryStorage, Storage
from cysession.events import EVENTS
from cysession.testing import FakeClock


@pytest.fixture(params=["memory", "file"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    made: Storage
    if request.param == "memory":
        made = MemoryStorage()
    else:
        made = FileStorage(tmp_path / "sessions", durability="none", sweep_every=0)
    yield made
    made.close()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def manager(storage: Storage, clock: FakeClock) -> Manager:
    return Manager(600, storage, clock=clock)


@pytest.fixture
def heard(manager: Manager) -> list[Event]:
    events: list[Event] = []
    for kind in EVENTS:
        manager.on(kind, events.append)
    return events


def stored(manager: Manager) -> str:
    with manager.new() as session:
        session["a"] = 1
        return session.id


def kinds(heard: list[Event]) -> list[str]:
    return [event.kind for event in heard]


def test_a_life_is_told_in_order(manager: Manager, heard: list[Event]) -> None:
    with manager.new() as session:
        session.bind("ann")
    with manager.new(session.id) as session:
        session["a"] = 1
        session.regenerate_id()
    manager.new(session.id).destroy()
    assert kinds(heard) == ["created", "regenerated", "destroyed"]
    assert [event.user for event in heard[:2]] == ["ann", "ann"]


def test_reading_and_writing_tell_nothing(manager: Manager, heard: list[Event]) -> None:
    session_id = stored(manager)
    heard.clear()
    with manager.new(session_id) as session:
        session["b"] = session["a"]
    manager.new().close()
    assert heard == []


def test_an_emptied_session_is_destroyed(manager: Manager, heard: list[Event]) -> None:
    with manager.new(stored(manager)) as session:
        session.remove_all()
    assert kinds(heard) == ["created", "destroyed"]
    manager.new(stored(manager)).destroy()
    assert kinds(heard[2:]) == ["created", "destroyed"]


def test_destroying_nothing_tells_nothing(manager: Manager, heard: list[Event]) -> None:
    manager.new().destroy()
    assert heard == []


@pytest.mark.parametrize("presented", ["guess", "x" * 43, "../../etc/passwd", "a" * 1000])
def test_an_id_that_names_nothing_is_told(manager: Manager, heard: list[Event], presented: str) -> None:
    assert manager.new(presented).is_new
    assert kinds(heard) == ["unknown_id"]
    assert manager.stats()["unknown_id"] == 1


def test_each_revoked_session_is_told(manager: Manager, heard: list[Event]) -> None:
    for _ in range(2):
        with manager.new() as session:
            session.bind("ann")
    manager.revoke("ann")
    assert kinds(heard) == ["created", "created", "revoked", "revoked"]
    assert {event.session for event in heard[:2]} == {event.session for event in heard[2:]}
    assert heard[-1].user == "ann"


def test_what_the_clean_up_removes_has_expired(
    manager: Manager, clock: FakeClock, heard: list[Event]
) -> None:
    stored(manager)
    clock.advance(700)
    storage = manager.storage
    if isinstance(storage, MemoryStorage):
        storage.table.expire()
    else:
        assert isinstance(storage, FileStorage)
        storage.sweep()
    assert kinds(heard) == ["created", "expired"]
    assert heard[0].session == heard[1].session
    assert manager.stats()["expired"] == 1


def test_on_expire_is_called_beside_the_hooks(clock: FakeClock) -> None:
    gone: list[object] = []
    storage = MemoryStorage(on_expire=gone.extend)
    manager = Manager(600, storage, clock=clock)
    heard: list[Event] = []
    manager.on("expired", heard.append)
    session_id = stored(manager)
    clock.advance(700)
    storage.table.expire()
    assert [pair[0] for pair in gone] == [session_id]  # type: ignore[index]
    assert kinds(heard) == ["expired"]


@pytest.mark.parametrize("storage", ["file"], indirect=True)
def test_a_damaged_record_is_told_as_corrupt(
    manager: Manager, heard: list[Event], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    session_id = stored(manager)
    (path,) = (p for p in (tmp_path / "sessions").rglob("*") if len(p.name) == 62)
    path.write_bytes(path.read_bytes()[:-1])
    assert manager.new(session_id).is_new
    assert kinds(heard) == ["created", "corrupt", "unknown_id"]
    assert {event.session for event in heard} == {heard[0].session}
    assert manager.stats()["corrupt"] == 1


def test_no_event_and_no_log_holds_an_id(
    manager: Manager, heard: list[Event], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    @manager.on("created")
    def fail(event: Event) -> None:
        raise RuntimeError("the audit log is full")

    session_id = stored(manager)
    assert session_id not in repr(heard) + caplog.text
    assert len(heard[0].session) == 8


def test_R38_a_hook_that_raises_is_logged_and_undoes_nothing(
    manager: Manager, heard: list[Event], caplog: pytest.LogCaptureFixture
) -> None:
    @manager.on("destroyed")
    def fail(event: Event) -> None:
        raise RuntimeError("the audit log is full")

    later: list[Event] = []
    manager.on("destroyed", later.append)
    session_id = stored(manager)
    manager.new(session_id).destroy()
    assert manager.new(session_id).is_new
    assert "the audit log is full" in caplog.text
    assert kinds(later) == ["destroyed"]


def test_a_hook_finds_the_session_gone_already(manager: Manager) -> None:
    session_id = stored(manager)
    found = []
    manager.on("destroyed", lambda event: found.append(manager.new(session_id).is_new))
    manager.new(session_id).destroy()
    assert found == [True]


def test_wrong_hooks_are_refused(manager: Manager) -> None:
    async def hook(event: Event) -> None: ...

    with pytest.raises(ValueError, match="created, regenerated"):
        manager.on("born", print)
    with pytest.raises(TypeError, match="plain function"):
        manager.on("created", hook)
    with pytest.raises(TypeError, match="plain function"):
        manager.on("created", 7)  # type: ignore[arg-type]


def test_hooks_follow_the_manager_to_another_storage(
    manager: Manager, heard: list[Event], tmp_path: Path
) -> None:
    manager.storage = MemoryStorage()
    stored(manager)
    assert kinds(heard) == ["created"]


def test_the_counters_have_the_documented_keys(manager: Manager) -> None:
    with manager.new(stored(manager)) as session:
        session.regenerate_id()
    manager.new(session.id).destroy()
    stats = manager.stats()
    assert list(stats) == [
        *("created", "destroyed", "regenerated", "unknown_id", "revoked", "expired", "corrupt", "storage")
    ]
    assert (stats["created"], stats["regenerated"], stats["destroyed"]) == (1, 1, 1)
    assert stats["storage"] == manager.storage.stats()


def test_two_managers_of_one_storage_count_for_themselves(manager: Manager, storage: Storage) -> None:
    other = Manager(600, storage)
    stored(manager)
    assert (manager.stats()["created"], other.stats()["created"]) == (1, 0)
