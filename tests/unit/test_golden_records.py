"""R44: what any release has stored is read by this one, and what this one writes is what is kept here."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cysession import FileStorage, Record
from tests.golden.make import CREATED, DATA, KEY, SECOND, TTL, path_in

FORMATS = sorted((Path(__file__).parents[1] / "golden").glob("format-*"))
Put = Callable[[Path, str], FileStorage]


@pytest.fixture
def put(tmp_path: Path) -> Put:
    """A storage with the golden records that begin with this name, used a moment ago."""

    def put(kept: Path, name: str) -> FileStorage:
        if name == "sealed":
            pytest.importorskip("cryptography")
        for golden in kept.glob(f"{name}*"):
            path = path_in(tmp_path, golden.name)
            path.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
            path.parent.parent.chmod(0o700)
            path.write_bytes(golden.read_bytes())
            os.utime(path, ns=(CREATED, CREATED))
        tmp_path.chmod(0o700)
        storage = FileStorage(
            tmp_path, keys=[KEY] if name == "sealed" else [], sweep_every=0, durability="none"
        )
        storage.use_clock(lambda: CREATED / SECOND + 10)
        return storage

    return put


@pytest.mark.parametrize("kept", FORMATS, ids=lambda path: path.name)
@pytest.mark.parametrize("name", DATA)
def test_R44_records_of_every_format_stay_readable(kept: Path, name: str, put: Put) -> None:
    storage = put(kept, name)
    found = storage.load_record(name, TTL)
    assert found is not None, "unreadable"
    assert found.to_dict() == DATA[name]
    assert name == "containers" or repr(found.to_dict()) == repr(DATA[name])  # but for the order of a set
    own = 60 * SECOND if name == "own_ttl" else 0
    assert (found.birth, found.created, found.ttl) == (0x0123456789ABCDEF, CREATED, own)
    assert found.cap == CREATED + 86400 * SECOND and storage.stats()["corrupt"] == 0
    storage.close()


@pytest.mark.parametrize("name", [name for name in DATA if name not in ("sealed", "rotated")])
def test_R44_the_newest_format_is_what_this_release_writes(name: str, put: Put, tmp_path: Path) -> None:
    storage = put(FORMATS[-1], "none of them")
    own = 60 * SECOND if name == "own_ttl" else 0
    record = Record.build(DATA[name], CREATED, CREATED + 86400 * SECOND, own, 0x0123456789ABCDEF)
    assert storage.create_record(name, record, TTL)
    assert path_in(tmp_path, name).read_bytes() == (FORMATS[-1] / name).read_bytes()
    storage.close()
