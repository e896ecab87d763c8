"""What does a session in a file cost, by durability, next to Django's file sessions and cachelib's FileSystemCache?

The cycles are those of the other benchmarks: three short strings a session, one read, one written. cachelib's cache is
what Flask-Session keeps sessions in; it stores the dict whole, so its cycle is `get` and `set`. Both peers pickle or
sign JSON, and replace files by renaming as we do; neither flushes or locks, so "none" is the level to compare. Every
contender has read every session once before the clock runs; what the first read of a process costs is the row of the
storage that keeps nothing in memory.

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

import pytest
from race import Absent, Race, built
from workload import NAME, contents, parts, populate

from cysession import FileStorage, Manager

OPERATIONS = 200  # a round
FEW = 10  # where each is flushed to a disk, which takes as long as a hundred without
TTL = 3600
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "cysession")
PLACES = {
    "tmpfs": Path(os.environ.get("CYSESSION_BENCH_TMPFS", "/dev/shm")),
    "disk": Path(os.environ.get("CYSESSION_BENCH_DISK", CACHE)),
}
COUNTS = {"hot": 1, "10,000 sessions": 10_000}


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
        from django.conf import settings
        from django.contrib.sessions.backends.file import SessionStore

        if not settings.configured:
            settings.configure(SECRET_KEY="s" * 50)
        (root / "django").mkdir()
        settings.SESSION_COOKIE_AGE, settings.SESSION_FILE_PATH = TTL, str(root / "django")
        # A class of its own: each remembers where the first of its sessions was kept.
        self.made = type("SessionStore", (SessionStore,), {})
        self.ids = []
        for n in range(count):
            session = self.made()
            session.update(contents(n))
            session.create()
            self.ids.append(session.session_key)
        random.Random(7).shuffle(self.ids)

    def close(self) -> None:
        pass

    def read(self, ids: list[str]) -> None:
        for key in ids:
            self.made(key).get("uid")

    def write(self, ids: list[str]) -> None:
        for key in ids:
            session = self.made(key)
            session.get("uid")
            session["name"] = NAME
            session.save()


class Cachelib:
    def __init__(self, root: Path, count: int) -> None:
        from cachelib import FileSystemCache

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


WAYS: dict[str, Any] = {
    "cysession, durability none": lambda root, count: Ours(root, count, "none"),
    "cysession, none, nothing kept in memory": lambda root, count: Uncached(root, count, "none"),
    "cysession, durability data": lambda root, count: Ours(root, count, "data"),
    "cysession, durability full": lambda root, count: Ours(root, count, "full"),
    "Django": Django,
    "cachelib": Cachelib,
}
FLUSHED = ("cysession, durability data", "cysession, durability full")
NOTES = {
    "Django": "locks, merges with another request's changes",
    "cachelib": "locks, merges, checks of what was read",
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
def stores(request: pytest.FixtureRequest, place: tuple[str, Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    made = {}
    for name, way in WAYS.items():
        root = place[1] / f"{request.param} {name}"
        root.mkdir()
        made[name] = built(way, root, COUNTS[request.param])
    yield request.param, made
    for name, store in made.items():
        if not isinstance(store, Absent):
            store.close()
        shutil.rmtree(place[1] / f"{request.param} {name}")


@pytest.mark.parametrize("cycle", ["read", "write"])
def test_cycle(race: Race, place: tuple[str, Path], stores: tuple[str, dict[str, Any]], cycle: str) -> None:
    count, ways = stores
    for way in ways.values():
        if not isinstance(way, Absent):
            way.read(way.ids)
    slow = FLUSHED if cycle == "write" and place[0] == "disk" else ()
    sizes = {name: FEW if name in slow else OPERATIONS for name in ways}
    race(
        f"{cycle}, {place[0]}, {count}",
        {name: way if isinstance(way, Absent) else getattr(way, cycle) for name, way in ways.items()},
        operations=sizes,
        arguments={
            name: parts(way.ids, sizes[name]) for name, way in ways.items() if not isinstance(way, Absent)
        },
        rounds=(10, 200),
        base="cysession, durability none",
        notes=NOTES,
    )
