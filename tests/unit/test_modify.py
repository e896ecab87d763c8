"""session.modify: an atomic read-modify-write of one key, on every kind of storage."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cysession import (
    FileStorage,
    Manager,
    MemoryStorage,
    NotSerializable,
    SessionClosed,
    SessionGone,
    Storage,
)
from examples.custom_storage import SqliteStorage


@pytest.fixture(params=["memory", "file", "custom"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    storage: Storage
    if request.param == "memory":
        storage = MemoryStorage()
    elif request.param == "file":
        storage = FileStorage(tmp_path / "sessions", durability="none", sweep_every=0)
    else:
        storage = SqliteStorage(str(tmp_path / "sessions.db"))
    with Manager(600, storage) as made:
        yield made
    if isinstance(storage, SqliteStorage):
        storage.db.close()


def stored(manager: Manager, **data: object) -> str:
    with manager.new() as session:
        session.set_map(data)
        return session.id


def add_one(value: int) -> int:
    return value + 1


def test_the_new_value_is_returned_seen_and_stored(manager: Manager) -> None:
    session_id = stored(manager, hits=1)
    session = manager.new(session_id)
    assert session.modify("hits", add_one) == 2
    assert session["hits"] == 2
    assert manager.new(session_id)["hits"] == 2
    assert not session.is_dirty


def test_it_works_on_what_is_stored_now_not_on_the_snapshot(manager: Manager) -> None:
    session_id = stored(manager, hits=0)
    early = manager.new(session_id)
    assert early["hits"] == 0
    for _ in range(3):
        manager.new(session_id).modify("hits", add_one)
    assert early.modify("hits", add_one) == 4


def test_a_key_that_is_not_set_begins_with_the_default(manager: Manager) -> None:
    session = manager.new(stored(manager, a=1))
    assert session.modify("cart", lambda cart: [*cart, "book"], []) == ["book"]
    assert session.modify("cart", lambda cart: [*cart, "pen"], []) == ["book", "pen"]
    assert session.modify("seen", lambda value: value is None) is True


def test_a_new_session_is_created_by_it(manager: Manager) -> None:
    session = manager.new()
    assert session.modify("hits", add_one, 0) == 1
    assert manager.new(session.id).get_map() == {"hits": 1}


def test_pending_changes_are_saved_before(manager: Manager) -> None:
    session_id = stored(manager, hits=1)
    session = manager.new(session_id)
    session["name"] = "ann"
    session["hits"] = 10
    assert session.modify("hits", add_one) == 11
    assert manager.new(session_id).get_map() == {"hits": 11, "name": "ann"}


def test_a_container_lent_before_is_the_callers_own_afterwards(manager: Manager) -> None:
    session = manager.new(stored(manager, cart=["book"]))
    lent = session["cart"]
    assert session.modify("cart", lambda cart: [*cart, "pen"]) == ["book", "pen"]
    lent.append("lost")
    session.save()
    assert manager.new(session.id)["cart"] == ["book", "pen"]


def test_a_container_that_it_returns_belongs_to_the_session(manager: Manager) -> None:
    session = manager.new(stored(manager, cart=[]))
    session.modify("cart", lambda cart: [*cart, "book"]).append("pen")
    session.save()
    assert manager.new(session.id)["cart"] == ["book", "pen"]


def test_R38_what_the_function_raises_leaves_everything_as_it_was(manager: Manager) -> None:
    session_id = stored(manager, hits=1)
    session = manager.new(session_id)
    with pytest.raises(ZeroDivisionError):
        session.modify("hits", lambda value: value // 0)
    with pytest.raises(NotSerializable):
        session.modify("hits", lambda value: object())
    assert manager.new(session_id)["hits"] == 1
    assert session.modify("hits", add_one) == 2


def test_a_destroyed_session_is_not_brought_back(manager: Manager) -> None:
    session_id = stored(manager, hits=1)
    session = manager.new(session_id)
    session.load()
    manager.new(session_id).destroy()
    with pytest.raises(SessionGone):
        session.modify("hits", add_one)
    assert manager.new(session_id).is_new


def test_wrong_arguments_are_refused(manager: Manager) -> None:
    session = manager.new(stored(manager, hits=1))
    with pytest.raises(TypeError, match="callable"):
        session.modify("hits", 1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="str"):
        session.modify(1, add_one)  # type: ignore[arg-type]
    session.close()
    with pytest.raises(SessionClosed):
        session.modify("hits", add_one)


def test_no_count_is_lost_between_threads(manager: Manager) -> None:
    session_id = stored(manager, hits=0)

    def count() -> None:
        for _ in range(100):
            manager.new(session_id).modify("hits", add_one)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert manager.new(session_id)["hits"] == 400


@pytest.mark.parametrize("manager", ["memory"], indirect=True)  # the others hold the record's lock meanwhile
def test_it_runs_again_when_somebody_comes_between(manager: Manager) -> None:
    session_id = stored(manager, hits=0)
    calls = []

    def slow(value: int) -> int:
        calls.append(value)
        if len(calls) == 1:
            manager.new(session_id).modify("hits", add_one)
        return value + 10

    assert manager.new(session_id).modify("hits", slow) == 11
    assert calls == [0, 1]


def test_two_who_create_the_session_of_a_given_id_both_count(manager: Manager) -> None:
    first, second = manager.new(), manager.new()
    for session in (first, second):
        session.set_id("a-service-account")
        session.load()
    assert first.modify("hits", add_one, 0) == 1
    assert second.modify("hits", add_one, 0) == 2


def test_awaited_it_does_the_same(manager: Manager) -> None:
    async def visit() -> None:
        session = manager.new()
        assert await session.amodify("hits", add_one, 0) == 1
        session["name"] = "ann"
        assert await session.amodify("hits", add_one) == 2
        again = manager.new(session.id)
        assert await again.amodify("hits", add_one) == 3
        assert again.get_map() == {"hits": 3, "name": "ann"}
        await again.adestroy()
        with pytest.raises(SessionGone):
            await session.amodify("hits", add_one)

    asyncio.run(visit())
