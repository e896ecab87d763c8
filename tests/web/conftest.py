"""Fixtures of the web suite: every adapter over every kind of storage, and no id in any log."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cysession import FileStorage, Manager, MemoryStorage, RedisHashStorage, RedisStorage, Storage
from tests.redis.servers import RedisServer
from tests.web.sites import ADAPTERS, Site, View
from tests.web.storages import DictStorage, WaitingStorage

STORAGES: dict[str, Callable[[Path], Storage]] = {  # by name; the Redis ones have a fixture of their own
    "memory": lambda path: MemoryStorage(),
    "file": lambda path: FileStorage(path / "sessions"),
    "custom": lambda path: DictStorage(),
    "waiting": lambda path: WaitingStorage(),
}

MakeSite = Callable[..., Site]


REDIS: dict[str, type[RedisStorage]] = {"redis": RedisStorage, "redis hash": RedisHashStorage}


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    with RedisServer() as made:
        yield made


def redis_storage(kind: type[RedisStorage], server: RedisServer) -> Storage:
    """A storage on the emptied server, with a length like the others, and with patience for busy machines."""
    server.flush()
    return type("Counted", (kind,), {"__len__": lambda self: server.command("DBSIZE")})(
        server.url, timeout=20
    )


@pytest.fixture(params=[*STORAGES, *(pytest.param(name, marks=pytest.mark.redis) for name in REDIS)])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    if request.param in REDIS:
        storage = redis_storage(REDIS[request.param], request.getfixturevalue("redis_server"))
    else:
        storage = STORAGES[request.param](tmp_path)
    with Manager(3600, storage) as made:
        yield made


@pytest.fixture(params=ADAPTERS)
def make_site(request: pytest.FixtureRequest, manager: Manager) -> MakeSite:
    """make_site(view, **options): the view behind the adapter under test."""

    def make(view: View, *, manager: Manager = manager, **options: object) -> Site:
        return ADAPTERS[request.param](view, manager, options)

    return make


@pytest.fixture(autouse=True)
def logs(no_id_is_logged: None) -> None:
    """S20, for every test here."""
