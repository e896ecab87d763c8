"""What does a session in a file cost, by durability, next to Django's file sessions and cachelib's FileSystemCache?

The cycles are those of the other benchmarks: three short strings a session, one read, one written. cachelib's cache is
what Flask-Session keeps sessions in; it stores the dict whole, so its cycle is `get` and `set`. Both peers pickle or
sign JSON, and replace files by renaming as we do; neither flushes or locks, so "none" is the level to compare.

The Go original takes, on a machine of this kind, 7.5 us to read and 14.5 us to write a session of 10,000 on tmpfs, and
111 us to write one on ext4 (GoFrame v2.10.2, one goroutine, minima of another run). The bars are 4.5 us and 17.4 us on
tmpfs with durability "none", and five times the speed of either peer. Of cachelib's write cycle that last bar cannot be
met by anything that replaces a file: the system calls alone take a third of its time.

    CYSESSION_BENCH_TMPFS   a directory in memory    (default /dev/shm)
    CYSESSION_BENCH_DISK    a directory on a disk    (default: cysession/ in the user's cache directory)
"""

import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import django.conf
import pytest
from cachelib import FileSystemCache
from conftest import NAME, populate
from django.contrib.sessions.backends.file import SessionStore

from cysession import FileStorage, Manager

OPERATIONS = 200  # a round: few, because one flush of a disk takes as long as a hundred cycles without
TTL = 3600
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "cysession")
PLACES = {
    "tmpfs": Path(os.environ.get("CYSESSION_BENCH_TMPFS", "/dev/shm")),
    "disk": Path(os.environ.get("CYSESSION_BENCH_DISK", CACHE)),
}
COUNTS = {"hot": 1, "10,000 sessions": 10_000}

django.conf.settings.configure(SECRET_KEY="s" * 50, SESSION_COOKIE_AGE=TTL)


class Ours:
    """One level of durability. The sessions are made without flushes."""

    def __init__(self, root: Path, count: int, durability: str) -> None:
        first = Manager(ttl=TTL, storage=FileStorage(root / "ours", durability="none", sweep_every=0))
        self.ids = populate(first, count)
        first.close()
        self.manager = Manager(
            ttl=TTL, storage=FileStorage(root / "ours", durability=durability, sweep_every=0)
        )

    def close(self) -> None:
        self.manager.close()

    def read(self, ids: list[str]) -> None:
        new = self.manager.new
        for key in ids:
            session = new(key)
            session.get("uid")
            session.close()

    def write(self, ids: list[str]) -> None:
        new = self.manager.new
        for key in ids:
            session = new(key)
            session.get("uid")
            session.set("name", NAME)
            session.close()


class Uncached(Ours):
    """Without records kept in memory: what the first request of a process pays."""

    def __init__(self, root: Path, count: int, durability: str) -> None:
        super().__init__(root, count, durability)
        self.manager.close()
        storage = FileStorage(root / "ours", durability=durability, sweep_every=0, cache=0)
        self.manager = Manager(ttl=TTL, storage=storage)


class Django:
    def __init__(self, root: Path, count: int) -> None:
        (root / "django").mkdir()
        django.conf.settings.SESSION_FILE_PATH = str(root / "django")
        if hasattr(SessionStore, "_storage_path"):  # where an earlier benchmark kept them
            del SessionStore._storage_path
        self.ids = []
        for n in range(count):
            session = SessionStore()
            session.update(contents(n))
            session.create()
            self.ids.append(session.session_key)
        random.Random(7).shuffle(self.ids)

    def close(self) -> None:
        pass

    def read(self, ids: list[str]) -> None:
        for key in ids:
            SessionStore(key).get("uid")

    def write(self, ids: list[str]) -> None:
        for key in ids:
            session = SessionStore(key)
            session.get("uid")
            session["name"] = NAME
            session.save()


class Cachelib:
    def __init__(self, root: Path, count: int) -> None:
        # threshold=0: no limit; the default would throw all but 500 sessions away.
        self.cache = FileSystemCache(str(root / "cachelib"), threshold=0, default_timeout=TTL)
        self.ids = [f"{n:043d}" for n in range(count)]
        for n, key in enumerate(self.ids):
            self.cache.set(key, contents(n))
        random.Random(7).shuffle(self.ids)

    def close(self) -> None:
        pass

    def read(self, ids: list[str]) -> None:
        get = self.cache.get
        for key in ids:
            get(key)["uid"]

    def write(self, ids: list[str]) -> None:
        cache = self.cache
        for key in ids:
            session = cache.get(key)
            session["uid"]
            session["name"] = NAME
            cache.set(key, session)


def contents(n: int) -> dict[str, str]:
    return {"uid": f"u{n:08d}", "name": f"user number {n:09d}", "csrf": f"{n:032x}"}


WAYS: dict[str, Any] = {
    "none": lambda root, count: Ours(root, count, "none"),
    "none, nothing kept in memory": lambda root, count: Uncached(root, count, "none"),
    "data": lambda root, count: Ours(root, count, "data"),
    "full": lambda root, count: Ours(root, count, "full"),
    "Django": Django,
    "cachelib": Cachelib,
}


@pytest.fixture(scope="module", params=PLACES)
def place(request: pytest.FixtureRequest) -> Iterator[tuple[str, Path]]:
    parent = PLACES[request.param]
    parent.mkdir(parents=True, exist_ok=True)
    root = Path(tempfile.mkdtemp(prefix="bench-file-", dir=parent))
    try:
        yield request.param, root
    finally:
        shutil.rmtree(root)


@pytest.fixture(scope="module", params=COUNTS)
def count(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=WAYS)
def store(request: pytest.FixtureRequest, place: tuple[str, Path], count: str) -> Iterator[Any]:
    root = place[1] / f"{count} {request.param}"
    root.mkdir()
    store = WAYS[request.param](root, COUNTS[count])
    yield store
    store.close()
    shutil.rmtree(root)


def chunks(ids: list[str]) -> Iterator[list[str]]:
    """The next OPERATIONS ids for ever."""
    if len(ids) < OPERATIONS:
        ids = ids * OPERATIONS
    while True:
        for start in range(0, len(ids), OPERATIONS):
            yield ids[start : start + OPERATIONS]


@pytest.mark.parametrize("cycle", ["read", "write"])
def test_cycle(benchmark: Any, place: tuple[str, Path], count: str, store: Any, cycle: str) -> None:
    flushes = cycle == "write" and store.__class__ is Ours and store.manager.storage._flushes
    benchmark.group = f"{cycle}, {place[0]}, {count}, per {OPERATIONS} operations"
    rounds = 200 if place[0] == "tmpfs" else 5 if flushes else 50
    part = chunks(store.ids)
    benchmark.pedantic(
        getattr(store, cycle),
        setup=lambda: ((next(part),), {}),
        rounds=rounds,
        warmup_rounds=1 if flushes else 50,  # once over all of them
    )
