"""Shared by all benchmarks. Read ratios within one run, never figures across runs or machines.

Each benchmark times a loop over `LOOP` operations, so that the harness's own call costs nothing next to them; the
reported time divided by `LOOP` is one operation. All loops pay the same for the loop itself, `dict.get` included.
"""

import random
from collections.abc import Iterator

import pytest

from cysession import Manager, MemoryStorage, Session

LOOP = 1000
NAME = "another name of 21 ch"


def fill(session: Session, n: int) -> None:
    """The workload of the Go figures: three short string keys, every session with strings of its own."""
    session.set("uid", f"u{n:08d}")
    session.set("name", f"user number {n:09d}")
    session.set("csrf", f"{n:032x}")


def populate(manager: Manager, count: int) -> list[str]:
    """`count` stored sessions; their ids in an order that no cache can foresee."""
    ids = []
    for n in range(count):
        session = manager.new()
        fill(session, n)
        session.close()
        ids.append(session.id)
    random.Random(7).shuffle(ids)
    return ids


def chunks(ids: list[str]) -> Iterator[list[str]]:
    """The next LOOP ids for ever, so that every round meets sessions that have not been touched lately."""
    while True:
        for start in range(0, len(ids), LOOP):
            yield ids[start : start + LOOP]


def rounds(ids: list[str]) -> int:
    """Enough to meet every id a few times."""
    return max(200, min(3 * len(ids) // LOOP, 2000))


@pytest.fixture
def manager() -> Manager:
    return Manager(ttl=3600, storage=MemoryStorage())


@pytest.fixture
def one_id(manager: Manager) -> str:
    return populate(manager, 1)[0]
