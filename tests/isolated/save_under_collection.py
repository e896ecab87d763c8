"""A finalizer that changes the very session that is being saved: what is committed is old or new, never torn.

The collector may run whenever the core makes a container, and a finalizer may do anything. Run it with
PYTHONMALLOC=debug: memory that was given back too early then reads as 0xDD instead of what it was.
"""

import faulthandler
import gc
import sys
from typing import Any

from cysession import Manager, MemoryStorage

faulthandler.dump_traceback_later(90, exit=True)
manager = Manager(storage=MemoryStorage(), max_bytes=0)
armed: list[Any] = []


class Garbage:
    def __init__(self) -> None:
        self.me = self

    def __del__(self) -> None:
        if armed:
            session, act = armed.pop()
            act(session)


def discard_and_fill(session: Any) -> None:
    session.discard()
    for n in range(40):
        session[f"z{n}"] = "q" * 900


def overwrite(session: Any) -> None:
    for key in list(session):
        session[key] = "q" * 900


def remove(session: Any) -> None:
    session.clear()


gc.disable()
for turn in range(600):
    act = (discard_and_fill, overwrite, remove)[turn % 3]
    session = manager.new()
    expected: dict[str, Any] = {"a": f"{turn}" * 300, "b": f"{turn}é" * 300, "ü" * 200: b"x" * 500}
    expected |= {f"l{n}": [[1], [2], {"a": [3]}] for n in range(turn % 20)}
    if turn % 2:
        session["first"] = 1
        session.save()
        expected["first"] = 1
    # Keys and values that nothing but the session holds.
    session.update({"".join(list(key)): eval(repr(value)) for key, value in expected.items()})  # noqa: S307
    gc.collect()
    armed.append((session, act))
    Garbage()
    gc.set_threshold(1 + turn % 30)
    gc.enable()
    session.save()
    gc.disable()
    armed.clear()
    for key, value in manager.new(session.id).get_map().items():
        assert key in expected or key[0] == "z", f"turn {turn}: a key nobody set"
        assert value in (expected.get(key), "q" * 900), f"turn {turn}: a value nobody set under {key[:5]!r}"
sys.stdout.write("ok\n")
