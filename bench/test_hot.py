"""What does one hot session cost?

A table lookup with its expiry check and touch, and whole request cycles, against a bare `dict.get`: everything is in
the processor's first cache, so this is what the instructions cost. The bars are the ratios that the core is held to.
"""

from race import Race
from workload import LOOP, looking_up, reading, writing

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
            "dict.get": looking_up({one_id: "value"}.get),
            "cysession, table get with expiry check and touch": looking_up(table.get),
            "cysession, read cycle": reading(manager),
            "cysession, write cycle": writing(manager),
        },
        arguments=lambda part=([one_id] * LOOP,): part,  # type: ignore[misc]
        seconds=1.0,
        rounds=(100, 10_000),
        base="dict.get",
        bars=BARS,
        notes={"dict.get": "expiry, locks, copies, commits"},
    )
