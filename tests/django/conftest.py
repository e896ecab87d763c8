"""Every test runs over every kind of storage, unless it brings its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.django.site import make_tables, set_up

set_up()

from django.test.utils import override_settings  # noqa: E402

from cysession import (  # noqa: E402
    FileStorage,
    Manager,
    MemoryStorage,
    RedisHashStorage,
    RedisStorage,
    Storage,
)
from cysession.django import SessionStore  # noqa: E402
from cysession.testing import FakeClock  # noqa: E402
from tests.redis.servers import RedisServer  # noqa: E402
from tests.web.storages import DictStorage, WaitingStorage  # noqa: E402

STORAGES: dict[str, Callable[[Path], Storage]] = {
    "memory": lambda path: MemoryStorage(),
    "file": lambda path: FileStorage(path / "sessions"),
    "custom": lambda path: DictStorage(),
    "waiting": lambda path: WaitingStorage(),
}


@pytest.fixture(scope="session")
def users() -> Any:
    """The user model, with tables."""
    make_tables()
    from django.contrib.auth import get_user_model

    return get_user_model()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    with RedisServer() as started:
        yield started


@pytest.fixture(
    params=[
        *STORAGES,
        *(pytest.param(kind, marks=pytest.mark.redis) for kind in (RedisStorage, RedisHashStorage)),
    ]
)
def manager(request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock) -> Iterator[Manager]:
    """The manager of the site; time stands still unless the test turns `clock`."""
    if isinstance(request.param, str):
        storage = STORAGES[request.param](tmp_path)
    else:
        server = request.getfixturevalue("redis_server")
        server.flush()
        storage = request.param(server.url)
    with Manager(1_209_600, storage, clock=clock) as made:
        with override_settings(CYSESSION={"MANAGER": made}):
            yield made


@pytest.fixture
def store(manager: Manager) -> SessionStore:
    return SessionStore()


@pytest.fixture(params=["memory", "file"])
def timed(request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock) -> Iterator[Manager]:
    """The same over the storages that keep time themselves."""
    with Manager(1_209_600, STORAGES[request.param](tmp_path), clock=clock) as made:
        with override_settings(CYSESSION={"MANAGER": made}):
            yield made


@pytest.fixture(autouse=True)
def logs(no_id_is_logged: None) -> None:
    """S20, for every test here."""
