"""Many processes on one directory: nothing lost, nothing torn, nothing undone (R1, R2, R5, R10, R12)."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cysession import Delta, FileStorage, Manager, Record
from cysession.errors import SessionGone, StorageUnavailable
from cysession.ids import storage_key

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # these tests fork beside threads

SECOND = 1_000_000_000
TTL = 100 * SECOND


def open_storage(root: Path, **options: float) -> FileStorage:
    return FileStorage(root, durability="none", sweep_every=0, **options)  # type: ignore[arg-type]


def child(work: Callable[[], object]) -> int:
    """The pid of a forked process that does this work and ends with 0 if it came to its end."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException as error:
            os.write(2, f"child: {error!r}\n".encode())
        finally:
            os._exit(code)
    return pid


def join(*pids: int) -> None:
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * len(pids)


def test_R2_eight_processes_set_200_keys_each_and_1600_are_there(tmp_path: Path) -> None:
    manager = Manager(storage=open_storage(tmp_path), max_bytes=0)
    with manager.new() as session:
        session["start"] = True
        name = session.id

    def work(worker: int) -> None:
        mine = (
            Manager(storage=open_storage(tmp_path), max_bytes=0) if worker % 2 else manager
        )  # inherited too
        for n in range(200):
            with mine.new(name) as session:
                session[f"{worker}-{n}"] = n

    join(*(child(lambda w=w: work(w)) for w in range(8)))  # type: ignore[misc]
    found = Manager(storage=open_storage(tmp_path)).new(name).get_map()
    assert len(found) == 1601
    assert all(found[f"{w}-{n}"] == n for w in range(8) for n in range(200))
    assert not list(tmp_path.rglob(".tmp-*"))


def test_R12_readers_never_see_a_torn_or_empty_session(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    storage.create_record("a", Record.build({"one": "0", "two": "0"}, storage.now_ns()), TTL)

    def write() -> None:
        for n in range(400):
            base = storage.load_record("a", TTL)
            assert base is not None
            text = "x" * (n * 37 % 3000)
            storage.commit_record("a", base, Delta({"one": text, "two": text}), TTL)

    def read() -> None:
        mine = open_storage(tmp_path)
        for _ in range(1500):
            found = mine.load_record("a", TTL)
            assert found is not None and found["one"] == found["two"]
        assert mine.stats()["corrupt"] == 0

    join(*(child(work) for work in (write, read, write, read)))


def test_V5_a_session_destroyed_in_one_process_never_comes_back_from_another(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    names = [f"id{n}" for n in range(60)]
    for name in names:
        storage.create_record(name, Record.build({"n": 0}, storage.now_ns()), TTL)

    def use() -> None:
        for _ in range(3):
            for name in names:
                base = storage.load_record(name, TTL)
                if base is None:
                    continue
                try:
                    storage.commit_record(name, base, Delta({"n": os.getpid()}), TTL)
                    storage.touch_record(name, base, TTL)
                    storage.rename_record(name, name + "x", base, TTL, TTL)
                except (SessionGone, StorageUnavailable):  # the second: two rotations to the same fresh id
                    pass

    def destroy() -> None:
        for name in names:
            assert storage.delete_record(name)

    join(child(use), child(use), child(destroy))
    fresh = open_storage(tmp_path)
    assert [
        name for name in names if fresh.load_record(name, TTL) or fresh.load_record(name + "x", TTL)
    ] == []


def test_R1_one_of_many_creators_wins(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    made = [tmp_path / f"won-{n}" for n in range(4)]

    def work(n: int) -> None:
        won = 0
        for k in range(50):
            won += storage.create_record(f"id{k}", Record.build({"by": n}, storage.now_ns()), TTL)
        made[n].write_text(str(won))

    join(*(child(lambda n=n: work(n)) for n in range(4)))  # type: ignore[misc]
    assert sum(int(path.read_text()) for path in made) == 50


def test_locks_of_a_killed_process_are_free_and_its_leftovers_are_swept(tmp_path: Path) -> None:
    storage = open_storage(tmp_path, orphan_age=0.0)
    storage.create_record("a", Record.build({"x": 1}, storage.now_ns()), TTL)
    read, write = os.pipe()

    def hang() -> None:
        storage._locks.acquire(storage._place("a").stripe)
        key = storage_key("a")
        (tmp_path / key[0] / key[1] / ".tmp-dead-1").write_bytes(b"half")
        os.write(write, b"!")
        time.sleep(60)

    pid = child(hang)
    os.read(read, 1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    base = storage.load_record("a", TTL)
    assert base is not None
    storage.commit_record("a", base, Delta({"x": 2}), TTL)
    time.sleep(0.02)
    assert storage.sweep() == 1 and storage.get("a", "x") == 2


def test_a_writer_that_never_ends_costs_others_the_timeout_not_for_ever(tmp_path: Path) -> None:
    storage = open_storage(tmp_path, lock_timeout=0.2)
    storage.create_record("a", Record.build({"x": 1}, storage.now_ns()), TTL)
    base = storage.load_record("a", TTL)
    assert base is not None
    read, write = os.pipe()

    def hang() -> None:
        storage._locks.acquire(storage._place("a").stripe)
        os.write(write, b"!")
        time.sleep(60)

    pid = child(hang)
    os.read(read, 1)
    try:
        started = time.monotonic()
        with pytest.raises(StorageUnavailable, match="lock"):
            storage.commit_record("a", base, Delta({"x": 2}), TTL)
        assert 0.1 < time.monotonic() - started < 2
        assert storage.load_record("a", TTL) is not None  # readers do not wait
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    storage.commit_record("a", base, Delta({"x": 2}), TTL)
    assert storage.get("a", "x") == 2


def test_R30_a_child_forked_in_the_middle_of_a_commit_is_no_part_of_it(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    base = Record.build({"x": 1}, storage.now_ns())
    storage.create_record("a", base, TTL)
    stripe = storage._place("a").stripe
    storage._locks.acquire(stripe)
    pid = child(lambda: storage.commit_record("a", base, Delta({"child": 1}), TTL))
    time.sleep(0.2)
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)  # the parent's lock counts for the child ...
    storage._locks.release(stripe)
    join(pid)  # ... and the child did not need the parent's thread to let go of anything else
    pid = child(lambda: time.sleep(60))
    storage._locks.acquire(stripe)
    storage._locks.release(stripe)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert storage.get("a", "child") == 1


def test_a_session_outlives_the_process_that_made_it(tmp_path: Path) -> None:
    code = f"""
import os, signal
from cysession import FileStorage, Manager
with Manager(storage=FileStorage({str(tmp_path / "s")!r})).new() as session:
    session["user"] = "ada"
print(session.id, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert run.returncode == -signal.SIGKILL
    assert Manager(storage=FileStorage(tmp_path / "s")).new(run.stdout.strip())["user"] == "ada"
