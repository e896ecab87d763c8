"""The guard against slow-downs: a few ratios and instruction counts, compared with the bounds in bounds.toml.

    python bench/guard.py                  every guard; exit code 1 if one is over its bound
    python bench/guard.py --show           print the figures, judge nothing

Ratios are of loops that run in alternation in one process, each the best of many rounds, so that a busy machine slows
both sides; one over its bound is measured again, twice, before it counts. Instruction counts (valgrind's callgrind)
know no noise: the cost of one cycle, minus a cycle of as many calls of empty methods, is what the library itself
executes, on whatever interpreter. A bound lies about 30 % above what was measured when it was written down, so that
a slip of 1.5x never gets through. Lower it when the code got faster; raise it only with a reason in the commit.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgpack
from conftest import NAME, populate

from cysession import FileStorage, Manager, MemoryStorage, codec

BOUNDS = Path(__file__).with_name("bounds.toml")
ROUNDS, TRIES = 40, 3
CYCLES = 4000  # that callgrind counts
Loop = Callable[[int], object]


class Empty:
    """What a cycle costs that does nothing: the calls alone."""

    def __init__(self) -> None:
        self._plain = {"uid": "u"}

    def loops(self) -> tuple[Loop, Loop]:
        new, get, put = bytes, self._plain.get, self._plain.setdefault

        def read(count: int) -> None:
            for _ in range(count):
                session = new()
                get("uid")
                session.isalnum()

        def write(count: int) -> None:
            for _ in range(count):
                session = new()
                get("uid")
                put("uid", NAME)
                session.isalnum()

        return read, write


def cycles(manager: Manager, session_id: str) -> tuple[Loop, Loop]:
    new = manager.new

    def read(count: int) -> None:
        for _ in range(count):
            session = new(session_id)
            session.get("uid")
            session.close()

    def write(count: int) -> None:
        for _ in range(count):
            session = new(session_id)
            session.get("uid")
            session.set("name", NAME)
            session.close()

    return read, write


def times(call: Callable[[], object]) -> Loop:
    def loop(count: int) -> None:
        for _ in range(count):
            call()

    return loop


@contextmanager
def one_session() -> Iterator[tuple[Manager, str]]:
    with Manager(ttl=3600, storage=MemoryStorage()) as manager:
        yield manager, populate(manager, 1)[0]


# ---- ratios ------------------------------------------------------------------------------------------------


def in_memory() -> dict[str, tuple[Loop, Loop, int]]:
    """name -> (our loop, the loop it is compared with, operations a round)."""
    manager = Manager(ttl=3600, storage=MemoryStorage())
    session_id = populate(manager, 1)[0]
    table = manager.storage.table
    assert table is not None
    get, look = {session_id: "value"}.get, table.get

    def bare(count: int) -> None:
        for _ in range(count):
            get(session_id)

    def lookup(count: int) -> None:
        for _ in range(count):
            look(session_id)

    read, write = cycles(manager, session_id)
    return {
        "table_get_to_dict_get": (lookup, bare, 2000),
        "read_cycle_to_dict_get": (read, bare, 2000),
        "write_cycle_to_dict_get": (write, bare, 2000),
    }


def codec_and_files(directory: str) -> dict[str, tuple[Loop, Loop, int]]:
    record = example().record
    data, packed = record.to_dict(), msgpack.packb(record.to_dict())
    encoded = codec.encode(record)
    manager = Manager(ttl=3600, storage=FileStorage(directory, durability="none", sweep_every=0))
    read, write = cycles(manager, populate(manager, 1)[0])
    other = os.path.join(directory, "plain")

    def replace() -> None:
        with open(other + ".new", "wb") as file:
            file.write(encoded)
        os.rename(other + ".new", other)

    replace()
    return {
        "encode_to_msgpack": (times(lambda: codec.encode(record)), times(lambda: msgpack.packb(data)), 500),
        "decode_to_msgpack": (
            times(lambda: codec.decode(encoded)),
            times(lambda: msgpack.unpackb(packed)),
            500,
        ),
        "file_read_to_stat": (read, times(lambda: os.stat(other)), 500),
        "file_write_to_replace": (write, times(replace), 100),
    }


class example:
    """A session of the usual three keys, and its record."""

    def __init__(self) -> None:
        with one_session() as (manager, session_id):
            table = manager.storage.table
            found = None if table is None else table.get(session_id)
            assert found is not None
            self.record = found


def ratio(ours: Loop, theirs: Loop, count: int) -> float:
    """Best of many alternating rounds of each."""
    best = [float("inf"), float("inf")]
    for _ in range(ROUNDS):
        for side, loop in enumerate((ours, theirs)):
            start = time.perf_counter()
            loop(count)
            best[side] = min(best[side], time.perf_counter() - start)
    return best[0] / best[1]


def ratios(bounds: dict[str, float]) -> dict[str, float]:
    found = {}
    with tempfile.TemporaryDirectory(dir=shared_memory()) as directory:
        for name, (ours, theirs, count) in {**in_memory(), **codec_and_files(directory)}.items():
            tries = [ratio(ours, theirs, count)]
            while tries[-1] > bounds.get(name, float("inf")) and len(tries) < TRIES:
                time.sleep(1)
                tries.append(ratio(ours, theirs, count))
            found[name] = min(tries)
    return found


def shared_memory() -> str | None:
    """A directory in memory, if there is one: the guard is about our code, not about this machine's disk."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


