"""Shared by all benchmarks. Read ratios within one run, never figures across runs or machines.

Contenders run in turn (race.py), pinned to one processor, except where a file is about several of them. What they do is
in workload.py.
"""

import importlib.metadata
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from race import added_us
from race import race as race
from workload import populate

from cysession import Manager, MemoryStorage

REQUIREMENTS = Path(__file__).parents[1] / "ci/requirements"
# What these measure goes on in several processors at once: threads, or a server beside its clients.
SPREAD = ("test_expiry", "test_redis", "test_redis_cycle", "test_threads")


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


# ---- what many are about ----------------------------------------------------------------------------------


@pytest.fixture
def manager() -> Iterator[Manager]:
    with Manager(ttl=3600, storage=MemoryStorage()) as made:
        yield made


@pytest.fixture
def one_id(manager: Manager) -> str:
    return populate(manager, 1)[0]
