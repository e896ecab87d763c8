"""What does a session weigh, and what does it cost the garbage collector? Each figure from a process of its own.

The Go original holds 885 bytes a session with the same three keys (GoFrame v2.10.2, RSS after a forced collection).
"""

import json
import subprocess
import sys
from typing import Any

import pytest

MILLION = 1_000_000

SCRIPT = """
import gc, json, os, sys, time
sys.path.insert(0, {bench!r})
from conftest import fill
from cysession import Manager, MemoryStorage, Record

def rss():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

kind, count = {kind!r}, {count}
manager = Manager(ttl=3600, storage=MemoryStorage())
table = manager.storage.table
gc.collect()
before = rss()
kept = {{}}
for n in range(count):
    if kind == "dict of dicts":
        kept[f"{{n:043d}}"] = {{"uid": f"u{{n:08d}}", "name": f"user number {{n:09d}}", "csrf": f"{{n:032x}}"}}
    elif kind == "no data":
        table.add(f"{{n:043d}}")
    else:
        with manager.new() as session:
            fill(session, n)
session = None
grown = rss() - before
pauses = []
for _ in range(5):
    start = time.perf_counter()
    gc.collect()
    pauses.append(time.perf_counter() - start)
print(json.dumps({{"bytes": grown / count, "gc_ms": min(pauses) * 1e3}}))
"""


@pytest.mark.benchmark(
    group="memory of 1,000,000 sessions (see extra info: bytes a session, full collection in ms)"
)
@pytest.mark.parametrize("kind", ["three keys", "no data", "dict of dicts"])
def test_memory(benchmark: Any, kind: str) -> None:
    script = SCRIPT.format(bench=__file__.rpartition("/")[0], kind=kind, count=MILLION)

    def run() -> None:
        out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        benchmark.extra_info.update(json.loads(out.stdout))

    benchmark.pedantic(run, rounds=1)
    print(
        f"\n{kind}: {benchmark.extra_info['bytes']:.0f} bytes a session, "
        f"full collection {benchmark.extra_info['gc_ms']:.1f} ms"
    )
