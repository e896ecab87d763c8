"""What does it cost to find our cookie? Bars: 1 us in a usual header; linear up to 512 kB of whatever is sent."""

from typing import Any

import pytest
from added import HEADERS, NEIGHBOURS
from conftest import LOOP

from cysession import Manager
from cysession._core import presented_id
from cysession._http import HttpPolicy
from cysession.cookies import find_values

NAME = b"__Host-id"
USUAL = NEIGHBOURS + NAME + b"=" + b"x" * 43
HOSTILE = {
    "backslashes": b"\\",  # quadratic in http.cookies (CVE-2024-7592)
    "semicolons": b";",
    "blanks": b" ",
    "pairs": b"a=1; ",
    "names": NAME,
    "almost names": NAME[:-1],
    "names after blanks": b" " * 50 + NAME,
}


@pytest.mark.benchmark(group="cookies: a usual header, per 1000 looks")
def test_usual_header_compiled(benchmark: Any) -> None:
    headers = [*HEADERS, (b"cookie", USUAL)]

    @benchmark
    def _run() -> None:
        for _ in range(LOOP):
            presented_id(headers, b"cookie", NAME)


@pytest.mark.benchmark(group="cookies: a usual header, per 1000 looks")
def test_usual_header_careful(benchmark: Any) -> None:
    @benchmark
    def _run() -> None:
        for _ in range(LOOP):
            find_values(USUAL, NAME)


@pytest.mark.parametrize("kilobytes", [8, 64, 512])
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_header(benchmark: Any, kind: str, kilobytes: int, manager: Manager) -> None:
    """64 times the bytes must take about 64 times as long."""
    benchmark.group = f"cookies: {kind}"
    size = kilobytes * 1024
    headers = [(b"cookie", (HOSTILE[kind] * size)[:size] + b"; " + NAME + b"=" + b"x" * 43)]
    policy = HttpPolicy(manager)
    benchmark(policy.session_for, headers)
