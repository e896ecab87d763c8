"""What the benchmarks do: three short string keys a session, every session with strings of its own.

Imported by the guard under valgrind as well, so it brings nothing along but the library itself.
"""

import random
from collections.abc import Callable, Iterator

from cysession import Manager, Session

LOOP = 1000  # operations a round
NAME = "another name of 21 ch"

Cycle = Callable[[list[str]], None]


def contents(n: int) -> dict[str, str]:
    return {"uid": f"u{n:08d}", "name": f"user number {n:09d}", "csrf": f"{n:032x}"}


def fill(session: Session, n: int) -> None:
    """The workload of the Go figures."""
    for key, value in contents(n).items():
        session.set(key, value)


def populate(manager: Manager, count: int) -> list[str]:
    """`count` stored sessions; their ids in an order that no cache can foresee."""
    ids = []
    for n in range(count):
        session = manager.new()
        fill(session, n)
        session.close()
        ids.append(session.id)
    random.Random(7).shuffle(ids)
    return ids


def parts(ids: list[str], size: int = LOOP) -> Callable[[], tuple[list[str]]]:
    """The next ids for ever, for `race(arguments=)`: every round meets sessions that were not touched lately."""
    ids = ids * -(-size // len(ids)) if len(ids) < size else ids

    def endless() -> Iterator[tuple[list[str]]]:
        while True:
            for start in range(0, len(ids) - size + 1, size):
                yield (ids[start : start + size],)

    return endless().__next__


def reading(manager: Manager) -> Cycle:
    """Request cycles that read one key."""
    new = manager.new

    def run(part: list[str]) -> None:
        for key in part:
            session = new(key)
            session.get("uid")
            session.close()

    return run


def writing(manager: Manager) -> Cycle:
    """Request cycles that read one key and write another."""
    new = manager.new

    def run(part: list[str]) -> None:
        for key in part:
            session = new(key)
            session.get("uid")
            session.set("name", NAME)
            session.close()

    return run


def looking_up(get: Callable[[str], object]) -> Cycle:
    def run(part: list[str]) -> None:
        for key in part:
            get(key)

    return run


# One session again and again. The loop is the same for all that is compared, `dict.get` included.


def looking_up_one(get: Callable[[str], object], key: str) -> Callable[..., None]:
    def run(count: int = LOOP) -> None:
        for _ in range(count):
            get(key)

    return run


def reading_one(manager: Manager, key: str) -> Callable[..., None]:
    new = manager.new

    def run(count: int = LOOP) -> None:
        for _ in range(count):
            session = new(key)
            session.get("uid")
            session.close()

    return run


def writing_one(manager: Manager, key: str) -> Callable[..., None]:
    new = manager.new

    def run(count: int = LOOP) -> None:
        for _ in range(count):
            session = new(key)
            session.get("uid")
            session.set("name", NAME)
            session.close()

    return run
