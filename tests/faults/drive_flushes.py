"""Run by test_file_faults.py under the shim: how often the steps of one session's life flush the disk.

    python drive_flushes.py <directory> none|data|full

Prints the flushes of a create, of a commit to what this process has seen, and of one by a process that has not.
"""

import ctypes
import sys
from itertools import pairwise

from cysession import Delta, FileStorage, Record

TTL = 600 * 1_000_000_000

shim = ctypes.CDLL(None)


def flushes() -> int:
    return int(shim.fault_flushes(1))


def open_storage() -> FileStorage:
    return FileStorage(sys.argv[1], durability=sys.argv[2], sweep_every=0)


storage, other = open_storage(), open_storage()
record = Record.build({"x": 1}, storage.now_ns())
counts = [flushes()]
assert storage.create_record("a", record, TTL)
counts.append(flushes())
assert storage.commit_record("a", record, Delta({"y": 2}), TTL) is not None
counts.append(flushes())
assert other.commit_record("a", record, Delta({"z": 3}), TTL) is not None
counts.append(flushes())
sys.stdout.write(" ".join(str(now - before) for before, now in pairwise(counts)) + "\n")
