"""The directory of FileStorage is private, checked, and found again when it was removed (V10, R14)."""

import gc
import os
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest

from cysession import Delta, FileStorage, Manager, Record
from cysession.errors import SessionGone, StorageMisconfigured, StorageUnavailable
from cysession.ids import storage_key

TTL = 100_000_000_000
OTHER_USER = 65534


def open_storage(path: object) -> FileStorage:
    return FileStorage(path, durability="none", sweep_every=0)  # type: ignore[arg-type]


def put(storage: FileStorage, name: str) -> Record:
    made = Record.build({"x": 1}, storage.now_ns())
    assert storage.create_record(name, made, TTL)
    return made


def path_of(root: Path, name: str) -> Path:
    key = storage_key(name)
    return root / key[0] / key[1] / key[2:]


def must_be_root() -> None:
    if os.geteuid() != 0:
        pytest.fail("this test gives files to another user: run it as root, as CI does")


# ---- modes -------------------------------------------------------------------------------------------


def test_V10_directories_are_0700_and_files_0600_under_any_umask(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        root = tmp_path / "deep" / "er" / "sessions"
        storage = open_storage(root)
        base = put(storage, "a")
        storage.commit_record("a", base, Delta({"y": 2}), TTL)
        storage.sweep()
    finally:
        os.umask(old)
    made = [tmp_path / "deep", tmp_path / "deep" / "er", root, *root.rglob("*")]
    assert len(made) > 5
    for path in made:
        want = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == want, path


def test_V10_an_empty_directory_that_others_may_look_into_is_closed_to_them(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir(mode=0o755)
    open_storage(tmp_path / "s")
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o700
    (tmp_path / "s").chmod(0o755)  # and so is one that is already ours
    open_storage(tmp_path / "s")
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o700


def test_a_directory_with_other_things_in_it_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir(mode=0o755)
    (tmp_path / "s" / "app.db").write_text("not ours")
    storage = open_storage(tmp_path / "s")
    put(storage, "a")
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "s" / ".cysession").stat().st_mode) == 0o700


# ---- who else could reach it -------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o702])
def test_V10_a_directory_that_others_can_write_is_refused(tmp_path: Path, mode: int) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s").chmod(mode)
    with pytest.raises(StorageMisconfigured, match="chmod 700"):
        open_storage(tmp_path / "s")


def test_V10_a_planted_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "s").symlink_to(tmp_path / "real")
    with pytest.raises(StorageMisconfigured, match="symbolic link"):
        open_storage(tmp_path / "s")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(StorageMisconfigured):
        open_storage(tmp_path / "dangling")
    assert not list((tmp_path / "real").iterdir()) and not (tmp_path / "nowhere").exists()


def test_V10_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    must_be_root()
    (tmp_path / "s").mkdir()
    os.chown(tmp_path / "s", OTHER_USER, OTHER_USER)
    with pytest.raises(StorageMisconfigured, match="another user"):
        open_storage(tmp_path / "s")


def test_a_file_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("x")
    for path in tmp_path / "s", tmp_path / "s" / "below":
        with pytest.raises(StorageMisconfigured):
            open_storage(path)


def test_V10_links_below_the_root_lead_nowhere(tmp_path: Path) -> None:
    storage = open_storage(tmp_path / "s")
    put(storage, "a")
    record = path_of(tmp_path / "s", "a")
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o700)
    shutil.copy2(record, outside / record.name)
    before = (outside / record.name).read_bytes()

    record.unlink()
    record.symlink_to(outside / record.name)  # a record
    fresh = open_storage(tmp_path / "s")
    assert fresh.load_record("a", TTL) is None and fresh.stats()["corrupt"] == 1
    put(fresh, "a")
    assert not record.is_symlink() and (outside / record.name).read_bytes() == before

    shutil.rmtree(record.parent)
    record.parent.symlink_to(outside)  # a directory
    fresh = open_storage(tmp_path / "s")
    with pytest.raises(StorageUnavailable):
        fresh.load_record("a", TTL)
    with pytest.raises(StorageUnavailable):
        fresh.create_record("a", Record.build({"x": 1}, 0), TTL)
    assert (outside / record.name).read_bytes() == before and len(list(outside.iterdir())) == 1


def test_V10_a_record_of_another_user_or_kind_is_no_record(tmp_path: Path) -> None:
    must_be_root()
    storage = open_storage(tmp_path / "s")
    for name in "abc":
        put(storage, name)
    os.chown(path_of(tmp_path / "s", "a"), OTHER_USER, OTHER_USER)
    for name in "b", "c":
        path_of(tmp_path / "s", name).unlink()
    os.mkfifo(path_of(tmp_path / "s", "b"))
    path_of(tmp_path / "s", "c").mkdir()
    fresh = open_storage(tmp_path / "s")
    assert [fresh.load_record(name, TTL) for name in "abc"] == [None] * 3  # and a pipe makes nobody wait
    assert fresh.stats()["corrupt"] == 3


