"""What does a session weigh in memory?

The growth of the process while a million sessions are made, divided by a million: everything counts, keys and values
included. Each figure is from a process of its own. The Go original holds 885 bytes a session with the same three keys
(see the end of this page).
"""

import pytest
from million import COUNT, NOTES, WAYS, measured
from race import Race


@pytest.mark.timeout(600)
def test_memory(race: Race) -> None:
    race.facts(
        f"memory, {COUNT:,} sessions",
        {way: lambda way=way: {"bytes a session": measured(way)["bytes"]} for way in WAYS},  # type: ignore[misc]
        compare="bytes a session",
        base="cysession, three keys",
        notes=NOTES,
    )
