"""Shared by all benchmarks. Read ratios within one run, never figures across runs or machines.

Each benchmark times a loop over `LOOP` operations, so that the harness's own call costs nothing next to them; the
reported time divided by `LOOP` is one operation. All loops pay the same for the loop itself, `dict.get` included.
"""

import importlib.metadata
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from added import added_us

from cysession import Manager, MemoryStorage, Session

LOOP = 1000
NAME = "another name of 21 ch"


def versions() -> dict[str, str]:
    """What is measured here, us included; a peer that is not installed says so."""
    found = {}
    for line in Path(__file__).parents[1].joinpath("ci/requirements/bench.txt").read_text().splitlines():
        if name := re.match(r"\w[\w-]*", line):
            try:
                found[name[0]] = importlib.metadata.version(name[0])
            except importlib.metadata.PackageNotFoundError:
                found[name[0]] = "not installed"
    return found


def pytest_report_header() -> list[str]:
    return [
        f"load: {os.getloadavg()[0]:.2f} on {os.cpu_count()} processors",
        "versions: " + ", ".join(f"{name} {version}" for name, version in versions().items()),
    ]


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    machine_info["load"] = round(os.getloadavg()[0], 2)
    machine_info["versions"] = versions()


def fill(session: Session, n: int) -> None:
    """The workload of the Go figures: three short string keys, every session with strings of its own."""
    session.set("uid", f"u{n:08d}")
    session.set("name", f"user number {n:09d}")
    session.set("csrf", f"{n:032x}")


def populate(manager: Manager, count: int) -> list[str]:
    """`count` stored sessions; their ids in an order that no cache can foresee."""
    ids = []
    for n in range(count):
        session = manager.new()
        fill(session, n)
        session.close()
        ids.append(session.id)
    random.Random(7).shuffle(ids)
    return ids


def chunks(ids: list[str]) -> Iterator[list[str]]:
    """The next LOOP ids for ever, so that every round meets sessions that have not been touched lately."""
    while True:
        for start in range(0, len(ids), LOOP):
            yield ids[start : start + LOOP]


def rounds(ids: list[str]) -> int:
    """Enough to meet every id a few times."""
    return max(200, min(3 * len(ids) // LOOP, 2000))


@pytest.fixture
def manager() -> Manager:
    return Manager(ttl=3600, storage=MemoryStorage())


@pytest.fixture
def one_id(manager: Manager) -> str:
    return populate(manager, 1)[0]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if added_us:
        terminalreporter.section("added to the bare app, us a request")
        for name, microseconds in added_us.items():
            terminalreporter.write_line(f"{microseconds:9.2f}  {name}")
