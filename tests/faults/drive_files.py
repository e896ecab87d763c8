"""Run by test_file_faults.py under the shim: strikes each file-system call of each operation in turn.

    python drive_files.py <directory> fail|short|kill_before|kill_after|vanish <durability> [errno]

Prints one line a problem and, last, how many calls were struck.
"""

import ctypes
import errno
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cysession import Delta, FileStorage, Record
from cysession.errors import SessionGone, StorageFull, StorageUnavailable

SECOND = 1_000_000_000
TTL = 100 * SECOND
MODES = {"fail": 1, "kill_before": 2, "kill_after": 3, "short": 4, "vanish": 5}

shim = ctypes.CDLL(None)
shim.fault_last.restype = ctypes.c_char_p
root = Path(sys.argv[1])
removal = f"exec env -u LD_PRELOAD rm -rf {shlex.quote(str(root))}".encode()
shim.fault_vanish(removal)  # which keeps the pointer, not the text
mode, durability = sys.argv[2], sys.argv[3]
number = int(sys.argv[4]) if len(sys.argv) > 4 else errno.EIO
now = [1_000_000.0]
OLD: dict[str, Any] = {"x": 1, "old": "o" * 300}
problems: list[str] = []


def open_storage() -> FileStorage:
    storage = FileStorage(root, durability=durability, sweep_every=0, lock_timeout=0.5, orphan_age=0.0)
    storage.use_clock(lambda: now[0])
    return storage


def state(storage: FileStorage, name: str) -> dict[str, Any] | None:
    found = storage.load_record(name, TTL)
    return None if found is None else found.to_dict()


def states(storage: FileStorage) -> tuple[Any, ...]:
    return tuple(state(storage, name) for name in ("a", "b", "new"))


NEW = {**OLD, "x": 2, "y": 3}
Op = Callable[[FileStorage, Record], object]
# An operation, and the states of the sessions "a" (which exists), "b" and "new" after it.
OPERATIONS: dict[str, tuple[Op, tuple[Any, ...]]] = {
    "load": (lambda s, base: s.load_record("a", TTL), (OLD, None, None)),
    "create": (lambda s, base: s.create_record("b", Record.build({"n": 1}, 0), TTL), (OLD, {"n": 1}, None)),
    "commit": (lambda s, base: s.commit_record("a", base, Delta({"x": 2, "y": 3}), TTL), (NEW, None, None)),
    "empty": (lambda s, base: s.commit_record("a", base, Delta(cleared=True), TTL), (None, None, None)),
    "delete": (lambda s, base: s.delete_record("a"), (None, None, None)),
    "rotate": (lambda s, base: s.rename_record("a", "new", base, TTL, 0), (None, None, OLD)),
    "grace": (lambda s, base: s.rename_record("a", "new", base, TTL, 30 * SECOND), (OLD, None, OLD)),
}
BEFORE = (OLD, None, None)


def prepare(cold: bool) -> tuple[FileStorage, Record]:
    shutil.rmtree(root, ignore_errors=True)
    storage = open_storage()
    base = Record.build(OLD, storage.now_ns())
    storage.create_record("a", base, TTL)
    now[0] += 50  # so that a load also notes a use
    return (open_storage() if cold else storage), base


def check(label: str, found: tuple[Any, ...], wanted: tuple[Any, ...], alike: str) -> None:
    """Old or new, nothing else. A rotation that was cut may leave both: its owner notices nothing."""
    allowed = [BEFORE, wanted] + ([(OLD, None, OLD)] if alike in ("rotate", "grace") else [])
    if found not in allowed:
        problems.append(f"{label}: {found}")


def check_nothing_is_left(label: str, found: tuple[Any, ...], failure: BaseException | None) -> None:
    """The directory went away in the middle: its sessions are gone with it. What was to be created may be there."""
    if found[0] is not None or found[1] not in (None, {"n": 1}) or found[2] is not None:
        problems.append(f"{label}: {found}")
    if not isinstance(failure, StorageUnavailable | SessionGone | None):
        problems.append(f"{label}: {failure!r}")


def strike_once(name: str, cold: bool, n: int) -> bool:
    """Strike call number n of an operation. False: it has fewer calls."""
    operation, wanted = OPERATIONS[name]
    storage, base = prepare(cold)
    label = f"{name}{' cold' if cold else ''} {n}"
    if mode.startswith("kill"):
        return kill_once(label, name, n, storage, base)
    open_files = len(os.listdir("/proc/self/fd"))
    failure: BaseException | None = None
    shim.fault_arm(MODES[mode], n, number)
    try:
        operation(storage, base)
    except BaseException as error:
        failure = error
    calls = shim.fault_disarm()
    if calls <= n:
        return False
    label += f" {shim.fault_last().decode()}"
    after = states(storage)
    if mode == "vanish":
        check_nothing_is_left(label, after, failure)
        recover(label, storage)
        return True
    check(label, after, wanted, name)
    if states(open_storage()) != after:
        problems.append(f"{label}: this process and the next see different things")
    if failure is None:
        if after != wanted and name != "load":
            problems.append(f"{label}: no error and nothing done")
    elif not isinstance(failure, StorageUnavailable):
        problems.append(f"{label}: {failure!r}")
    elif mode == "fail" and (number in (errno.ENOSPC, errno.EDQUOT)) != isinstance(failure, StorageFull):
        problems.append(f"{label}: the wrong class, {failure!r}")
    elif str(root) in str(failure) or failure.__context__ or failure.__cause__:
        problems.append(f"{label}: the error shows where it came from")
    if len(os.listdir("/proc/self/fd")) > open_files + 3:  # up to 3 lock files that stay open on purpose
        problems.append(f"{label}: a descriptor leaked")
    recover(label, storage)
    return True


def kill_once(label: str, name: str, n: int, storage: FileStorage, base: Record) -> bool:
    pid = os.fork()
    if pid == 0:
        shim.fault_arm(MODES[mode], n, 0)
        try:
            OPERATIONS[name][0](storage, base)
        finally:
            os._exit(0)
    status = os.waitpid(pid, 0)[1]
    if status == 0:
        return False
    check(label, states(open_storage()), OPERATIONS[name][1], name)
    recover(label, open_storage())
    return True


def recover(label: str, storage: FileStorage) -> None:
    """After a fault everything works again, in the same process, without a restart."""
    try:
        for session in ("a", "b", "new"):
            found = storage.load_record(session, TTL)
            if found is None:
                storage.create_record(session, Record.build({"again": 0}, storage.now_ns()), TTL)
                found = storage.load_record(session, TTL)
            assert found is not None
            storage.commit_record(session, found, Delta({"again": 1}), TTL)
        for reader in storage, open_storage():
            assert all((state(reader, session) or {})["again"] == 1 for session in ("a", "b", "new"))
        storage.sweep()
        assert not list(root.rglob(".tmp-*")), "orphans stay"
        assert storage.stats()["torn"] == 0, "a torn file was there"
    except (AssertionError, StorageUnavailable, SessionGone) as error:
        problems.append(f"{label}: no recovery, {error!r}")


struck = 0
for operation_name in OPERATIONS:
    for is_cold in (False, True):
        call = 0
        while strike_once(operation_name, is_cold, call):
            call += 1
            if call > 200:
                problems.append(f"{operation_name}: no end of calls")
                break
        struck += call
sys.stdout.write("".join(f"{problem}\n" for problem in problems) + f"struck {struck}\n")
