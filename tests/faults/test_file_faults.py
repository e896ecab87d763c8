"""Faults under FileStorage: every file-system call fails or is the last; disks are full or read-only.

The record is the old one or the new one, the error is of the right class and names a cure, no descriptor
leaks, and the same process goes on working once the fault is over (R10, R13, R14).
"""

import errno
import gc
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cysession import Delta, FileStorage, Manager, Record
from cysession.codec import HEADER_SIZE
from cysession.errors import SessionError, StorageFull, StorageMisconfigured, StorageUnavailable
from cysession.ids import storage_key
from cysession.storage.file import records
from cysession.storage.users import index_name

HERE = Path(__file__).parent
TTL = 100_000_000_000


# ---- every call of every operation -------------------------------------------------------------------


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.fail("these tests compile a small library: install a C compiler (apt-get install gcc)")
    library = tmp_path_factory.mktemp("shim") / "shim.so"
    source = str(HERE / "shim.c")
    subprocess.run([compiler, "-O1", "-fPIC", "-shared", "-o", str(library), source, "-ldl"], check=True)
    return library


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory where there is such a thing: hundreds of real flushes would take minutes."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path / "s"
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as parent:
        yield Path(parent, "s")


def drive(shim: Path, root: Path, mode: str, durability: str, number: int = errno.EIO) -> int:
    """How many calls were struck, each without a problem."""
    *problems, last = run(shim, "drive_files.py", root, mode, durability, number).strip().splitlines()
    assert not problems, "\n".join(problems)
    return int(last.split()[1])


