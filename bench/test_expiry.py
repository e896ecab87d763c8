"""What do requests feel while the table grows, and while a million sessions expire in one tick?

Each operation is timed on its own, so the clock's two reads (about 60 ns) are part of every figure.
"""

import gc
from time import perf_counter_ns
from typing import Any

import pytest
from conftest import fill

from cysession import Manager, MemoryStorage
from cysession._core import SessionTable

MILLION = 1_000_000


def percentiles(times: list[int]) -> dict[str, float]:
    times.sort()
    return {
        "p50_us": times[len(times) // 2] / 1e3,
        "p99.9_us": times[len(times) * 999 // 1000] / 1e3,
        "worst_us": times[-1] / 1e3,
    }


def report(benchmark: Any, name: str, **figures: float) -> None:
    benchmark.extra_info.update(figures)
    print(f"\n{name}: " + ", ".join(f"{key} {value:,.1f}" for key, value in figures.items()))


@pytest.mark.benchmark(group="latency (see extra info)")
def test_inserts_while_growing_to_a_million(benchmark: Any) -> None:
    table = SessionTable()
    ids = [f"{n:043d}" for n in range(MILLION)]

    def run() -> None:
        add, now, times = table.add, perf_counter_ns, []
        gc.disable()
        for key in ids:
            start = now()
            add(key)
            times.append(now() - start)
        gc.enable()
        report(benchmark, "insert", **percentiles(times))

    benchmark.pedantic(run, rounds=1)


@pytest.mark.benchmark(group="latency (see extra info)")
def test_reads_while_a_million_sessions_expire_in_one_tick(benchmark: Any) -> None:
    """The driver thread sweeps while this thread reads sessions that live on, for as long as anything is due."""
    time = [0.0]
    manager = Manager(ttl=10, storage=MemoryStorage(), clock=lambda: time[0])
    table = manager.storage.table
    assert table is not None
    for n in range(MILLION):
        table.add(f"{n:043d}", None, 10)
    alive = []
    for n in range(10_000):
        session = manager.new()
        session.ttl = 1000
        fill(session, n)
        session.close()
        alive.append(session.id)

    def run() -> None:
        get, now, times = table.get, perf_counter_ns, []
        time[0] = 60.0
        while len(table) > len(alive):
            for key in alive:
                start = now()
                get(key)
                times.append(now() - start)
        report(benchmark, "get during mass expiry", reads=len(times), **percentiles(times))

    benchmark.pedantic(run, rounds=1)
    manager.close()


@pytest.mark.benchmark(group="latency (see extra info)")
@pytest.mark.parametrize("data", [False, True], ids=["no data", "three keys"])
def test_drain_rate(benchmark: Any, data: bool) -> None:
    time = [0.0]
    storage = MemoryStorage()
    manager = Manager(ttl=10, storage=storage, clock=lambda: time[0])
    storage._driver.stop()
    storage.table._wake_on_add(None)
    for n in range(MILLION):
        if data:
            session = manager.new()
            fill(session, n)
            session.close()
        else:
            storage.table.add(f"{n:043d}", None, 10)

    def run() -> None:
        time[0] = 60.0
        start = perf_counter_ns()
        while storage.table.expire(256)[1]:
            pass
        report(benchmark, "drain", sessions_a_second=MILLION / ((perf_counter_ns() - start) / 1e9))

    benchmark.pedantic(run, rounds=1)
    assert len(storage.table) == 0
