"""The clean-up of FileStorage: incremental, one a host, harmless, and never in a request (R16, R12, G13)."""

import errno
import fcntl
import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cysession import Delta, FileStorage, Manager, Record, codec
from cysession.ids import storage_key
from cysession.storage.file import records

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # these tests fork beside threads

SECOND = 1_000_000_000
TTL = 100 * SECOND


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def storage(tmp_path: Path, clock: Clock) -> Iterator[FileStorage]:
    made = FileStorage(tmp_path / "s", durability="none", sweep_every=0, orphan_age=0.05)
    made.use_clock(clock)
    yield made
    made.close()


def put(storage: FileStorage, name: str, **times: int) -> Record:
    made = Record.build({"x": 1}, storage.now_ns(), **times)
    assert storage.create_record(name, made, TTL)
    return made


def path_of(storage: FileStorage, name: str) -> Path:
    key = storage_key(name)
    return Path(storage._directory.path, key[0], key[1], key[2:])


def wait_for(what: Callable[[], object], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# ---- what goes and what stays ------------------------------------------------------------------------


def test_what_has_expired_goes_and_what_lives_stays(storage: FileStorage, clock: Clock) -> None:
    put(storage, "idle")
    put(storage, "own", ttl=10 * SECOND)
    put(storage, "cap", cap=storage.now_ns() + 20 * SECOND)
    base = put(storage, "old")
    storage.rename_record("old", "new", base, TTL, 30 * SECOND)
    alive = {"idle", "own", "cap", "old", "new"}
    for at, dead in (9.999, set()), (10, {"own"}), (20, {"cap"}), (30, {"old"}), (99.999, set()):
        clock.now = 1_000_000 + at
        assert storage.sweep() == len(dead), at
        alive -= dead
        assert {
            name for name in ("idle", "own", "cap", "old", "new") if path_of(storage, name).exists()
        } == alive
    clock.now += 0.001
    assert storage.sweep() == 2
    assert (
        storage.stats()["expired"] == 4 and storage.stats()["signs"] == 1 and storage.stats()["passes"] == 6
    )


def test_a_session_in_use_is_not_swept(storage: FileStorage, clock: Clock) -> None:
    put(storage, "a")
    for _ in range(5):
        clock.now += 90
        assert storage.load_record("a", TTL) is not None
        assert storage.sweep() == 0


def test_the_longer_ttl_of_a_later_start_is_respected(storage: FileStorage, clock: Clock) -> None:
    put(storage, "a")
    storage.create_record("b", Record.build({"x": 1}, storage.now_ns()), 3 * TTL)
    clock.now += 200
    assert storage.sweep() == 0 and storage.load_record("a", 3 * TTL) is not None


SHORT = """
import sys
from cysession import FileStorage, Record
storage = FileStorage(sys.argv[1], durability="none", sweep_every=0)
storage.use_clock(lambda: float(sys.argv[2]))
storage.create_record("c", Record.build({"x": 1}, storage.now_ns()), 100_000_000_000)
print(storage.sweep())
"""


def sweep_elsewhere(storage: FileStorage, at: float) -> int:
    """How many files the clean-up of another process removes, which knows only TTL."""
    command = [sys.executable, "-c", SHORT, storage._directory.path, repr(at)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.parametrize("use", ["load", "commit", "rotate"])
def test_R16_another_process_with_a_shorter_ttl_removes_nothing_that_is_in_use_with_a_longer(
    storage: FileStorage, clock: Clock, use: str
) -> None:
    base = put(storage, "a")
    name = "b" if use == "rotate" else "a"
    if use == "load":
        assert storage.load_record("a", 10 * TTL) is not None  # so soon that there is no use to note
    elif use == "commit":
        storage.commit_record("a", base, Delta({"y": 2}), 10 * TTL)
    else:
        storage.rename_record("a", "b", base, 10 * TTL, 0)
    put(storage, "unused")
    assert sweep_elsewhere(storage, clock.now + 200) == 1
    assert path_of(storage, name).exists() and not path_of(storage, "unused").exists()
    clock.now += 200
    assert storage.load_record(name, 10 * TTL) is not None
    assert sweep_elsewhere(storage, clock.now + 1001) == 1
    assert not path_of(storage, name).exists()


def test_R16_a_commit_with_a_shorter_ttl_takes_nothing_from_the_longer_one(
    storage: FileStorage, clock: Clock
) -> None:
    base = Record.build({"x": 1}, storage.now_ns())
    storage.create_record("a", base, 10 * TTL)
    storage.commit_record("a", base, Delta({"y": 2}), TTL)
    assert sweep_elsewhere(storage, clock.now + 200) == 0
    clock.now += 200
    assert storage.load_record("a", TTL) is None  # whoever reads goes by the own ttl, as before
    assert storage.load_record("a", 10 * TTL) is not None


def test_R16_a_session_with_a_ttl_of_its_own_keeps_it(storage: FileStorage, clock: Clock) -> None:
    put(storage, "a", ttl=TTL)
    before = path_of(storage, "a").read_bytes()
    assert storage.load_record("a", 10 * TTL) is not None
    assert path_of(storage, "a").read_bytes() == before
    assert sweep_elsewhere(storage, clock.now + 101) == 1


def test_R16_the_index_of_a_user_lives_as_long_as_the_sessions_of_the_longest_ttl(
    storage: FileStorage, clock: Clock
) -> None:
    short, long = Manager(ttl=100, storage=storage), Manager(ttl=1000, storage=storage)
    with short.new() as session:
        session.bind("ada")
        name = session.id
    assert long.new(name).user == "ada"
    clock.now += 900
    assert sweep_elsewhere(storage, clock.now) == 0
    assert len(long.sessions_of("ada")) == 1 and long.revoke("ada") == 1


def test_a_full_disk_does_not_fail_a_read_that_has_a_longer_ttl_to_note(
    storage: FileStorage, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(storage, "a")

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(records, "replace_file", full)
        assert storage.load_record("a", 10 * TTL) is not None
    assert storage.load_record("a", 10 * TTL) is not None
    assert sweep_elsewhere(storage, clock.now + 200) == 0


def test_a_stuck_writer_does_not_fail_a_read_that_has_a_longer_ttl_to_note(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path / "s", durability="none", sweep_every=0, lock_timeout=0.05)
    put(storage, "a")
    stripe = int(storage_key("a")[-2:], 16) % 64
    held = os.open(tmp_path / "s" / ".cysession" / f"{stripe:02x}", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    assert storage.load_record("a", 10 * TTL) is not None
    os.close(held)
    assert storage.load_record("a", 10 * TTL) is not None
    storage.close()


def test_G13_junk_under_a_records_name_goes_however_short(storage: FileStorage) -> None:
    for n, junk in enumerate((b"", b"x", b"1234567", bytes(500), codec.MAGIC, codec.MAGIC + bytes(100))):
        put(storage, f"id{n}")
        path_of(storage, f"id{n}").write_bytes(junk)
    put(storage, "cut")
    os.truncate(path_of(storage, "cut"), 60)
    put(storage, "good")
    assert storage.sweep() == 7
    assert storage.stats()["torn"] == 7 and path_of(storage, "good").exists()


def test_orphans_go_by_age(storage: FileStorage) -> None:
    put(storage, "a")
    orphan = path_of(storage, "a").parent / ".tmp-0123456789abcdef-7"
    orphan.write_bytes(b"half a rec")
    os.utime(orphan, (0, 0))  # the storage's clock may say anything; the kernel's says it is new
    assert storage.sweep() == 0 and orphan.exists()
    time.sleep(0.06)
    assert storage.sweep() == 1 and not orphan.exists() and storage.stats()["orphans"] == 1


def test_foreign_files_and_future_formats_are_left_alone(storage: FileStorage, clock: Clock) -> None:
    put(storage, "a")
    put(storage, "future")
    path = path_of(storage, "future")
    newer = bytearray(path.read_bytes())
    newer[4] = codec.FORMAT + 1
    path.write_bytes(newer)
    root, leaf = Path(storage._directory.path), path_of(storage, "a").parent
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / ("0" * 62)).write_bytes(b"")
    foreign = [root / "README", root / "zz", leaf / "notes.txt", leaf / ("g" * 62), leaf / ("0" * 61)]
    for file in foreign:
        file.write_bytes(b"")
    (root / "0").mkdir(exist_ok=True)
    (root / "0" / "link").symlink_to(outside)
    (leaf / ("1" * 62)).symlink_to(outside / ("0" * 62))
    (leaf / ("2" * 62)).mkdir()
    (root / "d").symlink_to(outside) if not (root / "d").exists() else None
    os.mkfifo(leaf / ("3" * 62))
    clock.now += 1000
    time.sleep(0.06)
    assert storage.sweep() == 1  # "a", which has expired
    assert all(file.exists() for file in foreign) and path.exists()
    assert (
        (outside / ("0" * 62)).exists() and (leaf / ("1" * 62)).is_symlink() and (leaf / ("2" * 62)).is_dir()
    )


def test_a_record_written_again_after_the_first_look_stays(storage: FileStorage, clock: Clock) -> None:
    put(storage, "a")
    clock.now += 1000
    looked = storage._sweeper._verdict
    times = []

    def look_and_race(leaf: str, name: str) -> Any:
        verdict = looked(leaf, name)
        times.append(verdict)
        if len(times) == 1:  # between the look and the lock
            path_of(storage, "a").unlink()
            storage._files.write(storage._place("a"), Record.build({"x": 2}, 0), TTL, storage.now_ns())
        return verdict

    storage._sweeper._verdict = look_and_race  # type: ignore[method-assign]
    assert storage.sweep() == 0 and times == ["expired", None]
    assert storage.get("a", "x") == 2


def test_a_busy_stripe_is_left_for_the_next_round(storage: FileStorage, clock: Clock) -> None:
    put(storage, "a")
    clock.now += 1000
    stripe = storage._place("a").stripe
    storage._locks.acquire(stripe)
    assert storage.sweep() == 0
    storage._locks.release(stripe)
    assert storage.sweep() == 1


# ---- how it goes about it ----------------------------------------------------------------------------


def test_R16_a_call_keeps_its_budget_and_the_next_goes_on(storage: FileStorage, clock: Clock) -> None:
    for n in range(300):
        put(storage, f"id{n}")
    clock.now += 1000
    removed, calls = 0, 0
    while removed < 300:
        started = time.monotonic()
        removed += storage.sweep(budget_s=0.002)
        assert time.monotonic() - started < 0.25
        calls += 1
        assert calls < 1000
    assert calls > 2


def test_R16_one_sweeper_a_host(storage: FileStorage, clock: Clock) -> None:
    put(storage, "a")
    clock.now += 1000
    lock = os.open(Path(storage._directory.path, ".cysession", "sweep"), os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert storage.sweep() == 0 and path_of(storage, "a").exists()
    os.close(lock)
    assert storage.sweep() == 1


def test_the_thread_starts_with_the_first_write_and_cleans_up(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path / "s", durability="none", sweep_every=0.05)
    assert not storage._sweeper._driver.running
    assert storage.load_record("a", TTL) is None
    assert not storage._sweeper._driver.running
    for n in range(50):
        storage.create_record(f"id{n}", Record.build({"x": 1}, storage.now_ns()), SECOND // 10)
    assert storage._sweeper._driver.running
    wait_for(lambda: storage.stats()["expired"] == 50)
    storage.close()
    wait_for(lambda: not storage._sweeper._driver.running)
    assert len(list((tmp_path / "s").rglob("[0-9a-f]" * 62))) == 0


def test_a_round_that_just_ended_elsewhere_is_not_repeated(tmp_path: Path) -> None:
    one = FileStorage(tmp_path / "s", durability="none", sweep_every=1000)
    two = FileStorage(tmp_path / "s", durability="none", sweep_every=1000)
    one.create_record("a", Record.build({"x": 1}, one.now_ns()), TTL)
    one.sweep()
    assert two._sweeper._step() > 100 and two.stats()["passes"] == 0
    two.sweep()  # asked for it, it does
    assert two.stats()["passes"] == 1
    one.close()
    two.close()


def test_the_thread_survives_whatever_the_disk_does(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path / "s", durability="none", sweep_every=0.01)
    storage.create_record("a", Record.build({"x": 1}, storage.now_ns()), TTL)
    wait_for(lambda: storage.stats()["passes"] > 0)
    control = tmp_path / "s" / ".cysession"
    control.rename(tmp_path / "away")
    time.sleep(0.1)
    (tmp_path / "away").rename(control)
    passes = storage.stats()["passes"]
    wait_for(lambda: storage.stats()["passes"] > passes)
    storage.close()


def test_a_storage_that_nobody_uses_any_more_lets_its_thread_end(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path / "s", durability="none", sweep_every=0.05)
    storage.create_record("a", Record.build({"x": 1}, storage.now_ns()), TTL)
    thread = storage._sweeper._driver._thread
    assert thread is not None
    gc.disable()  # it is not even a cycle
    try:
        del storage
        wait_for(lambda: not thread.is_alive())
    finally:
        gc.enable()


def test_a_process_with_a_running_sweeper_exits_at_once(tmp_path: Path) -> None:
    code = f"""
from cysession import FileStorage, Manager
manager = Manager(storage=FileStorage({str(tmp_path / "s")!r}, sweep_every=3600))
with manager.new() as session:
    session["x"] = 1
import time; print(time.time())
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert time.time() - float(run.stdout) < 1.0 and run.stderr == ""


def test_a_forked_child_sweeps_with_a_thread_of_its_own(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path / "s", durability="none", sweep_every=0.05)
    base = Record.build({"x": 1}, storage.now_ns())
    storage.create_record("a", base, TTL)
    storage._sweeper._busy.acquire()  # in the middle of a slice
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            storage.commit_record("a", base, Delta({"y": 2}), TTL)
            storage.create_record("b", Record.build({"x": 1}, storage.now_ns(), ttl=SECOND // 100), TTL)
            wait_for(lambda: storage.stats()["expired"] == 1)
            code = 0 if storage._sweeper._driver.running else 2
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    storage._sweeper._busy.release()
    assert storage.get("a", "y") == 2
    storage.close()


def test_sweeping_beside_requests_removes_nothing_that_lives(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path / "s", durability="none", sweep_every=0)
    names = [f"id{n}" for n in range(50)]
    for name in names:
        storage.create_record(name, Record.build({"n": 0}, storage.now_ns()), TTL)
    stop = threading.Event()

    def sweep() -> None:
        while not stop.is_set():
            storage.sweep(0.01)

    thread = threading.Thread(target=sweep)
    thread.start()
    for n in range(1, 6):
        for name in names:
            base = storage.load_record(name, TTL)
            assert base is not None
            storage.commit_record(name, base, Delta({"n": n}), TTL)
    stop.set()
    thread.join()
    assert all(storage.get(name, "n") == 5 for name in names)
    storage.close()
