"""Create, touch, commit, rotate, expire: memory and objects stay level. Argument: how many sessions."""

import gc
import sys

from cysession import Manager, MemoryStorage, Record
from cysession._core import SessionTable

MEGABYTE = 1 << 20


def resident() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096


def sessions_of_a_table(n: int) -> None:
    table, ns = SessionTable(10, clock=lambda: clock[0], on_expire=heard), 0
    while n > 0:
        for i in range(2000):
            session_id = f"a-session-id-that-is-as-long-as-ours-{ns}-{i}"
            table.add(
                session_id, Record.build({"user": session_id, "cart": [i], "n": i}, 0) if i % 2 else None
            )
            table.touch(session_id)
        clock[0] += 20
        ns += 1
        while table.expire(512)[1]:
            pass
        assert len(table) == 0
        n -= 2000


def sessions_of_a_manager(n: int) -> None:
    storage = MemoryStorage(on_expire=heard)
    manager = Manager(10, storage, clock=lambda: clock[0])
    while n > 0:
        for i in range(1000):
            with manager.new() as session:
                session["user"], session["cart"] = f"user {i}", [i, {"n": i}]
            with manager.new(session.id) as session:
                session["cart"].append(i)
            if i % 4 == 0:
                session = manager.new(session.id)
                session.regenerate_id(delete_old=i % 8 == 0)
                if i % 16 == 0:
                    session.destroy()
        clock[0] += 100
        while storage.table.expire(512)[1]:
            pass
        assert len(storage) == 0
        n -= 1000
    storage.close()


def heard(gone: list[tuple[str, Record | None]]) -> None:
    expired[0] += len(gone)


clock, expired = [1000.0], [0]
total = int(sys.argv[1]) if len(sys.argv) > 1 else 400_000
for work, n in ((sessions_of_a_table, total), (sessions_of_a_manager, total // 8)):
    work(n // 4)  # by then every free list and arena has its size
    gc.collect()
    objects, memory, count = len(gc.get_objects()), resident(), expired[0]
    work(n)
    gc.collect()
    assert expired[0] - count >= n * 0.9
    grown = resident() - memory
    assert grown < 2 * MEGABYTE, f"{work.__name__}: {grown / MEGABYTE:.1f} MB more after {n} sessions"
    assert len(gc.get_objects()) - objects < 50, f"{len(gc.get_objects()) - objects} objects more"
sys.stdout.write("ok\n")
