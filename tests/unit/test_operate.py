"""What operators see of a storage: summaries that hold neither ids nor values, and findings about its place."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cysession import FileStorage, Manager, MemoryStorage, NotSupported, Record, Storage
from cysession.storage import memory
from cysession.storage.file import survey
from cysession.storage.operate import Finding, Summary
from cysession.storage.users import index_name
from cysession.testing import FakeClock


@pytest.fixture(params=["memory", "file", "sealed"])
def storage(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Storage]:
    # The memory storage's own thread would expire sessions beside the tests, which count what `sweep()` removes.
    monkeypatch.setattr("cysession.storage.driver.Driver.start", lambda self: None)
    made: Storage = MemoryStorage()
    if request.param == "sealed":
        pytest.importorskip("cryptography")  # no wheel of it fits where the suites run without the GIL
    if request.param != "memory":
        keys = [b"k" * 32] if request.param == "sealed" else []
        made = FileStorage(tmp_path / "sessions", durability="none", keys=keys, sweep_every=0)
    yield made
    made.close()


def store(manager: Manager, user: str | None = None, **data: object) -> str:
    session = manager.new()
    session.set_map({"colour": "petrol", **data})
    if user:
        session.bind(user)
    session.close()
    return session.id


def is_sealed(storage: Storage) -> bool:
    return isinstance(storage, FileStorage) and storage._sealed


def test_a_scan_shows_sessions_and_nothing_else(storage: Storage) -> None:
    clock = FakeClock()
    manager = Manager(1000, storage, clock=clock, max_age=5000)
    began = clock()
    anonymous, bound = store(manager), store(manager, "anna")
    session = manager.new(anonymous)
    session.regenerate_id(delete_old=False)  # leaves a sign under the old id
    session.close()
    found = list(storage.scan())
    assert len(found) == 2  # neither the sign nor the user's index
    for one in found:
        assert one.created_at == pytest.approx(began, abs=1)
        assert one.idle == 1000 and one.size > 0
        assert "petrol" not in repr(one)
        if not isinstance(storage, MemoryStorage):
            assert one.used_at == pytest.approx(began, abs=1)
            assert one.expires_at == pytest.approx(began + 1000, abs=1)
            assert bound not in one.locator and anonymous not in one.locator
    wanted = [None, None] if is_sealed(storage) else [False, True]
    assert sorted((one.bound for one in found), key=str) == wanted


def test_what_has_expired_is_in_no_scan(storage: Storage) -> None:
    clock = FakeClock()
    manager = Manager(1000, storage, clock=clock)
    token = store(manager)
    clock.advance(999)
    assert len(list(storage.scan())) == 1
    clock.advance(1)
    assert not list(storage.scan()) and storage.summary(token) is None


def test_sweep_removes_the_expired_and_counts_them(storage: Storage) -> None:
    clock = FakeClock()
    manager = Manager(1000, storage, clock=clock)
    for _ in range(3):
        store(manager)
    # Made and used before the others expire: a later write takes what is due in its shard along, and out of the count.
    kept = store(manager)
    clock.advance(900)
    with manager.new(kept) as session:
        session["colour"] = "green"
    clock.advance(200)
    assert storage.sweep() == 3
    assert storage.sweep() == 0
    assert "colour" in manager.new(kept)


def test_a_summary_by_id_and_by_locator(storage: Storage) -> None:
    manager = Manager(1000, storage)
    token = store(manager)
    one = storage.summary(token)
    again = None if one is None else storage.summary(one.locator)
    assert one is not None and again is not None and again.locator == one.locator
    assert again.created_at == pytest.approx(one.created_at, abs=1)
    assert storage.delete_record(one.locator) and storage.summary(token) is None


def test_the_index_of_a_user_tells_the_applications_ttl(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path / "sessions", durability="none")
    store(Manager(1000, storage), "anna")
    index = storage.summary(index_name("anna"))
    assert index is not None and index.idle == 2 * 1000 + 120
    assert storage.summary(index_name("ben")) is None


@pytest.fixture
def due(monkeypatch: pytest.MonkeyPatch) -> MemoryStorage:
    """Five slices of expired sessions, and nobody who clears them up."""
    monkeypatch.setattr("cysession.storage.driver.Driver.start", lambda self: None)
    clock, storage = FakeClock(), MemoryStorage()
    manager = Manager(1000, storage, clock=clock)
    for _ in range(5 * memory.SLICE):
        store(manager)
    clock.advance(1001)
    return storage


@pytest.mark.parametrize("turn", [0.0, 3600.0], ids=["a slice a turn", "all in one turn"])
def test_a_sweep_of_many_counts_all_of_them(
    due: MemoryStorage, monkeypatch: pytest.MonkeyPatch, turn: float
) -> None:
    monkeypatch.setattr(memory, "TURN", turn)
    assert due.sweep() == 5 * memory.SLICE and len(due) == 0


def test_whoever_sweeps_sleeps_between_turns(due: MemoryStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else another thread waits for the GIL until the interpreter takes it away, 5 ms later."""
    naps: list[float] = []
    monkeypatch.setattr(memory, "TURN", 0.0)
    monkeypatch.setattr(memory.time, "sleep", naps.append)
    assert due._sweep() == memory.PAUSE and 0 < len(due) < 5 * memory.SLICE  # the thread: its driver sleeps
    due.sweep()
    assert naps and set(naps) == {memory.PAUSE}
    assert due._sweep() == memory.TICK


