"""A child process that holds many sessions in one way and says what that costs: `measured(way, count)`.

Each figure comes from a process of its own, so that nobody's memory is another's. The ways are what a program would
write without us: dicts of dicts, in a plain dict or in a cache with a time to live.
"""

import functools
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

COUNT = int(1_000_000 * min(1.0, float(os.environ.get("CYSESSION_BENCH_TIME", "1"))))
TTL = 3600


def three_keys() -> tuple[object, Callable[[int], None]]:
    from workload import fill

    from cysession import Manager, MemoryStorage

    manager = Manager(ttl=TTL, storage=MemoryStorage())

    def add(n: int) -> None:
        with manager.new() as session:
            fill(session, n)

    return manager, add


def no_data() -> tuple[object, Callable[[int], None]]:
    from cysession import Manager, MemoryStorage

    manager = Manager(ttl=TTL, storage=MemoryStorage())
    table = manager.storage.table
    assert table is not None
    return manager, lambda n: table.add(f"{n:043d}") and None


def assigned(cache: Any) -> tuple[object, Callable[[int], None]]:
    """Dicts of three keys in what is used like a dict."""
    from workload import contents

    def add(n: int) -> None:
        cache[f"{n:043d}"] = contents(n)

    return cache, add


def in_cachebox() -> tuple[object, Callable[[int], None]]:
    import cachebox

    return assigned(cachebox.TTLCache(2 * COUNT, TTL))


def in_cachetools() -> tuple[object, Callable[[int], None]]:
    import cachetools

    return assigned(cachetools.TTLCache(2 * COUNT, TTL))


def in_lru() -> tuple[object, Callable[[int], None]]:
    import lru

    return assigned(lru.LRU(2 * COUNT))


def in_moka() -> tuple[object, Callable[[int], None]]:
    import moka_py
    from workload import contents

    cache = moka_py.Moka(2 * COUNT, ttl=TTL)
    return cache, lambda n: cache.set(f"{n:043d}", contents(n))


def in_theine() -> tuple[object, Callable[[int], None]]:
    import datetime

    import theine
    from workload import contents

    cache: Any = theine.Cache(2 * COUNT)
    life = datetime.timedelta(seconds=TTL)
    return cache, lambda n: cache.set(f"{n:043d}", contents(n), life)


WAYS: dict[str, Callable[[], tuple[object, Callable[[int], None]]]] = {
    "cysession, three keys": three_keys,
    "cysession, no data": no_data,
    "dict of dicts": lambda: assigned({}),
    "cachebox TTLCache of dicts": in_cachebox,
    "cachetools TTLCache of dicts": in_cachetools,
    "lru-dict of dicts": in_lru,
    "moka-py of dicts": in_moka,
    "theine of dicts": in_theine,
}
NOTES = {
    "dict of dicts": "expiry, locks",
    "lru-dict of dicts": "expiry",
}


@functools.cache
def measured(way: str, count: int = COUNT) -> dict[str, float]:
    """What the child says. Raises ImportError where the peer is not installed."""
    here = Path(__file__)
    done = subprocess.run(
        [sys.executable, str(here), way, str(count)],
        env={**os.environ, "PYTHONPATH": f"{here.parent}:{here.parents[1]}"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        if last.startswith("ModuleNotFoundError"):
            raise ImportError(last, name=last.split("'")[1])
        raise RuntimeError(done.stderr)
    found: dict[str, float] = json.loads(done.stdout)
    return found


# ---- in the child ------------------------------------------------------------------------------------------


class Collections:
    """The time that the garbage collector takes by itself."""

    def __init__(self) -> None:
        self.total = self.worst = 0.0
        self._begun = 0.0

    def __call__(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._begun = time.perf_counter()
        else:
            took = time.perf_counter() - self._begun
            self.total += took
            self.worst = max(self.worst, took)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main(way: str, count: int) -> None:
    kept, add = WAYS[way]()
    add(0)
    gc.collect()
    before, collections = resident(), Collections()
    gc.callbacks.append(collections)
    for n in range(1, count):
        add(n)
    gc.callbacks.remove(collections)
    grown = resident() - before
    pauses = []
    for _ in range(5):
        start = time.perf_counter()
        gc.collect()
        pauses.append(time.perf_counter() - start)
    assert kept is not None
    print(
        json.dumps(
            {
                "bytes": grown / count,
                "full_ms": 1e3 * min(pauses),
                "filling_ms": 1e3 * collections.total,
                "worst_ms": 1e3 * collections.worst,
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
