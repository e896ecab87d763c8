"""What does one hot session cost? The table and the request cycle against a bare `dict.get` (design: 1.6x, 5x, 10x)."""

from typing import Any

import pytest
from conftest import LOOP, NAME

from cysession import Manager

pytestmark = pytest.mark.benchmark(group="hot, per 1000 operations")


def test_dict_get(benchmark: Any, one_id: str) -> None:
    get = {one_id: "value"}.get

    @benchmark
    def _run() -> None:
        for _ in range(LOOP):
            get(one_id)


def test_table_get_with_expiry_check_and_touch(benchmark: Any, manager: Manager, one_id: str) -> None:
    table = manager.storage.table
    assert table is not None
    get = table.get

    @benchmark
    def _run() -> None:
        for _ in range(LOOP):
            get(one_id)


def test_read_cycle(benchmark: Any, manager: Manager, one_id: str) -> None:
    new = manager.new

    @benchmark
    def _run() -> None:
        for _ in range(LOOP):
            session = new(one_id)
            session.get("uid")
            session.close()


def test_write_cycle(benchmark: Any, manager: Manager, one_id: str) -> None:
    new = manager.new

    @benchmark
    def _run() -> None:
        for _ in range(LOOP):
            session = new(one_id)
            session.get("uid")
            session.set("name", NAME)
            session.close()


def test_create_cycle(benchmark: Any, manager: Manager) -> None:
    """A fresh id and a stored session; `new` leaves nothing behind but what the table holds."""
    new = manager.new

    @benchmark
    def _run() -> None:
        for _ in range(LOOP):
            session = new()
            session.set("uid", "u00000001")
            session.close()