def test_what_is_no_record_is_in_no_scan(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path / "sessions", durability="none", sweep_every=0)
    store(Manager(1000, storage))
    leaf = tmp_path / "sessions" / "a" / "b"
    leaf.mkdir(parents=True, exist_ok=True)
    (leaf / ("0" * 62)).write_bytes(b"torn")
    (leaf / ("1" * 62)).symlink_to("/etc/passwd")
    (leaf / ("2" * 62)).mkdir()
    (leaf / "notes.txt").write_text("not ours")
    os.mkfifo(leaf / ("3" * 62))
    assert len(list(storage.scan())) == 1


def test_a_storage_that_cannot_tell_says_so() -> None:
    class Whole(Storage):
        def get_session(self, session_id: str, ttl: float) -> None:
            return None

        def set_session(self, session_id: str, record: Record, ttl: float) -> None: ...

        def remove_all(self, session_id: str) -> bool:
            return False

    storage = Whole()
    for call in (lambda: list(storage.scan()), lambda: storage.summary("a"), storage.sweep):
        with pytest.raises(NotSupported, match="Whole"):
            call()
    assert list(storage.examine()) == [] and storage.vitals() == {}


# ---- the place of files -----------------------------------------------------------------------------------


def examined(storage: Storage) -> dict[str, Finding]:
    return {finding.what: finding for finding in storage.examine()}


@pytest.fixture
def files(tmp_path: Path) -> FileStorage:
    return FileStorage(tmp_path / "sessions")


def test_a_private_directory_on_a_disk_is_well(files: FileStorage, tmp_path: Path) -> None:
    found = examined(files)
    assert found["permissions"].level == found["clock"].level == found["clean-up"].level == "ok"
    assert sorted(os.listdir(tmp_path / "sessions")) == [".cysession"]
    assert not [name for name in os.listdir(tmp_path / "sessions" / ".cysession") if "examine" in name]


@pytest.mark.parametrize(("kind", "level"), [("ext4", "ok"), ("tmpfs", "warn"), ("nfs4", "fail")])
def test_the_file_system_matters(
    kind: str, level: str, files: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey, "_mounted_as", lambda path: kind)
    assert examined(files)["file system"].level == level


def test_the_file_system_is_found_by_the_longest_mount_point() -> None:
    assert survey._mounted_as("/proc/self") == "proc"
    assert survey._mounted_as("/no/such/path") == survey._mounted_as("/")


@pytest.mark.parametrize(
    ("free", "of", "inodes", "levels"),
    [
        (50e9, 100e9, 1e6, ("ok", "ok")),
        (2e9, 100e9, 1e4, ("warn", "warn")),
        (1e6, 100e9, 10, ("fail", "fail")),
    ],
)
def test_room_runs_out(
    free: float,
    of: float,
    inodes: float,
    levels: tuple[str, str],
    files: FileStorage,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    room = {"free_bytes": free, "bytes": of, "free_inodes": inodes, "inodes": 1.5e6}
    monkeypatch.setattr(survey, "space_of", lambda directory: room)
    found = examined(files)
    assert (found["space"].level, found["inodes"].level) == levels


def test_a_clock_that_is_off_is_found(files: FileStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time
    monkeypatch.setattr(survey.time, "time", lambda: now() + 10)
    found = examined(files)["clock"]
    assert found.level == "fail" and "-10.0 s" in found.state


def test_a_clean_up_long_ago_is_found(files: FileStorage, tmp_path: Path) -> None:
    files.sweep()
    assert examined(files)["clean-up"].level == "ok"
    os.utime(tmp_path / "sessions" / ".cysession" / "sweep", (1e9, 1e9))
    assert examined(files)["clean-up"].level == "warn"


def test_a_directory_above_that_others_can_write_is_found(tmp_path: Path) -> None:
    """V10: who can rename a directory above ours can put another one in its place for the next start."""
    tmp_path.chmod(0o777)
    found = examined(FileStorage(tmp_path / "sessions"))["directories above"]
    assert found.level == "warn" and str(tmp_path) in found.state


def test_durability_none_is_told(tmp_path: Path) -> None:
    found = {
        d: examined(FileStorage(tmp_path / d, durability=d))["durability"].level for d in ("none", "full")
    }
    assert found == {"none": "warn", "full": "ok"}


def test_summaries_of_memory_say_what_they_cannot_tell() -> None:
    storage = MemoryStorage(10)
    store(Manager(1000, storage, max_age=500))
    (one,) = storage.scan()
    assert isinstance(one, Summary) and one.used_at is None
    assert one.expires_at == pytest.approx(time.time() + 500, abs=5)
    assert {finding.what: finding.level for finding in storage.examine()} == {
        "place": "warn",
        "sessions": "ok",
    }
    storage.close()