def run(shim: Path, script: str, *arguments: object) -> str:
    """What a script prints under the shim."""
    # Behind what is preloaded already: a sanitizer's runtime insists on being the first, and calls on to us.
    preload = f"{os.environ.get('LD_PRELOAD', '')} {shim}".strip()
    env = {**os.environ, "LD_PRELOAD": preload, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("when", ["kill_before", "kill_after"])
def test_R10_SIGKILL_at_every_call_leaves_the_old_or_the_new_record(
    shim: Path, root: Path, when: str
) -> None:
    assert drive(shim, root, when, "full") > 100


@pytest.mark.parametrize("name", ["EIO", "ENOSPC", "EMFILE", "EROFS"])
def test_R14_an_error_of_any_call_is_mapped_and_undone(shim: Path, root: Path, name: str) -> None:
    assert drive(shim, root, "fail", "full", getattr(errno, name)) > 100


def test_R10_a_write_that_stops_half_way_is_undone(shim: Path, root: Path) -> None:
    assert drive(shim, root, "short", "none") > 20


@pytest.mark.parametrize("durability", ["none", "full"])
def test_R14_a_directory_that_goes_away_at_any_call_takes_its_sessions_along_and_nothing_else(
    shim: Path, root: Path, durability: str
) -> None:
    assert drive(shim, root, "vanish", durability) > 100


@pytest.mark.parametrize("durability", ["data", "full"])
def test_await_never_flushes_on_the_thread_of_the_event_loop(shim: Path, root: Path, durability: str) -> None:
    on_the_loop, elsewhere = map(int, run(shim, "drive_loop.py", root, durability).split())
    assert on_the_loop == 0 and elsewhere > 8


# ---- a flipped byte ----------------------------------------------------------------------------------


def every_file(root: Path) -> dict[str, Path]:
    """A plain record, one with times of its own, the sign of a rotated id and the index of a user, by their ids."""
    storage = open_storage(root, durability="none")
    put(storage, "plain", {"user": "ada", "n": [1, {"x": None}]})
    record = Record.build({"x": 1}, storage.now_ns(), storage.now_ns() + TTL, TTL // 2)
    assert storage.create_record("timed", record, TTL)
    storage.rename_record("old", "new", put(storage, "old", {"x": 1}), TTL, 30_000_000_000)
    storage.note_user("ada", "plain", TTL)
    storage.close()
    names = ["plain", "timed", "old", index_name("ada")]
    keys = {name: storage_key(name) for name in names}
    return {name: root / key[0] / key[1] / key[2:] for name, key in keys.items()}


@pytest.mark.parametrize("keys", [[], [b"k" * 32]], ids=["plain", "sealed"])
def test_R13_a_flipped_byte_anywhere_is_a_missing_session_and_counted(
    root: Path, monkeypatch: pytest.MonkeyPatch, keys: list[bytes]
) -> None:
    if keys:
        pytest.importorskip("cryptography")
    monkeypatch.setattr(f"{__name__}.open_storage", partial(open_storage, keys=keys))
    files = every_file(root)
    reader = open_storage(root, cache=0)
    flipped = 0
    for name, path in files.items():
        whole = path.read_bytes()
        assert reader.peek_record(name, TTL) is not None
        for at in range(len(whole)):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
            assert reader.peek_record(name, TTL) is None, (name, at)
            flipped += 1
            assert reader.stats()["corrupt"] == flipped, (name, at)
        path.write_bytes(whole)
        assert reader.peek_record(name, TTL) is not None
    reader.close()
    assert flipped > 4 * HEADER_SIZE


# ---- real shortages ----------------------------------------------------------------------------------


def open_storage(root: Path, **options: Any) -> FileStorage:
    return FileStorage(root, sweep_every=0, **options)


def put(storage: FileStorage, name: str, data: dict[str, Any]) -> Record:
    made = Record.build(data, storage.now_ns())
    assert storage.create_record(name, made, TTL)
    return made


def raises(kind: type[SessionError], use: Callable[[], object], *words: str) -> None:
    """Exactly this class; a message that names the cure and neither a path nor an id."""
    with pytest.raises(kind) as caught:
        use()
    text = str(caught.value)
    assert type(caught.value) is kind and all(word in text for word in words), text
    assert "/" not in text and caught.value.__context__ is caught.value.__cause__ is None


@contextmanager
def mounted(directory: Path, options: str) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.fail("this test mounts a tmpfs: run it as root, as CI does")
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(directory)], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


@contextmanager
def limited(which: int, soft: int) -> Iterator[None]:
    before = resource.getrlimit(which)
    resource.setrlimit(which, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(which, before)


@pytest.mark.parametrize("options", ["size=256k,mode=0700", "size=8m,nr_inodes=60,mode=0700"])
def test_R14_a_full_disk_refuses_writes_and_nothing_else(tmp_path: Path, options: str) -> None:
    with mounted(tmp_path / "disk", options) as disk:
        storage = open_storage(disk / "s")
        base = put(storage, "a", {"x": "1" * 5000})
        count = 0
        with pytest.raises(StorageFull):
            while True:
                put(storage, f"filler{count}", {"x": "f" * 5000})
                count += 1
        bigger = Delta({"x": "2" * 200_000})
        if "size=256k" in options:
            raises(StorageFull, lambda: storage.commit_record("a", base, bigger, TTL), "free space")
        raises(StorageFull, lambda: put(storage, "b", {"x": "1" * 9000}), "free space or inodes")
        found = open_storage(disk / "s").load_record("a", TTL)
        assert found is not None and found["x"] == "1" * 5000
        assert storage.touch_record("a", base, TTL)
        assert not list(disk.rglob(".tmp-*"))
        assert all(storage.delete_record(f"filler{n}") for n in range(count))  # destroying needs no room
        storage.commit_record("a", base, Delta({"y": 2}), TTL)
        assert storage.get("a", "y") == 2
        storage.close()


def test_R14_a_read_only_disk_refuses_writes_but_still_reads(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=1m,mode=0700") as disk:
        storage = open_storage(disk / "s")
        storage.use_clock(lambda: now[0])
        now = [1_000_000.0]
        base = put(storage, "a", {"x": 1})
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        for use in (
            lambda: storage.commit_record("a", base, Delta({"x": 2}), TTL),
            lambda: storage.create_record("b", base, TTL),
            lambda: storage.delete_record("a"),
            lambda: storage.rename_record("a", "b", base, TTL, 0),
        ):
            raises(StorageUnavailable, use, "read-only", "EROFS")
        for reader in storage, open_storage(disk / "s"):
            reader.use_clock(storage.clock)
            found = reader.load_record("a", TTL)
            assert found is not None and found["x"] == 1
        with pytest.raises(StorageMisconfigured, match="read-only"):
            open_storage(disk / "other")
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        storage.commit_record("a", base, Delta({"x": 2}), TTL)
        assert storage.get("a", "x") == 2
        storage.close()


def test_R14_a_limit_on_file_size_is_no_crash(tmp_path: Path) -> None:
    storage = open_storage(tmp_path / "s")
    base = put(storage, "a", {"x": 1})
    with limited(resource.RLIMIT_FSIZE, 4096):
        raises(
            StorageFull, lambda: storage.commit_record("a", base, Delta({"x": "y" * 9000}), TTL), "ulimit -f"
        )
    found = open_storage(tmp_path / "s").load_record("a", TTL)
    assert found is not None and found["x"] == 1 and not list(tmp_path.rglob(".tmp-*"))
    storage.commit_record("a", base, Delta({"x": "y" * 9000}), TTL)


def test_R14_a_process_without_descriptors_is_unavailable_and_recovers(tmp_path: Path) -> None:
    gc.collect()  # storages of other tests would give their descriptors back in the middle
    storage = open_storage(tmp_path / "s")
    base = put(storage, "a", {"x": 1})
    cold = open_storage(tmp_path / "s")
    highest = max(int(fd) for fd in os.listdir("/proc/self/fd"))
    hogs = []
    with limited(resource.RLIMIT_NOFILE, highest + 20):
        try:
            while True:
                hogs.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            pass
        try:
            raises(StorageUnavailable, lambda: cold.load_record("a", TTL), "ulimit -n")
            raises(
                StorageUnavailable, lambda: storage.commit_record("a", base, Delta({"x": 2}), TTL), "EMFILE"
            )
            raises(StorageUnavailable, lambda: put(cold, "b", {"x": 1}), "ulimit -n")
            assert storage.load_record("a", TTL) is not None  # decoded before: no descriptor needed
        finally:
            for fd in hogs:
                os.close(fd)
    open_files = len(os.listdir("/proc/self/fd"))
    storage.commit_record("a", base, Delta({"x": 2}), TTL)
    assert cold.get("a", "x") == 2 and len(os.listdir("/proc/self/fd")) <= open_files + 1


def test_R20_a_failing_disk_never_looks_like_an_empty_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(tmp_path / "s", cache=0)
    manager = Manager(storage=storage)
    with manager.new() as session:
        session["user"] = "ada"
        name = session.id

    def broken(*_: object, **__: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO), "/secret/path")

    with monkeypatch.context() as patch:
        patch.setattr(records, "read_file", broken)
        for use in (lambda: manager.new(name).get("user"), lambda: manager.new(name).is_new):
            raises(StorageUnavailable, use, "check it")
    assert manager.new(name)["user"] == "ada"


# ---- power cuts --------------------------------------------------------------------------------------


@contextmanager
def image_mounted(image: Path, directory: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.fail("this test mounts an ext4 image: run it as root, as CI does")
    directory.mkdir()
    subprocess.run(["mount", "-o", "loop", str(image), str(directory)], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)  # lazy: also after a failure


def test_R11_R18_a_power_cut_leaves_old_or_new_and_full_loses_nothing(tmp_path: Path) -> None:
    """The image of a mounted ext4 is copied while in use, and the copies mounted: what a power cut leaves."""
    image = tmp_path / "image"
    image.write_bytes(b"")
    os.truncate(image, 16 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)

    def cut(name: str) -> Path:
        return Path(shutil.copyfile(image, tmp_path / name))

    with image_mounted(image, tmp_path / "disk") as disk:
        stores = {level: open_storage(disk / level, durability=level) for level in ("none", "data", "full")}
        bases = {level: put(storage, "a", {"x": 1}) for level, storage in stores.items()}
        put(stores["full"], "gone", {"x": 4})
        os.sync()
        for level, storage in stores.items():
            storage.commit_record("a", bases[level], Delta({"x": 2, "y": "new" * 100}), TTL)
        committed = cut("committed")  # at once: a later flush would take the earlier renames with it
        put(stores["full"], "fresh", {"x": 3})
        created = cut("created")
        assert stores["full"].delete_record("gone")
        deleted = cut("deleted")
        for storage in stores.values():
            storage.close()
    for n, copy in enumerate((committed, created, deleted)):
        with image_mounted(copy, tmp_path / f"after{n}") as disk:
            after = {level: open_storage(disk / level, durability=level) for level in bases}
            for level, storage in after.items():
                found = storage.load_record("a", TTL)
                assert storage.stats()["corrupt"] == 0
                assert found is not None, level
                assert found["x"] in (1, 2) and ("y" in found) == (found["x"] == 2), level
                storage.commit_record("a", found, Delta({"z": 1}), TTL)
            assert after["full"].get("a", "x") == 2
            assert after["full"].get("fresh", "x") == (3 if n >= 1 else None)
            assert (after["full"].load_record("gone", TTL) is None) == (n == 2)
            for storage in after.values():
                storage.close()
