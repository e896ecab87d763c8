"""Values whose finalizers use the table that is dropping them, and a collector that runs at every chance.

A finalizer that ran under a shard's lock would wait for itself for ever, or meet half an operation.
"""

import faulthandler
import gc
import random
import sys
from contextlib import suppress
from typing import Any

from cysession import Manager, MemoryStorage, Record, SessionClosed, SessionGone
from cysession._core import SessionTable
from cysession.testing import FakeClock

faulthandler.dump_traceback_later(90, exit=True)
gc.set_threshold(1)
clock = FakeClock(1000)
ran = [0]
errors: list[BaseException] = []


class Bomb:
    """Uses the table, and the session if it has one, as it dies; in a cycle the collector kills it."""

    def __init__(self, table: SessionTable, session: Any = None, cycle: bool = False) -> None:
        self.table, self.session, self.cycle = table, session, self if cycle else None

    def __del__(self) -> None:
        ran[0] += 1
        try:
            table, i = self.table, f"id-{draw.randrange(30)}"
            table.get(i)
            table.peek(i)
            len(table)
            if draw.random() < 0.3:
                table.put(i, Record.build({"by": "a finalizer"}, 0), draw.choice((1, 1000)))
                table.rename(i, f"id-{draw.randrange(30)}-x", draw.choice((0, 5)))
            if draw.random() < 0.3:
                table.pop(f"id-{draw.randrange(30)}")
                table.expire(3)
            if draw.random() < 0.05:
                table.snapshot(draw.randrange(64))
                table.stats()
            if self.session is not None:
                self.session["by"] = "a finalizer"
                self.session.get("x")
                if draw.random() < 0.3:
                    self.session.discard()
                if draw.random() < 0.2:
                    self.session.save()
        except (ValueError, SessionGone, SessionClosed):
            pass  # the new id was in use; the session was destroyed or is closed
        except BaseException as error:
            errors.append(error)


def on_expire(gone: list[Any]) -> None:
    gone.clear()  # drops the records, and with them the bombs
    if draw.random() < 0.1:
        raise RuntimeError("on_expire fails now and then")


def record(table: SessionTable) -> Record:
    return Record.build({"bomb": Bomb(table), "list": [Bomb(table, cycle=True)]}, 0, any_object=True)


def a_table() -> None:
    table = SessionTable(10, clock=clock, on_expire=on_expire)
    for n in range(1500):
        i, what = f"id-{draw.randrange(30)}", draw.random()
        if what < 0.4:
            table.put(i, record(table), draw.choice((1, 100)))
        elif what < 0.5:
            table.add(i, record(table))
        elif what < 0.6:
            table.pop(i)
        elif what < 0.75:
            stored = table.get(i)
            if stored is not None:
                table.replace(i, stored, record(table))
            del stored
        elif what < 0.8:
            with suppress(ValueError):
                table.rename(i, f"id-{draw.randrange(30)}", draw.choice((0, 3)))
        elif what < 0.9:
            clock.advance(draw.choice((0.5, 2, 20)))
        else:
            table.expire(5)
        if n % 100 == 0:
            table._check()
    table.clear()
    for i in range(30):
        table.put(f"id-{i}", record(table))
    table._check()


def sessions() -> None:
    storage = MemoryStorage(any_object=True, on_expire=on_expire)
    manager = Manager(10, storage, clock=clock, max_bytes=0)
    for n in range(300):
        session = manager.new()
        for k in range(draw.choice((1, 3, 20))):
            session[f"k{k}"] = [
                Bomb(storage.table, session if k % 2 else None, cycle=k % 3 == 0),
                [k],
                {"k": [k]},
            ]
        try:
            session.save()
            for k in range(draw.choice((1, 3, 20))):
                session[f"k{k}"] = draw.choice((k, [k], Bomb(storage.table, session)))
            (session.save, session.discard, session.clear, session.destroy, session.regenerate_id)[n % 5]()
            session.close()
        except SessionGone:
            pass
        clock.advance(1)
        if n % 20 == 0:
            storage.table._check()
    storage.table._check()
    storage.close()


sys.unraisablehook = lambda args: (
    None if "now and then" in str(args.exc_value) else errors.append(args.exc_value)
)
for seed in range(3):
    draw = random.Random(seed)
    a_table()
    sessions()
    gc.collect()
assert ran[0] > 1000, "hardly a finalizer ran"
assert not errors, errors[:3]
sys.stdout.write("ok\n")
