"""How does the cost of a request grow with the number of sessions?

Every cycle meets the next session of a shuffled order, so from some thousands on each touches memory that no cache
holds: what counts then is how many objects a request looks at. `dict.get` looks the same ids up. The Go original takes
1.0 us a cycle over 10,000 sessions and 3.9 us over 1,000,000 (see the end of this page).

    CYSESSION_BENCH_MOST    the most sessions (default 5,000,000, which take 3 GB)
"""

import os

import pytest
from million import COUNT
from race import Race
from workload import looking_up, parts, populate, reading, writing

from cysession import Manager

MOST = int(os.environ.get("CYSESSION_BENCH_MOST", 5 * COUNT))
SIZES = [
    size
    for size in (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000, 2_000_000, 5_000_000)
    if size <= MOST
]


@pytest.mark.parametrize("count", SIZES)
def test_cycles(race: Race, manager: Manager, count: int) -> None:
    ids = populate(manager, count)
    race(
        f"{count:,} sessions",
        {
            "dict.get": looking_up({key: key for key in ids}.get),
            "cysession, read cycle": reading(manager),
            "cysession, write cycle": writing(manager),
        },
        arguments=parts(ids),
        seconds=0.7,
        rounds=(100, 5000),
        base="dict.get",
        notes={"dict.get": "expiry, locks, copies, commits"},
    )
