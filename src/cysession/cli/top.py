"""A live view: sessions, rates, latencies.

What can be seen from outside, without asking the application: who is there, by a scan that is spread out so that it
costs the storage at most a tenth of its time; what a request waits for, by making, reading, changing and destroying
one short-lived session of our own; and what the medium says of itself. With rich installed the screen is drawn anew,
else a line is added each time. --json gives a line of JSON each time.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from cysession import Record, ids
from cysession.errors import NotSupported, SessionError, StorageUnavailable
from cysession.session import Delta
from cysession.storage import Storage

from .numbers import natural, seconds
from .output import Output, ago, count, duration, size
from .target import add_target, opened, shown

__all__ = ["Sampler", "add_to", "run"]

SECOND: Final = 1_000_000_000
MINUTE: Final = 60
PROBE_LIFE: Final = (
    10 * SECOND
)  # of the session that measures latencies, should we die before it is destroyed
SHARE: Final = 10  # a scan that took one second is made at most every ten
SPAN: Final = 60  # samples that percentiles and curves look back on
STEPS: Final = ("create", "load", "commit", "destroy")


def add_to(parser: argparse.ArgumentParser) -> None:
    add_target(parser)
    parser.add_argument(
        "--every", type=seconds, default=2.0, metavar="S", help="seconds between two looks (default 2)"
    )
    parser.add_argument(
        "--count", type=natural(), default=0, metavar="N", help="stop after N looks (default: never)"
    )
    parser.add_argument("--plain", action="store_true", help="lines, even where a screen could be drawn")
    parser.add_argument("--no-probe", action="store_true", help="no session of our own, so no latencies")


def run(args: argparse.Namespace, output: Output) -> int:
    with opened(args.storage) as manager:
        sampler = Sampler(manager.storage, probe=not args.no_probe)
        samples = _paced(sampler.sample, max(0.1, args.every), args.count)
        if not args.json and not args.plain and sys.stdout.isatty() and _has_rich():
            _draw(samples, shown(args.storage))
        else:
            for number, sample in enumerate(samples):
                if not args.json and number % 20 == 0:
                    output.note(HEAD)
                output.step(sample.as_dict(), sample.line())
    return 0


def _paced(look: Callable[[], "Sample"], every: float, times: int) -> Iterator["Sample"]:
    due = time.monotonic()
    for number in itertools.count(1):
        yield look()
        if number == times:
            return
        due = max(due + every, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))


# ---- looking ------------------------------------------------------------------------------------------------


class Census(NamedTuple):
    """What a scan has seen."""

    at: float
    took: float
    live: int
    bound: int
    bytes: int
    active: int  # used within the last minute, as far as uses are noted
    born: float  # a second, since the scan before
    ended: float


class Sample(NamedTuple):
    at: float
    census: Census | None  # the latest; None: this storage cannot be scanned
    latency: dict[str, float]  # seconds, of this look's probe
    worst: dict[str, float]  # of the last SPAN probes
    median: dict[str, float]
    vitals: dict[str, float]  # and of those that only grow: how much a second
    error: str  # why the probe or the scan failed

    def as_dict(self) -> dict[str, Any]:
        seen = self.census
        return {
            "at": round(self.at, 3),
            "sessions": None if seen is None else seen._asdict(),
            "latency_seconds": self.latency,
            "median_seconds": self.median,
            "worst_seconds": self.worst,
            "storage": self.vitals,
            "error": self.error,
        }

    def line(self) -> str:
        seen = self.census
        cells = ["-"] * 5
        if seen is not None:
            rates = (f"{seen.born:.1f}", f"{seen.ended:.1f}")
            cells = [count(seen.live), count(seen.active), *rates, size(seen.bytes)]
        cells += [_micro(self.latency.get(step)) for step in STEPS]
        clock = time.strftime("%H:%M:%S", time.localtime(self.at))
        text = clock + "".join(cell.rjust(12) for cell in cells)
        return f"{text}  {self.error}" if self.error else text


HEAD: Final = "    time" + "".join(
    name.rjust(12) for name in ("live", "active", "born/s", "ended/s", "size", *(f"{s}, us" for s in STEPS))
)


def _micro(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e6:,.0f}"


class Sampler:
    """Looks at one storage again and again."""

    def __init__(self, storage: Storage, *, probe: bool = True) -> None:
        self._storage = storage
        self._probes = probe
        self._scans = True
        self._census: Census | None = None
        self._latencies: list[dict[str, float]] = []
        self._vitals: tuple[float, dict[str, float]] | None = None

    def sample(self) -> Sample:
        latency: dict[str, float] = {}
        error = ""
        try:
            if self._probes:
                latency = self._probe()
                self._latencies = [*self._latencies[1 - SPAN :], latency]
            self._look_around()
            vitals = self._read_vitals()
        except StorageUnavailable as failure:
            error, vitals = str(failure), {}
        columns = {step: sorted(one[step] for one in self._latencies) for step in STEPS if self._latencies}
        return Sample(
            at=time.time(),
            census=self._census,
            latency=latency,
            worst={step: times[-1] for step, times in columns.items()},
            median={step: times[len(times) // 2] for step, times in columns.items()},
            vitals=vitals,
            error=error,
        )

    def _probe(self) -> dict[str, float]:
        """The life of one session, by the steps that requests take."""
        storage, name = self._storage, ids.new_id()
        record = Record.build({"cysession": "top"}, storage.now_ns(), storage.now_ns() + PROBE_LIFE)
        calls: dict[str, Callable[[], object]] = {
            "create": lambda: storage.create_record(name, record, PROBE_LIFE),
            "load": lambda: storage.load_record(name, PROBE_LIFE),
            "commit": lambda: storage.commit_record(name, record, Delta({"seen": True}), PROBE_LIFE),
            "destroy": lambda: storage.delete_record(name),
        }
        times = {}
        try:
            for step, call in calls.items():
                begun = time.perf_counter()
                call()
                times[step] = time.perf_counter() - begun
        except SessionError as error:
            if isinstance(error, StorageUnavailable):
                raise
            raise StorageUnavailable(str(error)) from error
        return times

    def _look_around(self) -> None:
        last, now = self._census, time.time()
        if not self._scans or (last is not None and now - last.at < SHARE * last.took):
            return
        try:
            self._census = self._count(last, now)
        except NotSupported:
            self._scans = False

    def _count(self, last: Census | None, now: float) -> Census:
        begun = time.monotonic()
        live = bound = total = active = fresh = 0
        since = now if last is None else last.at
        for one in self._storage.scan():
            live += 1
            bound += bool(one.bound)
            total += one.size
            active += one.used_at is not None and now - one.used_at < MINUTE
            fresh += one.created_at > since
        took = time.monotonic() - begun
        passed = max(now - since, 1e-9)
        born = fresh / passed if last else 0.0
        ended = max(0, last.live + fresh - live) / passed if last else 0.0
        return Census(now, took, live, bound, total, active, born, ended)

    def _read_vitals(self) -> dict[str, float]:
        """Standing figures as they are; of those that grow, how much a second."""
        now, fresh = time.monotonic(), self._storage.vitals()
        last, self._vitals = self._vitals, (now, fresh)
        told = {name: value for name, value in fresh.items() if not name.endswith("_total")}
        if last is not None:
            before, then = last
            for name in fresh.keys() - told.keys():
                grown = (fresh[name] - then.get(name, fresh[name])) / max(now - before, 1e-9)
                told[f"{name.removesuffix('_total')}_per_second"] = max(0.0, grown)
        return told


# ---- drawing --------------------------------------------------------------------------------------------------


def _has_rich() -> bool:
    try:
        import rich.live  # noqa: F401
    except ModuleNotFoundError:
        return False
    return True


def _draw(samples: Iterator[Sample], title: str) -> None:
    from rich.live import Live

    seen: list[Sample] = []
    with Live(screen=True, auto_refresh=False) as live:
        for sample in samples:
            seen = [*seen[1 - SPAN :], sample]
            live.update(view(seen, title), refresh=True)


def view(samples: list[Sample], title: str) -> Any:
    """The screen for the latest of these samples, the others as curves: a rich renderable."""
    from rich.console import Group
    from rich.markup import escape
    from rich.panel import Panel
    from rich.table import Table

    now = samples[-1]
    sessions = Table.grid(padding=(0, 2))
    for label, value, curve in _session_rows(samples):
        sessions.add_row(label, f"[bold]{value}", f"[cyan]{curve}")
    latencies = Table("step", "now", "median", "worst", "", box=None, pad_edge=False)
    for step in STEPS if now.median else ():
        row = (now.latency.get(step), now.median.get(step), now.worst.get(step))
        curve = _curve([one.latency.get(step, 0.0) for one in samples])
        latencies.add_row(step, *(f"{_micro(cell)} us" for cell in row), f"[cyan]{curve}")
    vitals = Table.grid(padding=(0, 2))
    for name, figure in sorted(now.vitals.items()):
        vitals.add_row(
            name.replace("_", " "), size(figure) if "bytes" in name else f"{figure:,.1f}".removesuffix(".0")
        )
    parts: list[Any] = [Panel(sessions, title="sessions", title_align="left")]
    if now.median:
        parts.append(Panel(latencies, title="latency of a session of our own", title_align="left"))
    if now.vitals:
        parts.append(Panel(vitals, title="storage", title_align="left"))
    clock = time.strftime("%H:%M:%S", time.localtime(now.at))
    state = f"[bold red]{escape(now.error)}" if now.error else "[green]ok"
    return Group(
        f"[bold]cysession top[/]  {escape(title)}  {clock}  {state}", *parts, "[dim]stop with Ctrl-C"
    )


def _session_rows(samples: list[Sample]) -> Iterator[tuple[str, str, str]]:
    seen = samples[-1].census
    if seen is None:
        yield "live", "this storage cannot list its sessions", ""
        return
    past = [one.census for one in samples if one.census is not None]
    yield "live", count(seen.live), _curve([one.live for one in past])
    yield "used within a minute", count(seen.active), _curve([one.active for one in past])
    yield "bound to users", count(seen.bound), ""
    yield "begun a second", f"{seen.born:.1f}", _curve([one.born for one in past])
    yield "ended a second", f"{seen.ended:.1f}", _curve([one.ended for one in past])
    yield "size", size(seen.bytes), ""
    yield "counted", f"{ago(time.time() - seen.at)}, in {duration(seen.took)}", ""


def _curve(values: list[float] | list[int]) -> str:
    """A line of eight heights, from 0 to the largest value."""
    top = max(values, default=0)
    return "".join(" " if not top else "▁▂▃▄▅▆▇█"[min(7, int(value / top * 7.999))] for value in values)
