"""What does one hot session cost?

A table lookup with its expiry check and touch, and whole request cycles, against a bare `dict.get`: everything is in
the processor's first cache, so this is what the instructions cost. The loop around them is the same for all and counts.
The bars are the ratios that the core is held to.
"""

from race import Race
from workload import looking_up_one, reading_one, writing_one

from cysession import Manager

BARS = {
    "cysession, table get with expiry check and touch": 1.6,
    "cysession, read cycle": 5.0,
    "cysession, write cycle": 10.0,
}


def test_one_session(race: Race, manager: Manager, one_id: str) -> None:
    table = manager.storage.table
    assert table is not None
    race(
        "one hot session",
        {
            "dict.get": looking_up_one({one_id: "value"}.get, one_id),
            "cysession, table get with expiry check and touch": looking_up_one(table.get, one_id),
            "cysession, read cycle": reading_one(manager, one_id),
            "cysession, write cycle": writing_one(manager, one_id),
        },
        seconds=1.0,
        rounds=(100, 10_000),
        base="dict.get",
        bars=BARS,
        notes={"dict.get": "expiry, locks, copies, commits"},
    )
