"""How the request cycle grows from 1,000 to 5,000,000 sessions: measures, prints a table, writes docs/growth.{md,svg}.

    python bench/growth.py [most sessions]

One process, one thread; every cycle meets the next id of a shuffled order, so beyond the caches' size each touches
cold memory. `dict.get` runs over the same ids between the other two, in alternating rounds; the figures are minima
of the rounds' means. 5,000,000 sessions take 2.5 GB.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from conftest import NAME, populate

from cysession import Manager, MemoryStorage

SIZES = (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000, 2_000_000, 5_000_000)
CYCLES = 200_000
ROUNDS = 7
DOCS = Path(__file__).resolve().parents[1] / "docs"


def measure(count: int) -> dict[str, float]:
    """ns per operation."""
    manager = Manager(ttl=3600, storage=MemoryStorage())
    ids = populate(manager, count)
    new, get = manager.new, dict.fromkeys(ids, 1).get

    def lookup(part: list[str]) -> None:
        for key in part:
            get(key)

    def read(part: list[str]) -> None:
        for key in part:
            session = new(key)
            session.get("uid")
            session.close()

    def write(part: list[str]) -> None:
        for key in part:
            session = new(key)
            session.get("uid")
            session.set("name", NAME)
            session.close()

    best: dict[str, float] = {}
    position = 0
    kinds: dict[str, Callable[[list[str]], None]] = {
        "dict.get": lookup,
        "read cycle": read,
        "write cycle": write,
    }
    for _ in range(ROUNDS):
        for name, run in kinds.items():
            part = [ids[(position + n) % count] for n in range(CYCLES)]
            position += CYCLES
            start = time.perf_counter()
            run(part)
            best[name] = min(best.get(name, 1e9), (time.perf_counter() - start) / CYCLES * 1e9)
    manager.close()
    return best


def table(rows: dict[int, dict[str, float]]) -> str:
    names = ("dict.get", "read cycle", "write cycle")
    lines = [
        "| sessions | "
        + " | ".join(f"{name}, ns" for name in names)
        + " | read / dict.get | write / dict.get |"
    ]
    lines.append("|---:|" + "---:|" * 5)
    for count, row in rows.items():
        bare, read, write = (row[name] for name in names)
        lines.append(
            f"| {count:,} | {bare:.0f} | {read:.0f} | {write:.0f} | {read / bare:.1f} | {write / bare:.1f} |"
        )
    return "\n".join(lines)


def plot(rows: dict[int, dict[str, float]], path: Path) -> None:
    ink = "#808080"  # readable on a light and on a dark page
    figure, axes = plt.subplots(figsize=(7, 4))
    for name, colour in (("write cycle", "#e07020"), ("read cycle", "#2090d0"), ("dict.get", ink)):
        axes.plot(list(rows), [row[name] for row in rows.values()], marker="o", label=name, color=colour)
    axes.set_xscale("log")
    axes.set_xlabel("live sessions")
    axes.set_ylabel("ns per cycle")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, labelcolor=ink)
    axes.tick_params(colors=ink)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(ink)
    for spine in axes.spines.values():
        spine.set_color(ink)
    figure.savefig(path, transparent=True, bbox_inches="tight", metadata={"Date": None})


def main() -> None:
    most = int(sys.argv[1]) if len(sys.argv) > 1 else SIZES[-1]
    rows = {}
    for count in SIZES:
        if count <= most:
            rows[count] = measure(count)
            print(f"{count:>9,}", {name: round(ns) for name, ns in rows[count].items()}, flush=True)
    text = table(rows)
    print(text)
    DOCS.joinpath("growth.md").write_text(
        "# Cost by number of sessions\n\n"
        "Written by `python bench/growth.py` on one machine, one thread: read ratios within a row, not nanoseconds\n"
        "across machines. A cycle is `new`, `get`, (`set`,) `close` over three string keys, ids in shuffled order.\n\n"
        f"{text}\n\n![cost by number of sessions](growth.svg)\n"
    )
    plot(rows, DOCS / "growth.svg")


if __name__ == "__main__":
    main()