# ---- instruction counts ------------------------------------------------------------------------------------

KINDS = ("read_cycle", "write_cycle")


def counted(kind: str, count: int) -> None:
    """What callgrind watches: this module run with `--cycles kind count`."""
    with one_session() as (manager, session_id):
        loops = dict(zip(KINDS, cycles(manager, session_id), strict=True))
        loops.update(zip((f"empty_{kind}" for kind in KINDS), Empty().loops(), strict=True))
        loops[kind](100)
        loops[kind](count)


def instructions() -> dict[str, float]:
    found = {}
    for kind in KINDS:
        found[f"{kind}_own_instructions"] = per_cycle(kind) - per_cycle(f"empty_{kind}")
    return found


def per_cycle(kind: str) -> float:
    return (executed(kind, 2 * CYCLES) - executed(kind, CYCLES)) / CYCLES


def executed(kind: str, count: int) -> int:
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", sys.executable, __file__]
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    done = subprocess.run(
        [*command, "--cycles", kind, str(count)], env=environment, capture_output=True, text=True, timeout=300
    )
    refs = re.search(r"I\s+refs:\s+([\d,]+)", done.stderr)
    if done.returncode or refs is None:
        raise SystemExit(f"valgrind could not count the instructions:\n{done.stderr[-2000:]}")
    return int(refs[1].replace(",", ""))


# ---- the judgement -----------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Compare a few ratios and instruction counts with their bounds."
    )
    parser.add_argument("--show", action="store_true", help="print the figures and judge nothing")
    parser.add_argument("--cycles", nargs=2, metavar=("KIND", "COUNT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cycles:
        counted(options.cycles[0], int(options.cycles[1]))
        return 0
    bounds: dict[str, float] = tomllib.loads(BOUNDS.read_text())
    found = {**ratios({} if options.show else bounds), **instructions()}
    over = [name for name, figure in found.items() if figure > bounds.get(name, 0)]
    print(f"load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}")
    for name, figure in found.items():
        mark = "" if options.show else "  OVER ITS BOUND" if name in over else "  ok"
        print(f"{name:32} {figure:10,.2f}   bound {bounds.get(name, 0):10,.2f}{mark}")
    missing = sorted(bounds.keys() - found.keys())
    if missing:
        print(f"bounds.toml names what nobody measures: {', '.join(missing)}")
    return 0 if options.show else bool(over or missing)


if __name__ == "__main__":
    sys.exit(main())
