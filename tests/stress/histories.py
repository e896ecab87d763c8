"""Histories of concurrent operations on one key, and whether some sequential order explains them.

Each operation is known by when it was called and when it returned; it must have taken effect at one moment
in between (Herlihy and Wing, "Linearizability", 1990). The search is Wing and Gong's, a key at a time: keys
do not know of each other. Time is part of the model: an operation notes the reading of the clock it used.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

ABSENT = None


class State(NamedTuple):
    """What the table holds for the key."""

    value: Any
    deadline: int


@dataclass(slots=True)
class Op:
    thread: int
    name: str
    key: str
    argument: Any
    called: int = 0
    returned: int = 0
    now: int = 0  # what the table's clock said to it
    result: Any = None
    seen: int = 0  # the latest time that anybody had read before it returned


def outcomes(op: Op, state: State | None, ttl: int) -> Iterable[State | None]:
    """The states after `op`, for those ways to take effect on `state` that explain its result.

    A session that has ended is absent for `op`, but until it is swept not for those whose clock read earlier;
    one that has ended for somebody else only may have been swept before `op` came.
    """
    live = state is not None and state.deadline > op.now
    if live:
        yield from effect(op, state, ttl)
    if not live or (state is not None and state.deadline <= op.seen):
        for after in effect(op, ABSENT, ttl):
            yield after
            if after is ABSENT and state is not None and not live:
                yield state  # not swept yet


def effect(op: Op, view: State | None, ttl: int) -> Iterable[State | None]:
    """The state after `op` found `view`, if it then returns what it did return."""
    stored = State(op.argument, op.now + ttl)
    touched = State(view.value, op.now + ttl) if view is not None else ABSENT
    if op.name in ("get", "peek"):
        if op.result is (view.value if view is not None else None):
            yield touched if op.name == "get" else view
    elif op.name == "touch":
        if op.result is (view is not None):
            yield touched
    elif op.name == "add":
        if op.result is (view is None):
            yield stored if view is None else view
    elif op.name == "put":
        yield stored
    elif op.name == "pop":
        if op.result is (view is not None):
            yield ABSENT
    elif op.name == "replace":
        expected, fresh = op.argument
        if op.result is (view is not None and view.value is expected):
            yield State(fresh, op.now + ttl) if op.result else view


def explain(ops: list[Op], ttl: int, first: State | None = None) -> bool:
    """Whether the operations on one key can be put into an order."""
    threads = sorted({op.thread for op in ops})
    lines = [
        sorted((op for op in ops if op.thread == thread), key=lambda op: op.called) for thread in threads
    ]
    start = (0,) * len(lines), first
    todo, known = [start], {(start[0], identity(first))}
    while todo:
        at, state = todo.pop()
        heads = [(i, line[at[i]]) for i, line in enumerate(lines) if at[i] < len(line)]
        if not heads:
            return True
        soonest = min(op.returned for _, op in heads)
        for i, op in heads:
            if op.called > soonest:  # another had returned before this one was called
                continue
            for after in outcomes(op, state, ttl):
                following = tuple(n + (k == i) for k, n in enumerate(at))
                if (following, identity(after)) not in known:
                    known.add((following, identity(after)))
                    todo.append((following, after))
    return False


def identity(state: State | None) -> tuple[int, int] | None:
    return (id(state.value), state.deadline) if state is not None else None
