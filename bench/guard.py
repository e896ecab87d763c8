"""The guard against slow-downs: a few ratios and instruction counts, compared with the bounds in bounds.toml.

    python bench/guard.py                  every guard; exit code 1 if one is over its bound
    python bench/guard.py --show           print the figures, judge nothing
    python bench/guard.py --prove          do our work one and a half times: exit code 1 unless every guard notices

Ratios are of loops that run in alternation in one process, each the best of many rounds, so that a busy machine slows
both sides; one over its bound is measured again, twice, before it counts. Instruction counts (valgrind's callgrind)
know no noise: the cost of one cycle, minus a cycle of as many calls of empty methods, is what the library itself
executes, on whatever interpreter. The cycle on Redis is counted the same way, minus a bare socket with hiredis that
sends two commands; only this process is counted, neither the server nor the kernel. So are reads of files, where a
ratio would compare a system call with an interpreter, and machines differ in that. A bound lies about 30 % above what
was measured when it was written down, so that a slip of 1.5x never gets through. Lower it when the code got faster;
raise it only with a reason in the commit.

To see it with code that is slower: let `session_start` of src/_session.pxi look the record up six times in place of
one, build, and run this. The read cycle then has 2,578 instructions of its own, and both of its guards fail.
"""

import argparse
import itertools
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import hiredis
import msgpack
from workload import NAME, looking_up_one, populate, reading_one, writing_one

from cysession import FileStorage, Manager, MemoryStorage, Record, codec

BOUNDS = Path(__file__).with_name("bounds.toml")
ROUNDS, TRIES = 40, 3
SLIP = 1.5  # what must never get through
CYCLES = {"memory": 4000, "redis": 400}  # that callgrind counts
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
    return reading_one(manager, session_id), writing_one(manager, session_id)


def times(call: Callable[[], object]) -> Loop:
    def loop(count: int) -> None:
        for _ in range(count):
            call()

    return loop


# ---- ratios ------------------------------------------------------------------------------------------------


def in_memory() -> dict[str, tuple[Loop, Loop, int]]:
    """name -> (our loop, the loop it is compared with, operations a round)."""
    manager = Manager(ttl=3600, storage=MemoryStorage())
    session_id = populate(manager, 1)[0]
    table = manager.storage.table
    assert table is not None
    bare = looking_up_one({session_id: "value"}.get, session_id)
    lookup = looking_up_one(table.get, session_id)
    read, write = cycles(manager, session_id)
    return {
        "table_get_to_dict_get": (lookup, bare, 2000),
        "read_cycle_to_dict_get": (read, bare, 2000),
        "write_cycle_to_dict_get": (write, bare, 2000),
    }


def codec_and_files(directory: str) -> dict[str, tuple[Loop, Loop, int]]:
    record = example()
    data, packed = record.to_dict(), msgpack.packb(record.to_dict())
    encoded = codec.encode(record)
    manager = Manager(ttl=3600, storage=FileStorage(directory, durability="none", sweep_every=0))
    _, write = cycles(manager, populate(manager, 1)[0])
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
        "file_write_to_replace": (write, times(replace), 100),
    }


def example() -> Record:
    """The record of a session of the usual three keys."""
    with Manager(ttl=3600, storage=MemoryStorage()) as manager:
        table = manager.storage.table
        found = None if table is None else table.get(populate(manager, 1)[0])
    assert found is not None
    return found


def ratio(ours: Loop, theirs: Loop, count: int, slip: float = 1.0) -> float:
    """Best of many alternating rounds of each."""
    best = [float("inf"), float("inf")]
    for _ in range(ROUNDS):
        for side, (loop, number) in enumerate(((ours, int(count * slip)), (theirs, count))):
            start = time.perf_counter()
            loop(number)
            best[side] = min(best[side], time.perf_counter() - start)
    return best[0] / best[1]


def ratios(bounds: dict[str, float], slip: float = 1.0) -> dict[str, float]:
    found = {}
    with tempfile.TemporaryDirectory(dir=shared_memory()) as directory:
        for name, (ours, theirs, count) in {**in_memory(), **codec_and_files(directory)}.items():
            tries = [ratio(ours, theirs, count, slip)]
            while tries[-1] > bounds.get(name, float("inf")) and len(tries) < TRIES:
                time.sleep(1)
                tries.append(ratio(ours, theirs, count, slip))
            found[name] = min(tries)
    return found


