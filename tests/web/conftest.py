"""Fixtures of the web suite: every adapter over every kind of storage, and no id in any log."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cysession import FileStorage, Manager, MemoryStorage, Storage
from tests.web.sites import ADAPTERS, Site, View
from tests.web.storages import DictStorage, WaitingStorage

STORAGES: dict[str, Callable[[Path], Storage]] = {
    "memory": lambda path: MemoryStorage(),
    "file": lambda path: FileStorage(path / "sessions"),
    "custom": lambda path: DictStorage(),
    "waiting": lambda path: WaitingStorage(),
}

MakeSite = Callable[..., Site]


@pytest.fixture(params=STORAGES)
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    with Manager(3600, STORAGES[request.param](tmp_path)) as made:
        yield made


@pytest.fixture(params=ADAPTERS)
def make_site(request: pytest.FixtureRequest, manager: Manager) -> MakeSite:
    """make_site(view, **options): the view behind the adapter under test."""

    def make(view: View, *, manager: Manager = manager, **options: object) -> Site:
        return ADAPTERS[request.param](view, manager, options)

    return make


@pytest.fixture(autouse=True)
def no_id_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """S20: at DEBUG, whatever a test does, nothing that could be an id reaches a log."""
    caplog.set_level(logging.DEBUG)
    yield
    assert not re.search(r"(?<![\w-])[\w-]{43}(?![\w-])", caplog.text)
