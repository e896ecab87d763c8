"""How fast is the table beside the maps and caches that one might build sessions on?

Each in its idiomatic best configuration with an idle or a total time to live, except dict and lru-dict, which have
none. The same ids in the same shuffled order, 1,000 of them a round. Only the table begins an entry's idle time anew
at every get; the others' times count from the write, or for all entries alike.
"""

import datetime
from collections.abc import Callable
from typing import Any

import pytest
from million import COUNT
from race import Absent, Race, built
from workload import looking_up, parts, populate

from cysession import Manager, MemoryStorage, Record

TTL = 3600
SIZES = (10_000, max(COUNT, 20_000))
VALUE = object()
NOTES = {
    "dict": "expiry, locks",
    "cachebox TTLCache": "idle time: a get does not begin it anew",
    "lru-dict": "expiry: it only forgets what was not used for longest",
}


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


class Assigned(Map):
    """What is used like a dict."""

    def __init__(self, made: Any, ids: list[str]) -> None:
        self.map = made
        self.get, self.remove = made.get, made.pop
        for key in ids:
            made[key] = VALUE

    def put(self, key: str) -> None:
        self.map[key] = VALUE


def cachebox_map(ids: list[str]) -> Map:
    import cachebox

    return Assigned(cachebox.TTLCache(2 * len(ids), TTL), ids)


def cachetools_map(ids: list[str]) -> Map:
    import cachetools

    return Assigned(cachetools.TTLCache(2 * len(ids), TTL), ids)


def lru_map(ids: list[str]) -> Map:
    import lru

    return Assigned(lru.LRU(2 * len(ids)), ids)


class Moka(Map):
    def __init__(self, ids: list[str]) -> None:
        import moka_py

        self.map = moka_py.Moka(2 * len(ids), ttl=TTL)
        self.get, self.remove = self.map.get, self.map.remove
        for key in ids:
            self.map.set(key, VALUE)

    def put(self, key: str) -> None:
        self.map.set(key, VALUE)


class Theine(Map):
    LIFE = datetime.timedelta(seconds=TTL)

    def __init__(self, ids: list[str]) -> None:
        import theine

        self.map: Any = theine.Cache(2 * len(ids))
        self.get, self.remove = self.map.get, self.map.delete
        for key in ids:
            self.map.set(key, VALUE, self.LIFE)

    def put(self, key: str) -> None:
        self.map.set(key, VALUE, self.LIFE)


KINDS: dict[str, Callable[[list[str]], Map]] = {
    "cysession table": Table,
    "dict": lambda ids: Assigned({}, ids),
    "cachebox TTLCache": cachebox_map,
    "cachetools TTLCache": cachetools_map,
    "lru-dict": lru_map,
    "moka-py": Moka,
    "theine": Theine,
}


@pytest.fixture(scope="module", params=SIZES, ids=lambda n: f"{n:,}")
def ids(request: pytest.FixtureRequest) -> list[str]:
    with Manager(ttl=TTL, storage=MemoryStorage()) as manager:
        return populate(manager, request.param)


@pytest.fixture(scope="module")
def maps(ids: list[str]) -> dict[str, Map | Absent]:
    return {name: built(make, ids) for name, make in KINDS.items()}


def getting(kind: Map) -> Callable[[list[str]], None]:
    return looking_up(kind.get)


def putting(kind: Map) -> Callable[[list[str]], None]:
    return looking_up(kind.put)


def removing_and_putting(kind: Map) -> Callable[[list[str]], None]:
    remove, put = kind.remove, kind.put

    def run(part: list[str]) -> None:
        for key in part:
            remove(key)
            put(key)

    return run


OPERATIONS = {"get": getting, "put": putting, "remove and put": removing_and_putting}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_maps(race: Race, maps: dict[str, Map | Absent], ids: list[str], operation: str) -> None:
    make = OPERATIONS[operation]
    race(
        f"map: {operation}, {len(ids):,} entries",
        {name: made if isinstance(made, Absent) else make(made) for name, made in maps.items()},
        arguments=parts(ids),
        notes=NOTES,
    )
