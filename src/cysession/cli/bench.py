"""What sessions cost on this machine.

One thread, ids in shuffled order, three string keys a session; every row is a whole request's work on its session.
Read the ratios: nanoseconds differ between machines, and between two runs on a busy one. `make bench` in the source
tree measures more, and against other libraries.
"""

import argparse
import contextlib
import itertools
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from cysession import Manager, MemoryStorage, __version__, ids
from cysession.errors import SessionError
from cysession.storage import Storage, open_storage

from .numbers import positive, seconds
from .output import Output, count, table
from .target import shown

__all__ = ["add_to", "run"]

ROUNDS: Final = 5
BATCH: Final = 100  # calls between two looks at the clock
TTL: Final = 600.0  # so that sessions of an interrupted run go by themselves


def add_to(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("urls", nargs="*", metavar="URL", help="more storages, such as redis://localhost/0")
    parser.add_argument(
        "--sessions", type=positive, default=2000, metavar="N", help="sessions a storage (default 2000)"
    )
    parser.add_argument(
        "--seconds", type=seconds, default=0.2, metavar="S", help="a round of a case (default 0.2)"
    )
    parser.add_argument(
        "--directory", help="where the file storage is measured (default: the temporary directory)"
    )


def run(args: argparse.Namespace, output: Output) -> int:
    with contextlib.ExitStack() as open_ones:
        named = [
            (shown(url), open_ones.enter_context(contextlib.closing(_reached(url)))) for url in args.urls
        ]
        return _compare(args, output, named)


def _reached(url: str) -> Storage:
    """A storage that has answered: better an error now than after the others were measured."""
    storage = open_storage(url)
    try:
        Manager(TTL, storage).new(ids.new_id()).load()
    except BaseException:
        storage.close()
        raise
    return storage


def _compare(args: argparse.Namespace, output: Output, named: list[tuple[str, Storage]]) -> int:
    tokens = [ids.new_id() for _ in range(args.sessions)]
    plain = {token: data() for token in tokens}
    cases: list[tuple[str, str, float]] = [
        ("dict", "get", _measure(lambda t: plain[t]["name"], tokens, args.seconds))
    ]
    storages = itertools.chain(_local(args.directory), named)
    for name, storage in output.track(storages, "storages", 2 + len(named)):
        cases += [(name, step, ns) for step, ns in _cycles(Manager(TTL, storage), len(tokens), args.seconds)]
    idle = _measure(lambda _: None, tokens, args.seconds)  # what the loop itself takes
    cases = [(name, step, max(ns - idle, 1.0)) for name, step, ns in cases]
    base = cases[0][2]
    rows = [
        {
            "storage": name,
            "case": step,
            "ns": round(ns, 1),
            "per_second": round(1e9 / ns),
            "ratio": round(ns / base, 1),
        }
        for name, step, ns in cases
    ]
    about = {
        "cysession": __version__,
        "python": platform.python_version(),
        "processors": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "sessions": len(tokens),
    }
    output.result({**about, "cases": rows}, _lines(about, rows))
    return 0


def data() -> dict[str, str]:
    return {"user": "anna", "name": "Anna of the Example", "csrf": "0123456789abcdef" * 2}


def _local(directory: str | None) -> Iterator[tuple[str, Storage]]:
    with contextlib.closing(MemoryStorage()) as memory:
        yield "memory", memory
    with tempfile.TemporaryDirectory(prefix="cysession-bench-", dir=directory) as made:
        from cysession import FileStorage

        with contextlib.closing(FileStorage(f"{made}/sessions")) as files:
            yield "file", files


def _cycles(manager: Manager, number: int, seconds: float) -> Iterator[tuple[str, float]]:
    """Reading, writing and making a session; all are removed in the end."""
    tokens: list[str] = []

    def make(_: str = "") -> None:
        session = manager.new()
        session.set_map(data())
        session.close()
        tokens.append(session.id)

    def read(token: str) -> None:
        session = manager.new(token)
        session.get("name")
        session.close()

    def write(token: str) -> None:
        session = manager.new(token)
        session.get("name")
        session["name"] = "Anna of another Example"
        session.close()

    try:
        for _ in range(number):
            make()
        chosen = tokens[:number]
        yield "read", _measure(read, chosen, seconds)
        yield "write", _measure(write, chosen, seconds)
        yield "new", _measure(make, chosen, seconds / 2)
    finally:
        with contextlib.suppress(SessionError):
            for token in tokens:
                manager.storage.delete_record(token)


def _measure(call: Callable[[str], Any], tokens: list[str], seconds: float) -> float:
    """Nanoseconds a call: the median of some rounds, each of about that long, over shuffled ids."""
    order = tokens * max(1, BATCH // len(tokens))
    random.Random(1).shuffle(order)
    batches = itertools.cycle([order[n : n + BATCH] for n in range(0, len(order), BATCH)])
    results = []
    for _ in range(ROUNDS):
        calls, begun = 0, time.perf_counter()
        while time.perf_counter() - begun < seconds:
            for token in (batch := next(batches)):
                call(token)
            calls += len(batch)
        results.append((time.perf_counter() - begun) / calls * 1e9)
    return statistics.median(results)


def _lines(about: dict[str, Any], rows: list[dict[str, Any]]) -> Iterator[str]:
    yield f"{count(about['sessions'])} sessions, one thread; a cycle is new, get, (set,) close"
    machine = f"load {about['load']} on {about['processors']} processors"
    yield f"cysession {about['cysession']}, Python {about['python']}, {machine}"
    yield ""
    cells = [["storage", "cycle", "us", "a second", "x dict.get"]]
    for row in rows:
        figures = (f"{row['ns'] / 1000:,.2f}", count(row["per_second"]), f"{row['ratio']:,.1f}")
        cells.append([row["storage"], row["case"], *figures])
    yield from table(cells, left=2)
