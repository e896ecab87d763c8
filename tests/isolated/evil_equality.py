"""Comparing a set that was changed in place runs the __eq__ of what is in it, which may use the session."""

import contextlib
import faulthandler
import sys
from typing import Any

from cysession import Manager, MemoryStorage, SessionError

faulthandler.dump_traceback_later(90, exit=True)


class Evil:
    """Hashes like 1, and acts on the session when it is compared."""

    def __init__(self, session: Any, act: str, at: int) -> None:
        self.session, self.act, self.at, self.compared = session, act, at, 0

    def __hash__(self) -> int:
        return hash(1)

    def __eq__(self, other: object) -> bool:
        self.compared += 1
        if self.compared == self.at:
            if self.act == "fill":
                for n in range(300):
                    self.session[f"z{n}"] = "q" * 100
            else:
                getattr(self.session, self.act)()
        return self.act == "raise"


def use(act: str, way: str, keys: int, at: int) -> int:
    """How often the evil values were compared."""
    manager = Manager(storage=MemoryStorage(), max_bytes=0)
    with manager.new() as session:
        session.update({f"k{i}": {1} for i in range(keys)})
    session = manager.new(session.id)
    evils = []
    for value in session.values():
        evils.append(Evil(session, act, at))
        value.clear()
        value.add(evils[-1])
    with contextlib.suppress(SessionError):
        session.is_dirty if way == "is_dirty" else getattr(session, way)()
    session.discard()
    repr(session)
    manager.close()
    return sum(evil.compared for evil in evils)


compared = 0
for act in ("discard", "clear", "fill", "get_map", "destroy", "close"):
    for way in ("is_dirty", "save", "close"):
        for keys in (1, 3, 30):
            for at in (1, 2, 3):
                compared += use(act, way, keys, at)
assert compared > 0, "nothing was compared"
sys.stdout.write("ok\n")
