"""How long does the garbage collector stop everything?

A full collection looks at every object that could be part of a cycle; with a million sessions in dicts that is a
million dicts, and every request that comes in the meantime waits. A session in our table is one object that the
collector does not see as long as its values are plain. "Full collection" is the best of five with a million live
sessions; "while filling" is what the collector took by itself while they were made, and its longest pause.
"""

import pytest
from million import COUNT, NOTES, WAYS, measured
from race import Race


def pauses(way: str) -> dict[str, float]:
    found = measured(way)
    return {
        "full collection, ms": found["full_ms"],
        "while filling, ms": found["filling_ms"],
        "longest pause while filling, ms": found["worst_ms"],
    }


@pytest.mark.timeout(600)
def test_pauses(race: Race) -> None:
    race.facts(
        f"garbage collection, {COUNT:,} live sessions",
        {way: lambda way=way: pauses(way) for way in WAYS},  # type: ignore[misc]
        compare="full collection, ms",
        base="cysession, three keys",
        bars={"cysession, three keys": 30.0},
        notes=NOTES,
    )
