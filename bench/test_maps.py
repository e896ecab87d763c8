"""How fast is the table beside the maps and caches that one might build sessions on?

Each in its idiomatic best configuration with an idle or a total time to live, except dict and lru-dict, which have
none. The same ids in the same shuffled order, 1,000 of them a round. Only the table begins an entry's idle time anew
at every get; the others' times count from the write, or for all entries alike.
"""

import datetime
from collections.abc import Callable
from typing import Any

import cachebox
import cachetools
import lru
import moka_py
import pytest
import theine
from conftest import LOOP, chunks, populate, rounds

from cysession import Manager, MemoryStorage, Record

TTL = 3600
SIZES = (10_000, 1_000_000)
VALUE = object()


class Map:
    """One kind of map, filled with the ids: its calls as a program would write them."""

    get: Callable[[str], object]
    put: Callable[[str], object]
    remove: Callable[[str], object]


class Table(Map):
    def __init__(self, ids: list[str]) -> None:
        self.table = MemoryStorage().table
        self.record = Record.build({"uid": "u00000001"}, self.table.now_ns())
        self.get, self.remove = self.table.get, self.table.pop
        for key in ids:
            self.table.add(key, self.record)

    def put(self, key: str) -> None:
        self.table.put(key, self.record)


class Dict(Map):
    def __init__(self, ids: list[str]) -> None:
        self.map = dict.fromkeys(ids, VALUE)
        self.get, self.remove = self.map.get, self.map.pop

    def put(self, key: str) -> None:
        self.map[key] = VALUE


class Assigned(Map):
    """A cache that is used like a dict."""

    def __init__(self, cache: Any, ids: list[str]) -> None:
        self.map = cache
        self.get, self.remove = cache.get, cache.pop
        for key in ids:
            cache[key] = VALUE

    def put(self, key: str) -> None:
        self.map[key] = VALUE


class Moka(Map):
    def __init__(self, ids: list[str]) -> None:
        self.map = moka_py.Moka(2 * len(ids), ttl=TTL)
        self.get, self.remove = self.map.get, self.map.remove
        for key in ids:
            self.map.set(key, VALUE)

    def put(self, key: str) -> None:
        self.map.set(key, VALUE)


class Theine(Map):
    LIFE = datetime.timedelta(seconds=TTL)

    def __init__(self, ids: list[str]) -> None:
        self.map: Any = theine.Cache(2 * len(ids))
        self.get, self.remove = self.map.get, self.map.delete
        for key in ids:
            self.map.set(key, VALUE, self.LIFE)

    def put(self, key: str) -> None:
        self.map.set(key, VALUE, self.LIFE)


KINDS: dict[str, Callable[[list[str]], Map]] = {
    "cysession table": Table,
    "dict": Dict,
    "cachebox TTLCache": lambda ids: Assigned(cachebox.TTLCache(2 * len(ids), TTL), ids),
    "cachetools TTLCache": lambda ids: Assigned(cachetools.TTLCache(2 * len(ids), TTL), ids),
    "lru-dict": lambda ids: Assigned(lru.LRU(2 * len(ids)), ids),
    "moka-py": Moka,
    "theine": Theine,
}


@pytest.fixture(scope="module", params=SIZES, ids=lambda n: f"{n:,}")
def ids(request: pytest.FixtureRequest) -> list[str]:
    with Manager(ttl=TTL, storage=MemoryStorage()) as manager:
        return populate(manager, request.param)


@pytest.fixture(scope="module", params=KINDS)
def filled(request: pytest.FixtureRequest, ids: list[str]) -> tuple[str, Map]:
    return request.param, KINDS[request.param](ids)


@pytest.mark.parametrize("operation", ["get", "put", "remove and put"])
def test_map(benchmark: Any, filled: tuple[str, Map], ids: list[str], operation: str) -> None:
    name, kind = filled
    benchmark.group = f"map: {operation}, {len(ids):,} entries, per {LOOP} operations"
    benchmark.name = name
    part = chunks(ids)
    get, put, remove = kind.get, kind.put, kind.remove

    def run_get(chunk: list[str]) -> None:
        for key in chunk:
            get(key)

    def run_put(chunk: list[str]) -> None:
        for key in chunk:
            put(key)

    def run_both(chunk: list[str]) -> None:
        for key in chunk:
            remove(key)
            put(key)

    run = {"get": run_get, "put": run_put, "remove and put": run_both}[operation]
    benchmark.pedantic(run, setup=lambda: ((next(part),), {}), rounds=rounds(ids) // 4, warmup_rounds=5)
