"""What does it cost to find our cookie?

The bars: 1 us in a usual header, and linear up to 512 kB of whatever is sent.
"""

from collections.abc import Callable
from http.cookies import SimpleCookie

import pytest
from added import HEADERS, NEIGHBOURS
from race import Race

from cysession import Manager
from cysession._core import presented_id
from cysession._http import HttpPolicy
from cysession.cookies import find_values

NAME = b"__Host-id"
CALLS = 100
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


def test_usual_header(race: Race) -> None:
    headers = [*HEADERS, (b"cookie", USUAL)]
    text = USUAL.decode()

    def compiled() -> None:
        for _ in range(CALLS):
            presented_id(headers, b"cookie", NAME)

    def careful() -> None:
        for _ in range(CALLS):
            find_values(USUAL, NAME)

    def standard() -> None:
        for _ in range(CALLS):
            SimpleCookie(text)

    race(
        "a usual header",
        {
            "cysession, compiled": compiled,
            "cysession, for headers out of the ordinary": careful,
            "http.cookies": standard,
        },
        operations=CALLS,
    )


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_header(race: Race, kind: str, manager: Manager) -> None:
    """64 times the bytes must take about 64 times as long."""
    policy = HttpPolicy(manager)

    def looks(kilobytes: int) -> Callable[[], object]:
        size = kilobytes * 1024
        headers = [(b"cookie", (HOSTILE[kind] * size)[:size] + b"; " + NAME + b"=" + b"x" * 43)]
        return lambda: policy.session_for(headers)

    race(
        f"a hostile header full of {kind}",
        {f"cysession, {size} kB": looks(size) for size in (8, 64, 512)},
        operations=1,
        seconds=0.1,
        base="cysession, 8 kB",
    )
