"""SessionTable under threads: every history of every key is explained by some order of its operations."""

import random
import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from cysession import Record
from cysession._core import SessionTable
from tests.stress.histories import Op, State, explain

pytestmark = pytest.mark.stress

TTL = 20  # seconds of the table's clock
SPEED = 40_000  # by which it runs faster than ours: a session lives for half a millisecond


@pytest.fixture(autouse=True)
def quick_switches() -> Iterator[None]:
    """With a GIL: give it away often, also between reading the clock and acting on it."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


class Run:
    """Threads that act on a few keys of one table and write down what they did."""

    def __init__(self, seed: int, threads: int, ops: int, keys: int) -> None:
        self.yielding = random.Random(seed)
        self.begin = time.perf_counter_ns()
        self.local = threading.local()
        self.table = SessionTable(TTL, clock=self.clock)
        self.barrier = threading.Barrier(threads + 1)
        self.lines: list[list[Op]] = [[] for _ in range(threads)]
        self.workers = [
            threading.Thread(target=self.work, args=(i, random.Random(f"{seed} {i}"), ops, keys))
            for i in range(threads)
        ]
        self.done = False

    def clock(self) -> float:
        seconds = (time.perf_counter_ns() - self.begin) * SPEED / 1e9
        self.local.now = int(seconds * 1e9)
        if self.yielding.random() < 0.3:
            time.sleep(0)  # let another thread in between a reading of the clock and what is done with it
        return seconds

    def work(self, thread: int, draw: random.Random, ops: int, keys: int) -> None:
        table, line, local = self.table, self.lines[thread], self.local
        known: dict[str, Any] = {}
        self.barrier.wait()
        for n in range(ops):
            key = f"key-{draw.randrange(keys)}"
            name = draw.choice(
                ("get", "get", "get", "peek", "touch", "add", "put", "replace", "replace", "pop")
            )
            fresh = Record.build({"by": thread, "n": n}, 0)
            argument: Any = fresh
            if name == "replace":
                if known.get(key) is None:
                    continue
                argument = known[key], fresh
            op = Op(thread, name, key, argument)
            op.called = time.perf_counter_ns()
            if name in ("get", "peek"):
                op.result = known[key] = getattr(table, name)(key)
            elif name in ("touch", "pop"):
                op.result = getattr(table, name)(key)
            elif name == "replace":
                op.result = table.replace(key, *argument)
            else:
                op.result = getattr(table, name)(key, fresh)
            op.returned = time.perf_counter_ns()
            op.now, op.seen = local.now, (op.returned - self.begin) * SPEED
            line.append(op)

    def sweep(self) -> None:
        self.barrier.wait()
        while not self.done:
            self.table.expire(3)
            len(self.table)
            self.table.stats()

    def histories(self) -> dict[str, list[Op]]:
        sweeper = threading.Thread(target=self.sweep)
        for worker in (*self.workers, sweeper):
            worker.start()
        for worker in self.workers:
            worker.join()
        self.done = True
        sweeper.join()
        self.table._check()
        histories: dict[str, list[Op]] = {}
        for line in self.lines:
            for op in line:
                histories.setdefault(op.key, []).append(op)
        return histories


@pytest.mark.parametrize(
    ("threads", "ops", "keys", "runs"), [(2, 100, 2, 50), (3, 80, 3, 50), (4, 60, 3, 50)]
)
def test_R32_every_history_is_linearizable(threads: int, ops: int, keys: int, runs: int) -> None:
    overlaps = expired = 0
    for seed in range(runs):
        for key, history in Run(seed, threads, ops, keys).histories().items():
            assert explain(history, TTL * 10**9), (key, sorted(history, key=lambda op: op.called))
            for a, b in pairwise(sorted(history, key=lambda op: op.called)):
                overlaps += a.returned > b.called
                expired += a.name == "put" and b.name == "get" and b.result is None
    assert overlaps > 10 * runs, "the threads did not meet: this proves nothing"
    assert expired > runs / 5, "hardly a session ended: this proves little"


# ---- the checker itself ----------------------------------------------------------------------------


def op(thread: int, name: str, called: int, returned: int, result: Any, argument: Any = None) -> Op:
    return Op(thread, name, "k", argument, called, returned, 0, result)


A, B, C = (Record.build({name: 1}, 0) for name in "abc")


@pytest.mark.parametrize(
    "history",
    [
        [op(0, "put", 0, 1, None, A), op(1, "get", 2, 3, A)],
        [op(0, "put", 0, 5, None, A), op(1, "get", 2, 3, None)],
        [op(0, "put", 0, 5, None, A), op(1, "get", 2, 3, A), op(1, "get", 4, 6, A)],
        [op(0, "add", 0, 5, True, A), op(1, "add", 0, 5, False, B), op(2, "pop", 0, 5, True)],
        [op(0, "replace", 0, 9, True, (A, B)), op(1, "put", 0, 1, None, A), op(2, "get", 8, 9, A)],
    ],
)
def test_the_checker_accepts_what_has_an_order(history: list[Op]) -> None:
    assert explain(history, 10**9)


@pytest.mark.parametrize(
    "history",
    [
        [op(0, "put", 0, 1, None, A), op(1, "get", 2, 3, None)],  # a lost write
        [op(0, "put", 0, 1, None, A), op(1, "get", 2, 3, B)],  # out of thin air
        [op(0, "put", 0, 5, None, A), op(1, "get", 1, 2, A), op(2, "get", 3, 4, None)],  # seen, then unseen
        [op(0, "add", 0, 5, True, A), op(1, "add", 0, 5, True, B)],  # two winners
        [op(0, "put", 0, 1, None, A), op(1, "pop", 2, 5, True), op(2, "pop", 2, 5, True)],  # removed twice
        [
            op(0, "put", 0, 1, None, A),
            op(1, "replace", 2, 5, True, (A, B)),
            op(2, "replace", 2, 5, True, (A, C)),
            op(1, "get", 6, 7, B),
        ],  # a lost update
        [op(0, "put", 0, 1, None, A), op(1, "pop", 2, 3, True), op(2, "touch", 4, 5, True)],  # risen again
    ],
)
def test_the_checker_refuses_what_has_none(history: list[Op]) -> None:
    assert not explain(history, 10**9)


def test_the_checker_knows_that_sessions_end() -> None:
    late = op(1, "get", 2, 3, None)
    late.now = 10**9
    assert explain([op(0, "put", 0, 1, None, A), late], 10**9)
    late.now -= 1
    assert not explain([op(0, "put", 0, 1, None, A), late], 10**9)
    late.seen = 10**9
    assert explain([op(0, "put", 0, 1, None, A), late], 10**9)
    assert explain([late], 10**9, State(A, 5))
