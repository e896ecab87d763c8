"""Fork again and again while four threads hammer one table: each child works at once, with ids of its own.

Argument: "table", or "protocol" to reach the table through the record protocol of storages.

Without a GIL the child leaves those Python objects alone that the parent's threads were fighting for: the lock of
such an object may have been handed to a thread that does not exist in the child, and CPython 3.13 does not renew
it. A plain dict or list then hangs there as well.
"""

import os
import random
import signal
import sys
import threading
import time

from cysession import Manager, MemoryStorage, SessionGone
from cysession.ids import new_id
from cysession.testing import FaultyStorage


class Protocol(FaultyStorage):
    """The record protocol over another storage, without the lists that a FaultyStorage keeps."""

    def _begin(self, name: str, session_id: str) -> None:
        pass


FORKS, OPERATIONS, SECONDS = 15, 100, 2


def hammer(seed: int) -> None:
    draw = random.Random(seed)
    known: list[str] = []
    while not stop:
        session = manager.new(draw.choice(known) if known else "")
        session["n"] = session.get("n", 0) + 1
        session["list"] = [session["n"]]
        if draw.random() < 0.1:
            session.regenerate_id(delete_old=draw.random() < 0.5)
        try:
            session.close()
        except SessionGone:
            continue
        known = [*known[-50:], session.id]
        if draw.random() < 0.2:
            manager.new(known.pop(0)).destroy()
        memory.table.expire(10)
        shared["n"] = seed
        shared.save()


def child(report: int) -> None:
    """Everything once more, in a time that a lock left held by a thread of the parent would not allow."""
    signal.alarm(SECONDS)  # its default action ends the process
    memory.table._check()
    if getattr(sys, "_is_gil_enabled", lambda: True)():
        assert shared["n"] >= 0
        shared["child"] = os.getpid()
        shared.save()
    assert manager.new(shared_id)["n"] >= 0
    ids = []
    for n in range(OPERATIONS):
        with manager.new() as session:
            session["n"] = n
        ids.append(session.id)
        with manager.new(session.id) as session:
            assert session["n"] == n
            session["n"] = [n]
        if n % 3 == 0:
            manager.new(session.id).destroy()
    memory.table.expire(1000)
    memory.table._check()
    assert len(memory) >= OPERATIONS // 2
    assert memory._driver.running, "the child has no expiry thread"
    ids += [new_id() for _ in range(100)]
    os.write(report, "\n".join(ids).encode())
    os._exit(0)


def main() -> None:
    threads = [threading.Thread(target=hammer, args=(seed,), daemon=True) for seed in range(4)]
    for thread in threads:
        thread.start()
    drawn: set[str] = set()
    for n in range(FORKS):
        time.sleep(0.01 * (n % 3))
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                child(writer)
            finally:  # whatever went wrong was printed; never run the parent's code
                sys.excepthook(*sys.exc_info())
                os._exit(1)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            ids = set(pipe.read().split("\n"))
        _, status = os.waitpid(pid, 0)
        assert status == 0, f"child {n} ended with {os.waitstatus_to_exitcode(status)}"
        assert len(ids) == OPERATIONS + 100
        mine = {new_id() for _ in range(200)}
        assert not drawn & ids, "two children drew the same ids"
        assert not ids & mine, "a child drew its parent's ids"
        drawn |= ids | mine
    stop.append(1)
    for thread in threads:
        thread.join()
    memory.table._check()


stop: list[int] = []
memory = MemoryStorage()
manager = Manager(storage=Protocol(memory) if sys.argv[1] == "protocol" else memory)
shared = manager.new()
shared["n"] = 0
shared.save()
shared_id = shared.id
main()
sys.stdout.write("ok\n")
