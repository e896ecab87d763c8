"""Do threads help?

Two threads on sessions of their own against one thread that does the same: how many times the work of one they do in
the same time, the best of alternating rounds. With a GIL that is about 1. On a free-threaded build the bar is 1.15.
Each thread makes its own loop and its own bound methods: without a GIL a closure's cell has a lock, and two threads
in one loop would wait for each other there.

    make freethreaded ARGS="bench/test_threads.py --benchmark-only -s"    builds such an interpreter once, and runs this
"""

import sys
import threading
import time
from collections.abc import Callable

from race import Race
from workload import Cycle, looking_up, populate, reading, writing

from cysession import Manager

SESSIONS, TURNS, ROUNDS = 10_000, 5, 7
Work = Callable[[], Cycle]


def throughput(make: Work, shares: list[list[str]]) -> float:
    """Sessions a second, all threads together."""

    def turns(share: list[str]) -> None:
        work = make()
        for _ in range(TURNS):
            work(share)

    threads = [threading.Thread(target=turns, args=(share,)) for share in shares]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(map(len, shares)) * TURNS / (time.perf_counter() - start)


def gain(make: Work, ids: list[str]) -> dict[str, float]:
    one = two = 0.0
    for _ in range(ROUNDS):
        one = max(one, throughput(make, [ids[:SESSIONS]]))
        two = max(two, throughput(make, [ids[:SESSIONS], ids[SESSIONS:]]))
    return {"two threads to one": two / one, "one thread, a second": one, "two threads, a second": two}


def test_two_threads(race: Race, manager: Manager) -> None:
    ids = populate(manager, 2 * SESSIONS)
    table = manager.storage.table
    assert table is not None
    with_gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    plain = dict.fromkeys(ids, 1)
    contenders: dict[str, Work] = {
        "cysession, table get": lambda: looking_up(table.get),
        "cysession, read cycle": lambda: reading(manager),
        "cysession, write cycle": lambda: writing(manager),
        "dict.get": lambda: looking_up(plain.get),
    }
    race.facts(
        f"two threads, {'with' if with_gil else 'without'} a GIL",
        {name: lambda make=make: gain(make, ids) for name, make in contenders.items()},  # type: ignore[misc]
    )
