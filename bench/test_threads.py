"""Do threads help? Two threads on sessions of their own against one thread doing the same, cycles a second.

Only a free-threaded build can gain; with a GIL the ratio is about 1. Run it there with the interpreter of
`ci/cpython.sh 3.13t`.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from conftest import NAME, populate

from cysession import Manager

SESSIONS, TURNS = 10_000, 10


def read(manager: Manager, ids: list[str]) -> None:
    new = manager.new
    for _ in range(TURNS):
        for key in ids:
            session = new(key)
            session.get("uid")
            session.close()


def write(manager: Manager, ids: list[str]) -> None:
    new = manager.new
    for _ in range(TURNS):
        for key in ids:
            session = new(key)
            session.get("uid")
            session.set("name", NAME)
            session.close()


def lookup(manager: Manager, ids: list[str]) -> None:
    table = manager.storage.table
    assert table is not None
    get = table.get
    for _ in range(TURNS):
        for key in ids:
            get(key)


@pytest.mark.benchmark(group="two threads against one (see extra info: ratio of throughputs)")
@pytest.mark.parametrize("work", [lookup, read, write], ids=lambda f: f.__name__)
def test_two_threads(benchmark: Any, manager: Manager, work: Callable[[Manager, list[str]], None]) -> None:
    ids = populate(manager, 2 * SESSIONS)

    def throughput(count: int) -> float:
        threads = [
            threading.Thread(target=work, args=(manager, ids[n * SESSIONS : (n + 1) * SESSIONS]))
            for n in range(count)
        ]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return count * SESSIONS * TURNS / (time.perf_counter() - start)

    def run() -> None:
        ratio = max(throughput(2) for _ in range(5)) / max(throughput(1) for _ in range(5))
        benchmark.extra_info["ratio"] = ratio
        print(f"\n{work.__name__}: two threads do {ratio:.2f} times the work of one")

    benchmark.pedantic(run, rounds=1)