def shared_memory() -> str | None:
    """A directory in memory, if there is one: the guard is about our code, not about this machine's disk."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


# ---- instruction counts ------------------------------------------------------------------------------------


class BareSocket:
    """What a request on Redis cannot do without: two commands sent and two replies parsed."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.reader = hiredis.Reader()
        record = codec.encode(example())
        self.get = hiredis.pack_command((b"GET", b"session:%064x" % 1))
        self.set = hiredis.pack_command((b"SET", b"session:%064x" % 1, record, b"EX", b"3600"))

    def cycle(self) -> None:
        for command in (self.get, self.set):
            self.socket.sendall(command)
            self.reader.feed(self.socket.recv(65536))
            self.reader.gets()


def redis_cycles(url: str) -> Loop:
    """Every one changes something."""
    from cysession import RedisStorage

    manager = Manager(ttl=3600, storage=RedisStorage(url, timeout=60.0))  # valgrind takes its time
    session_id = populate(manager, 1)[0]
    names = itertools.count(10_000_000)

    def write() -> None:
        session = manager.new(session_id)
        session.get("uid")
        session.set("name", f"user number {next(names)}")
        session.close()

    return times(write)


def counted(kind: str, count: int, port: int) -> None:
    """What callgrind watches: this module run with `--cycles kind count port`."""
    if kind == "redis_cycle":
        loop = redis_cycles(f"redis://127.0.0.1:{port}/0")
    elif kind == "empty_redis_cycle":
        loop = times(BareSocket(port).cycle)
    elif kind == "file_read_cycle":
        with tempfile.TemporaryDirectory(dir=shared_memory()) as directory:
            manager = Manager(ttl=3600, storage=FileStorage(directory, durability="none", sweep_every=0))
            loop, _ = cycles(manager, populate(manager, 1)[0])
            loop(100 + count)
        return
    else:
        manager = Manager(ttl=3600, storage=MemoryStorage())
        read, write = cycles(manager, populate(manager, 1)[0])
        empty_read, empty_write = Empty().loops()
        loop = {
            "read_cycle": read,
            "write_cycle": write,
            "empty_read_cycle": empty_read,
            "empty_write_cycle": empty_write,
        }[kind]
    loop(100 + count)


def instructions(slip: float = 1.0) -> dict[str, float]:
    bare_read = per_cycle("empty_read_cycle", CYCLES["memory"])
    bare = {
        "read_cycle": bare_read,
        "write_cycle": per_cycle("empty_write_cycle", CYCLES["memory"]),
        "file_read_cycle": bare_read,
    }
    return {
        f"{kind}_own_instructions": (per_cycle(kind, CYCLES["memory"]) - calls) * slip
        for kind, calls in bare.items()
    }


def instructions_on_redis(slip: float = 1.0) -> dict[str, float]:
    from tests.redis.servers import RedisServer

    with RedisServer() as server:
        own = per_cycle("redis_cycle", CYCLES["redis"], server.port)
        bare = per_cycle("empty_redis_cycle", CYCLES["redis"], server.port)
    return {"redis_cycle_own_instructions": (own - bare) * slip}


def per_cycle(kind: str, cycles: int, port: int = 0) -> float:
    return (executed(kind, 2 * cycles, port) - executed(kind, cycles, port)) / cycles


def executed(kind: str, count: int, port: int) -> int:
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", sys.executable, __file__]
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    done = subprocess.run(
        [*command, "--cycles", kind, str(count), str(port)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
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
    parser.add_argument(
        "--prove", action="store_true", help=f"our work {SLIP} times: does every guard notice?"
    )
    parser.add_argument("--cycles", nargs=3, metavar=("KIND", "COUNT", "PORT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cycles:
        kind, count, port = options.cycles
        counted(kind, int(count), int(port))
        return 0
    bounds: dict[str, float] = tomllib.loads(BOUNDS.read_text())
    slip = SLIP if options.prove else 1.0
    found = {
        **ratios({} if options.show else bounds, slip),
        **instructions(slip),
        **instructions_on_redis(slip),
    }
    over = [name for name, figure in found.items() if figure > bounds.get(name, float("inf"))]
    print(f"load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}")
    for name, figure in found.items():
        mark = "" if options.show else "  OVER ITS BOUND" if name in over else "  ok"
        bound = f"bound {bounds[name]:10,.2f}" if name in bounds else "no bound in bounds.toml"
        print(f"{name:32} {figure:10,.2f}   {bound}{mark}")
    if options.show:
        return 0
    missing = sorted(bounds.keys() - found.keys())
    if missing:
        print(f"bounds.toml names what nobody measures: {', '.join(missing)}")
    if options.prove:
        blind = sorted(found.keys() - set(over))
        print(
            f"a slip of {SLIP} passes: {', '.join(blind)}"
            if blind
            else f"every guard notices a slip of {SLIP}"
        )
        return bool(blind)
    return bool(over or missing)


if __name__ == "__main__":
    sys.exit(main())