def test_V10_another_user_gets_at_nothing() -> None:
    must_be_root()
    with tempfile.TemporaryDirectory() as parent:
        os.chmod(parent, 0o755)
        root = Path(parent, "s")
        put(open_storage(root), "a")
        script = f"cat {path_of(root, 'a')} || ls {root} || touch {root}/x"
        ids = [f"--reuid={OTHER_USER}", f"--regid={OTHER_USER}", "--clear-groups"]
        run = subprocess.run(
            ["setpriv", *ids, "sh", "-c", script], capture_output=True, text=True, check=False
        )
        assert run.returncode != 0 and run.stdout == "" and run.stderr.count("ermission denied") == 3


# ---- where it is -------------------------------------------------------------------------------------


def test_the_default_directory_is_this_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with Manager() as manager, manager.new() as session:
        session["x"] = 1
    assert (tmp_path / "state" / "cysession" / "sessions" / ".cysession").is_dir()
    for unset in "", "relative/path":
        monkeypatch.setenv("XDG_STATE_HOME", unset)
        FileStorage().close()
        assert (tmp_path / "home" / ".local" / "state" / "cysession" / "sessions" / ".cysession").is_dir()


def test_a_relative_path_is_not_moved_by_chdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    storage = open_storage("s")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    put(storage, "a")
    shutil.rmtree(tmp_path / "s")
    put(storage, "b")
    assert path_of(tmp_path / "s", "b").exists() and not list((tmp_path / "elsewhere").iterdir())


# ---- when it goes away -------------------------------------------------------------------------------


def test_R14_a_removed_directory_is_made_again(tmp_path: Path) -> None:
    root = tmp_path / "s"
    storage = open_storage(root)
    base = put(storage, "a")
    shutil.rmtree(root)
    assert storage.load_record("a", TTL) is None  # its sessions are gone, and that is the truth
    assert root.is_dir() and stat.S_IMODE(root.stat().st_mode) == 0o700
    put(storage, "a")
    assert open_storage(root).load_record("a", TTL) is not None

    shutil.rmtree(root)
    with pytest.raises(SessionGone):
        storage.commit_record("a", base, Delta({"x": 2}), TTL)
    assert not list(root.rglob("[0-9a-f]" * 62))
    shutil.rmtree(root, ignore_errors=True)
    put(storage, "b")  # the first thing it hears of it is a write
    assert open_storage(root).load_record("b", TTL) is not None
    shutil.rmtree(root)
    assert not storage.delete_record("b")
    storage.sweep()


def test_R14_parts_of_the_directory_may_go_too(tmp_path: Path) -> None:
    root = tmp_path / "s"
    storage = open_storage(root)
    base = put(storage, "a")
    shutil.rmtree(path_of(root, "a").parent)
    with pytest.raises(SessionGone):
        storage.commit_record("a", base, Delta({"x": 2}), TTL)
    put(storage, "a")
    shutil.rmtree(path_of(root, "a").parent.parent)
    assert storage.load_record("a", TTL) is None
    put(storage, "a")
    shutil.rmtree(root / ".cysession")
    storage.commit_record("a", storage.load_record("a", TTL) or base, Delta({"x": 3}), TTL)
    storage.sweep()
    assert storage.get("a", "x") == 3


def test_R14_a_directory_replaced_by_another_is_followed(tmp_path: Path) -> None:
    root = tmp_path / "s"
    storage = open_storage(root)
    put(storage, "a")
    root.rename(tmp_path / "moved")
    newer = open_storage(root)
    put(newer, "b")
    assert storage.load_record("b", TTL) is not None
    put(storage, "c")
    assert newer.load_record("c", TTL) is not None and storage.load_record("a", TTL) is None


def test_R14_what_cannot_be_made_again_is_unavailable_not_empty(tmp_path: Path) -> None:
    root = tmp_path / "s"
    storage = open_storage(root)
    base = put(storage, "a")
    shutil.rmtree(root)
    root.symlink_to(tmp_path)
    for attempt in (
        lambda: storage.load_record("a", TTL),
        lambda: storage.create_record("a", base, TTL),
        lambda: storage.commit_record("a", base, Delta({"x": 2}), TTL),
        lambda: storage.delete_record("a"),
    ):
        with pytest.raises((StorageUnavailable, StorageMisconfigured)):
            attempt()
    root.unlink()
    put(storage, "a")  # and it recovers without a restart


def test_R2_a_removed_lock_file_locks_nobody_out_and_nobody_in(tmp_path: Path) -> None:
    one, two = open_storage(tmp_path / "s"), open_storage(tmp_path / "s")
    put(one, "a")
    for n in range(6):
        for storage in one, two:
            found = storage.load_record("a", TTL)
            assert found is not None
            storage.commit_record("a", found, Delta({f"k{n}{storage is one}": n}), TTL)
        for lock in (tmp_path / "s" / ".cysession").iterdir():
            lock.unlink()
    assert one.get_size("a") == 13
    stripe = one._place("a").stripe
    one._locks.acquire(stripe)
    assert not two._locks.acquire(stripe, wait=False)  # both look at the same new file
    one._locks.release(stripe)


def test_close_gives_every_descriptor_back(tmp_path: Path) -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    gc.collect()
    before = count()
    for _ in range(3):
        storage = open_storage(tmp_path / "s")
        for n in range(20):
            put(storage, f"id{n}")
        storage.sweep()
        for n in range(20):
            storage.delete_record(f"id{n}")
        storage.close()
    assert count() == before
    abandoned = open_storage(tmp_path / "s")
    put(abandoned, "a")
    del abandoned
    gc.collect()
    assert count() == before
