"""Run by test_file_faults.py under the shim: a life of sessions on an event loop, and which threads flush.

    python drive_loop.py <directory> data|full

Prints how often the first thread, which runs the loop, waited for a flush of the disk, and how often others did.
"""

import asyncio
import ctypes
import sys

from cysession import Delta, FileStorage, Manager, Record

SECOND = 1_000_000_000
TTL = 600 * SECOND

shim = ctypes.CDLL(None)
storage = FileStorage(sys.argv[1], durability=sys.argv[2], sweep_every=0)
manager, longer = Manager(600, storage), Manager(6000, storage)


async def steps() -> None:
    """The record protocol's twins."""
    record = Record.build({"x": 1}, storage.now_ns())
    assert await storage.acreate_record("a", record, TTL)
    assert await storage.aload_record("a", 2 * TTL) is not None
    assert await storage.apeek_record("a", TTL) is not None
    assert await storage.atouch_record("a", record, 3 * TTL)
    assert await storage.acommit_record("a", record, Delta({"y": 2}), TTL) is not None
    assert await storage.arename_record("a", "b", record, TTL, 30 * SECOND) is not None
    assert await storage.acommit_record("a", record, Delta({"z": 3}), TTL) is not None
    assert await storage.adelete_record("b")


async def life() -> None:
    """What an application does."""
    async with manager.new() as session:
        session.bind("ann")
        session["cart"] = []
    async with longer.new(session.id) as again:
        await again.aload()
        await again.aregenerate_id(delete_old=False)
        assert await again.amodify("hits", lambda hits: hits + 1, 0) == 1
    assert len(await manager.asessions_of("ann")) == 1
    assert await manager.arevoke("ann") == 1
    async with manager.new() as other:
        other["x"] = 1
    async with manager.new(other.id) as other:
        await other.aload()
        await other.adestroy()


before = [shim.fault_flushes(first) for first in (1, 0)]
asyncio.run(steps())
asyncio.run(life())
after = [shim.fault_flushes(first) for first in (1, 0)]
sys.stdout.write(f"{after[0] - before[0]} {after[1] - before[1]}\n")
