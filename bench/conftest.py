"""Shared by all benchmarks. Read ratios within one run, never figures across runs or machines.

Contenders run in turn (race.py), pinned to one processor, except where a file is about several of them. The workload
is the same everywhere: three short string keys a session, every session with strings of its own.
"""

import importlib.metadata
import os
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from race import added_us
from race import race as race

from cysession import Manager, MemoryStorage, Session

LOOP = 1000
NAME = "another name of 21 ch"
REQUIREMENTS = Path(__file__).parents[1] / "ci/requirements"
# What these measure goes on in several processors at once: threads, or a server beside its clients.
SPREAD = ("test_expiry", "test_redis", "test_redis_cycle", "test_threads")

Cycle = Callable[[list[str]], None]


# ---- what stands above the figures ------------------------------------------------------------------------


def named_in(file: Path) -> Iterator[str]:
    """The packages of a requirements file and of those that it includes."""
    for line in file.read_text().splitlines():
        line = line.partition("#")[0].strip()
        if included := re.match(r"-r\s+(\S+)", line):
            yield from named_in(file.parent / included[1])
        elif name := re.match(r"\w[\w.-]*", line):
            yield name[0]


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def versions() -> dict[str, str]:
    """What is measured here, us included; a peer that is not installed says so."""
    names = [name for file in ("bench.txt", "peers.txt") for name in named_in(REQUIREMENTS / file)]
    return {name: version(name) for name in ("cysession", *names)}


def pytest_report_header() -> list[str]:
    return [
        f"load: {os.getloadavg()[0]:.2f} on {os.cpu_count()} processors",
        "versions: " + ", ".join(f"{name} {version}" for name, version in versions().items()),
    ]


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    machine_info["load"] = round(os.getloadavg()[0], 2)
    machine_info["versions"] = versions()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if added_us:
        terminalreporter.section("added to the bare app, us a request")
        for name, microseconds in added_us.items():
            terminalreporter.write_line(f"{microseconds:9.2f}  {name}")


@pytest.fixture(scope="module", autouse=True)
def pinned(request: pytest.FixtureRequest) -> Iterator[None]:
    """On the last processor, with all processes and servers that are started here: the first has the interrupts."""
    if request.module.__name__.rpartition(".")[2] in SPREAD or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    yield
    os.sched_setaffinity(0, before)


# ---- the workload -----------------------------------------------------------------------------------------


def contents(n: int) -> dict[str, str]:
    return {"uid": f"u{n:08d}", "name": f"user number {n:09d}", "csrf": f"{n:032x}"}


def fill(session: Session, n: int) -> None:
    """The workload of the Go figures."""
    for key, value in contents(n).items():
        session.set(key, value)


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


def parts(ids: list[str], size: int = LOOP) -> Callable[[], tuple[list[str]]]:
    """The next ids for ever, for `race(arguments=)`: every round meets sessions that were not touched lately."""
    ids = ids * -(-size // len(ids)) if len(ids) < size else ids

    def endless() -> Iterator[tuple[list[str]]]:
        while True:
            for start in range(0, len(ids) - size + 1, size):
                yield (ids[start : start + size],)

    return endless().__next__


def reading(manager: Manager) -> Cycle:
    """Request cycles that read one key."""
    new = manager.new

    def run(part: list[str]) -> None:
        for key in part:
            session = new(key)
            session.get("uid")
            session.close()

    return run


def writing(manager: Manager) -> Cycle:
    """Request cycles that read one key and write another."""
    new = manager.new

    def run(part: list[str]) -> None:
        for key in part:
            session = new(key)
            session.get("uid")
            session.set("name", NAME)
            session.close()

    return run


def looking_up(get: Callable[[str], object]) -> Cycle:
    def run(part: list[str]) -> None:
        for key in part:
            get(key)

    return run


@pytest.fixture
def manager() -> Iterator[Manager]:
    with Manager(ttl=3600, storage=MemoryStorage()) as made:
        yield made


@pytest.fixture
def one_id(manager: Manager) -> str:
    return populate(manager, 1)[0]
