"""What remains when memory runs out in the middle of an operation: each allocation of it fails once, in turn.

Security: R35. The operation raises MemoryError or is done, the table is whole, the session holds the state before or
after, and the same operation works when there is memory again.
"""

import gc
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from cysession import Manager, MemoryStorage, Session

pytestmark = pytest.mark.skipif(
    not getattr(sys, "_is_gil_enabled", lambda: True)(),
    reason="without a GIL objects come from another allocator",
)

LONG = "x" * 2000
BEFORE: dict[str, Any] = {"n": 1, "name": "ann", "cart": [1, {"sku": "a"}], "long": LONG}


@pytest.fixture
def manager() -> Iterator[Manager]:
    storage = MemoryStorage()
    storage.table._wake_on_add(None)  # no other thread may sweep it meanwhile
    with Manager(600, storage) as made:
        yield made


def set_one(session: Session) -> None:
    session["n"] = 2
    session.save()


def set_many(session: Session) -> None:
    session.set_map({f"key {n}": [n, str(n)] for n in range(20)})
    session.save()


def change_in_place(session: Session) -> None:
    session["cart"].append(2)
    session.save()


def remove_one(session: Session) -> None:
    session.remove("long", "name")
    session.save()


def read_all(session: Session) -> None:
    session.get_map()
    session.close()


def one_more(n: int) -> int:
    return n + 1


def add_up(session: Session) -> None:
    session.modify("n", one_more)  # no lambda: CPython 3.12 drops its code twice where there is no memory


def rotate(session: Session) -> None:
    session.regenerate_id()


def rotate_with_grace(session: Session) -> None:
    session.regenerate_id(delete_old=False)


def bind(session: Session) -> None:
    session.bind("ann")
    session.save()


def destroy(session: Session) -> None:
    session.destroy()


OPERATIONS = [
    *(set_one, set_many, change_in_place, remove_one, read_all, add_up),
    *(rotate, rotate_with_grace, bind, destroy),
]


def state(manager: Manager, *ids: str) -> dict[str, Any] | None:
    """What is stored under whichever of the ids lives."""
    for session_id in ids:
        session = manager.new(session_id)
        if not session.is_new:
            return session.get_map()
    return None


def outcome(manager: Manager, operation: Callable[[Session], None]) -> dict[str, Any] | None:
    session = stored(manager)
    operation(session)
    return state(manager, session.id)


def stored(manager: Manager) -> Session:
    with manager.new() as session:
        session.set_map(BEFORE)
    return manager.new(session.id)


@pytest.mark.parametrize("count", [1, 3, 1_000_000], ids=["one", "three", "all from there"])
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda f: f.__name__)
def test_R35_an_operation_without_memory_is_done_or_not_done(
    probe: ModuleType, manager: Manager, operation: Callable[[Session], None], count: int
) -> None:
    table = manager.storage.table
    assert table is not None
    after = outcome(manager, operation)
    for allocation in range(2000):
        session = stored(manager)
        presented = session.id
        gc.disable()
        error, failed = probe.without_memory(lambda s=session: operation(s), allocation, count)
        gc.enable()
        assert error is None or isinstance(error, MemoryError)
        table._check()
        assert state(manager, presented, session.id) in (BEFORE, after)
        if error is not None:
            again = manager.new(presented if manager.storage.table.get(presented) else session.id)
            if not again.is_new:
                operation(again)
                table._check()
        if not failed:
            return
    pytest.fail("the operation still allocates after 2000 allocations")


@pytest.mark.parametrize("count", [1, 1_000_000], ids=["one", "all from there"])
def test_R35_a_session_is_created_whole_or_not_at_all(
    probe: ModuleType, manager: Manager, count: int
) -> None:
    table = manager.storage.table
    assert table is not None

    def create(made: list[Session]) -> None:
        session = manager.new()
        made.append(session)
        session.set_map(BEFORE)
        session.close()

    for allocation in range(2000):
        table.clear()
        made: list[Session] = []
        error, failed = probe.without_memory(lambda made=made: create(made), allocation, count)
        assert error is None or isinstance(error, MemoryError)
        table._check()
        if error is None or len(table):  # memory may run out right after the session was stored
            assert len(table) == 1
            assert state(manager, made[0].id) == BEFORE
        if not failed:
            return
    pytest.fail("creating a session still allocates after 2000 allocations")
