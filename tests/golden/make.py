"""Records as one format writes them, for tests/unit/test_golden_records.py: the sessions of a FileStorage, a file each.

python -m tests.golden.make tests/golden/format-2      after a change of the format; the older ones stay for good
"""

import sys
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from cysession import FileStorage, Record
from cysession.ids import storage_key

__all__ = ["CREATED", "DATA", "KEY", "SECOND", "TTL", "path_in"]

SECOND = 1_000_000_000
CREATED = 1_700_000_000 * SECOND
TTL = 3600 * SECOND
KEY = b"a key of the tests, 32 bytes long"
DATA: dict[str, dict[str, Any]] = {
    "plain": {
        "uid": "u00000001",
        "name": "Ada é €😀",
        "n": [None, True, False, -1, 2**63, 1.5, -0.0, b"\0\xff"],
    },
    "containers": {
        "cart": [{"sku": "a", "n": 1}],
        "pair": (1, (2, ())),
        "tags": {"b", "a"},
        "ids": frozenset({(1, "x")}),
    },
    "scalars": {
        "big": [2**64, -(2**63) - 1, 2**2000],
        "aware": datetime(2026, 1, 2, 3, 4, 5, 6, UTC),
        "naive": datetime(1, 1, 1),
        "named": datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=1), "é")),
        "place": datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1),
        "date": date(9999, 12, 31),
        "time": time(23, 59, 59, 999999, timezone(timedelta(minutes=-90))),
        "delta": timedelta(-1, 5, 7),
        "decimal": [Decimal("1E+1000"), Decimal("-0"), Decimal("1.10")],
        "uuid": UUID(int=1),
    },
    "own_ttl": {"user": "ada"},
    "sealed": {"user": "ada", "cart": [1, (2, 3)]},
    "rotated": {"user": "ada"},
}


def path_in(root: Path, name: str) -> Path:
    """Where a FileStorage keeps the session with this id."""
    key = storage_key(name)
    return root / key[0] / key[1] / key[2:]


def write(root: Path) -> None:
    for name, data in DATA.items():
        storage = FileStorage(root / ".made", keys=[KEY] if name == "sealed" else [], sweep_every=0)
        storage.use_clock(lambda: CREATED / SECOND)
        own = 60 * SECOND if name == "own_ttl" else 0
        record = Record.build(data, CREATED, CREATED + 86400 * SECOND, own, 0x0123456789ABCDEF)
        storage.create_record(name, record, TTL)
        if name == "rotated":
            storage.rename_record(name, f"{name}-new", record, TTL, 30 * SECOND)
            (root / f"{name}-new").write_bytes(path_in(root / ".made", f"{name}-new").read_bytes())
        (root / name).write_bytes(path_in(root / ".made", name).read_bytes())


if __name__ == "__main__":
    write(Path(sys.argv[1]))
