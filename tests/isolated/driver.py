"""The expiry driver: starts with the first session, again in a forked child, and holds up no exit."""

import os
import sys
import time

import cysession.storage.memory as memory
from cysession import Manager, MemoryStorage

memory.TICK = 0.01  # and the clock below runs 500 times as fast as ours: a tick of the wheel is 2 ms
begin = time.monotonic()
heard: list[str] = []
storage = MemoryStorage(on_expire=lambda gone: heard.extend(i for i, _ in gone))
manager = Manager(10, storage, clock=lambda: (time.monotonic() - begin) * 500)


def expect(n: int) -> None:
    """That many sessions expire although nobody calls."""
    deadline = time.monotonic() + 5
    while len(heard) < n and time.monotonic() < deadline:
        time.sleep(0.005)
    assert len(heard) == n, f"{len(heard)} of {n} sessions expired in 5 seconds"


def store(n: int) -> None:
    for _ in range(n):
        with manager.new() as session:
            session["a"] = 1


assert not storage._driver.running
store(100)
assert storage._driver.running
expect(100)

pid = os.fork()
if pid == 0:
    assert not storage._driver.running
    store(50)
    assert storage._driver.running
    expect(150)
    store(5000)  # the exit below meets a driver at work
    sys.exit(0)
_, status = os.waitpid(pid, 0)
assert status == 0, "the child failed"

store(50)
expect(150)
manager.ttl = 1e6
store(20_000)
assert storage._driver.running
sys.stdout.write(f"ok\n{time.monotonic()}\n")  # the test measures how long the exit takes from here
