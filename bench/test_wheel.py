"""What does each operation of the table and its timer wheel cost, by number of sessions?

Straight calls of the compiled table, ids in shuffled order. A touch only stores a new deadline; what that saves is paid
when the wheel comes to where the session was filed before: "re-file" is one such step. "Expire" is what the sweep pays
to drop one session that is due, its data included.
"""

import random
from collections.abc import Callable

import pytest
from million import COUNT
from race import Race
from workload import LOOP, looking_up, parts

from cysession import Record
from cysession._core import SessionTable

SIZES = sorted({1_000, 10_000, min(100_000, COUNT), COUNT, 5 * COUNT})
TTL = 10.0


class Filled:
    """A table whose clock stands still until it is told to go on."""

    def __init__(self, count: int) -> None:
        self.time = 1000.0
        self.table = SessionTable(TTL, clock=lambda: self.time)
        self.record = Record.build({"uid": "u00000001"}, self.table.now_ns())
        self.ids = [f"{n:043d}" for n in range(count)]
        for key in self.ids:
            self.table.add(key, self.record)
        random.Random(7).shuffle(self.ids)

    def drain(self, budget: int = LOOP) -> int:
        """How many records the wheel dropped with everything that was due."""
        dropped, more = 0, True
        while more:
            count, more = self.table.expire(budget)
            dropped += count
        return dropped


def adding(filled: Filled) -> Callable[[list[str]], None]:
    add, record = filled.table.add, filled.record

    def run(part: list[str]) -> None:
        for key in part:
            add(key, record)

    return run


def putting(filled: Filled) -> Callable[[list[str]], None]:
    put, record = filled.table.put, filled.record

    def run(part: list[str]) -> None:
        for key in part:
            put(key, record)

    return run


def popping_and_adding(filled: Filled) -> Callable[[list[str]], None]:
    pop, add, record = filled.table.pop, filled.table.add, filled.record

    def run(part: list[str]) -> None:
        for key in part:
            pop(key)
            add(key, record)

    return run


@pytest.mark.parametrize("count", SIZES)
def test_operations(race: Race, count: int) -> None:
    filled = Filled(count)
    race(
        f"{count:,} sessions",
        {
            "dict.get": looking_up(dict.fromkeys(filled.ids, filled.record).get),
            "cysession, get": looking_up(filled.table.get),
            "cysession, touch": looking_up(filled.table.touch),
            "cysession, put over an old one": putting(filled),
            "cysession, pop and add again": popping_and_adding(filled),
        },
        arguments=parts(filled.ids),
        seconds=0.25,
        base="dict.get",
        notes={"dict.get": "expiry, locks"},
    )


@pytest.mark.parametrize("count", [1_000, 100_000])
def test_the_wheel(race: Race, count: int) -> None:
    """All sessions are filed under the same tick: in one table all were touched since, in the other none was."""
    touched, due = Filled(count), Filled(count)

    def touch() -> tuple[()]:
        touched.time += 0.4 * TTL
        for key in touched.ids:
            touched.table.touch(key)
        touched.time += 0.4 * TTL  # past the end that they were filed under, and within the new one
        return ()

    def leave() -> tuple[()]:
        for key in due.ids:
            due.table.add(key, Record.build({"uid": key}, due.table.now_ns()))
        due.time += TTL + 2
        return ()

    def refile() -> None:
        assert touched.drain() == 0

    def expire() -> None:
        assert due.drain() == count

    touch()
    due.time += TTL + 2
    due.drain()
    race(
        f"the wheel, {count:,} sessions due at once",
        {"cysession, re-file": refile, "cysession, expire": expire},
        operations=count,
        arguments={"cysession, re-file": touch, "cysession, expire": leave},
        seconds=1.0,
        rounds=(3, 200),
    )
    assert touched.table.stats()["refiled"] >= 3 * count
