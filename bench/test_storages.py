"""What does a request's work on its session cost, on each storage?

The same cycles on all of them over 2,000 sessions, ids in shuffled order: read one key; read one and write another;
make a session. Files lie in memory (tmpfs) and are written with durability "none"; `bench/test_file.py` has the other
levels. The Redis server runs on the same processor, so a round trip is two switches between processes and no sleep.
"""

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from race import Absent, Race, built
from workload import contents, parts, populate

from cysession import FileStorage, Manager, MemoryStorage
from tests.redis.servers import RedisServer

SESSIONS, PART, TTL = 2000, 100, 3600.0
FRESH = itertools.count()  # so that every write changes something
FLOORS = {"dict of dicts": "expiry, locks, copies, commits"}

Cycle = Callable[[list[str]], None]


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as made:
        yield made


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    root = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    yield root
    shutil.rmtree(root)


def redis_storages(server: RedisServer) -> dict[str, Manager]:
    from cysession import RedisHashStorage, RedisStorage

    return {
        "cysession, Redis": Manager(TTL, RedisStorage(server.url, timeout=60.0)),
        "cysession, Redis hashes": Manager(TTL, RedisHashStorage(server.url, timeout=60.0)),
    }


@pytest.fixture(scope="module")
def managers(server: RedisServer, directory: Path) -> Iterator[dict[str, Manager | Absent]]:
    found: dict[str, Manager | Absent] = {
        "cysession, memory": Manager(TTL, MemoryStorage()),
        "cysession, files": Manager(TTL, FileStorage(directory, durability="none", sweep_every=0)),
    }
    on_redis = built(redis_storages, server)
    found |= {"cysession, Redis": on_redis} if isinstance(on_redis, Absent) else on_redis
    yield found
    for manager in found.values():
        if isinstance(manager, Manager):
            manager.close()


@pytest.fixture(scope="module")
def ids(managers: dict[str, Manager | Absent]) -> dict[str, list[str]]:
    return {
        name: populate(manager, SESSIONS)
        for name, manager in managers.items()
        if isinstance(manager, Manager)
    }


# ---- cycles ------------------------------------------------------------------------------------------------


def reads(manager: Manager) -> Cycle:
    def run(part: list[str]) -> None:
        for key in part:
            session = manager.new(key)
            session.get("uid")
            session.close()

    return run


def writes(manager: Manager) -> Cycle:
    def run(part: list[str]) -> None:
        for key in part:
            session = manager.new(key)
            session.get("uid")
            session.set("name", f"user number {next(FRESH):09d}")
            session.close()

    return run


def creates(manager: Manager) -> Cycle:
    def run(part: list[str]) -> None:
        for _ in part:
            session = manager.new()
            session.set_map(contents(next(FRESH)))
            session.close()

    return run


def reads_of_dicts(plain: dict[str, dict[str, str]]) -> Cycle:
    def run(part: list[str]) -> None:
        for key in part:
            plain[key].get("uid")

    return run


def writes_of_dicts(plain: dict[str, dict[str, str]]) -> Cycle:
    def run(part: list[str]) -> None:
        for key in part:
            session = plain[key]
            session.get("uid")
            session["name"] = f"user number {next(FRESH):09d}"

    return run


def creates_of_dicts(plain: dict[str, dict[str, str]]) -> Cycle:
    def run(part: list[str]) -> None:
        for _ in part:
            plain[os.urandom(16).hex()] = contents(next(FRESH))

    return run


CYCLES = {
    "read": (reads, reads_of_dicts),
    "write": (writes, writes_of_dicts),
    "create": (creates, creates_of_dicts),
}


@pytest.mark.parametrize("cycle", CYCLES)
def test_cycle(
    race: Race, managers: dict[str, Manager | Absent], ids: dict[str, list[str]], cycle: str
) -> None:
    ours, of_dicts = CYCLES[cycle]
    keys = ids["cysession, memory"]
    race(
        f"{cycle} cycle",
        {
            "dict of dicts": of_dicts({key: contents(n) for n, key in enumerate(keys)}),
            **{name: made if isinstance(made, Absent) else ours(made) for name, made in managers.items()},
        },
        operations=PART,
        arguments={name: parts(ids.get(name, keys), PART) for name in ("dict of dicts", *managers)},
        seconds=0.7,
        rounds=(10, 1000),
        base="cysession, memory",
        notes=FLOORS,
    )
