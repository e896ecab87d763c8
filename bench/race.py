"""How contenders are timed: in turn, round by round, so that whatever disturbs the machine disturbs all of them alike.

    def test_get(race):
        race("get", {"cysession": ours, "dict": theirs}, arguments=parts)

One call is one group of the report: a table whose rows were measured within the same second, not one after the other.
Every round runs each contender once, and the next round begins with another one, so that nobody always finds the
caches as the same neighbour left them. Some rounds that do not count come first. What exists before the race is
hidden from the garbage collector while it runs: the maps of one contender must not cost another collections.

A contender that cannot be built because its package is missing is handed in as `Absent` (`built` does that), and the
report has a row that says so.

    CYSESSION_BENCH_TIME    0.1: a tenth of the time for each contender, and where millions of sessions are made as
                            few of them, for a quick look at everything (default 1)
"""

import copy
import gc
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import pytest
from workload import LOOP

SHARE = float(os.environ.get("CYSESSION_BENCH_TIME", "1"))
WARM_UP = 0.05 * SHARE  # seconds a contender, and at least two rounds
SECONDS = 0.4  # a contender
ROUNDS = (10, 2000)  # at least, at most
PATIENCE = 10  # seconds beyond that, for the least rounds

Contender = Callable[..., object]
Arguments = Callable[[], tuple[Any, ...]]
added_us: dict[str, float] = {}
"""What is added to a bare request, for the summary at the end of the run."""


class Absent(NamedTuple):
    """A contender that is not installed."""

    package: str


def built(make: Callable[..., Any], *args: Any) -> Any:
    try:
        return make(*args)
    except ImportError as error:
        return Absent(error.name or str(error))


class Race:
    def __init__(self, benchmark: Any) -> None:
        self._benchmark = benchmark

    def __call__(
        self,
        group: str,
        contenders: Mapping[str, Contender | Absent],
        *,
        operations: int | Mapping[str, int] = LOOP,
        arguments: Arguments | Mapping[str, Arguments] = tuple,
        seconds: float = SECONDS,
        rounds: tuple[int, int] = ROUNDS,
        base: str | None = None,
        bare: str | None = None,
        bars: Mapping[str, float] | None = None,
        notes: Mapping[str, str] | None = None,
    ) -> dict[str, dict[str, Any]]:
        """Time them all. Returns what the report says of each beside its time, to be added to.

        Args:
            group: the title of the table.
            contenders: by name; called with what `arguments` makes, once a round.
            operations: how many of them one call does; by name where they differ.
            arguments: made anew, untimed, for every contender of every round; by name where they differ.
            seconds: how long to go on for each contender, within the least and the most `rounds`.
            base: the contender that ratios are given to, if not our own best.
            bare: the contender that the others contain; they are compared by what they add to it.
            bars: by name, the ratio to the base that we want to stay below.
            notes: by name, what a contender leaves out that a session needs; said where it beats us.
        """
        present = {name: run for name, run in contenders.items() if not isinstance(run, Absent)}
        absent = {name: run.package for name, run in contenders.items() if isinstance(run, Absent)}
        counts = {name: operations if isinstance(operations, int) else operations[name] for name in present}
        given = {name: arguments if callable(arguments) else arguments[name] for name in present}
        if self._benchmark.disabled:
            for name, run in present.items():
                run(*given[name]())
            self._benchmark._mode = "race"
            return {}
        results = {name: self._result(group, name, counts[name]) for name in present}
        self._run(present, results, given, seconds, rounds)
        self._annotate(results, absent, bars, notes)
        if base is not None:
            results[base].extra_info["base"] = True
        if bare is not None:
            self._subtract(results, bare)
        return {name: result.extra_info for name, result in results.items()}

    def facts(
        self,
        group: str,
        contenders: Mapping[str, Callable[[], Mapping[str, float]]],
        *,
        compare: str | None = None,
        times: int = 1,
        base: str | None = None,
        bars: Mapping[str, float] | None = None,
        notes: Mapping[str, str] | None = None,
    ) -> None:
        """Contenders that measure themselves, such as processes of their own: the least that they say in so many times.

        `compare` is the figure that ratios are made of; `bars` are in its unit.
        """
        found: dict[str, dict[str, float]] = {}
        absent: dict[str, str] = {}
        for _ in range(1 if self._benchmark.disabled else times):
            for name, ask in contenders.items():
                if name not in absent:
                    try:
                        told = ask()
                    except ImportError as error:
                        absent[name] = error.name or str(error)
                    else:
                        before = found.setdefault(name, dict(told))
                        found[name] = {key: min(before[key], value) for key, value in told.items()}
        self._benchmark._mode = "race"
        if self._benchmark.disabled:
            return
        results = {name: self._result(group, name, 1) for name in found}
        for name, result in results.items():
            result.stats.update(0.0)
            result.extra_info.update({key: round(value, 2) for key, value in found[name].items()})
            if compare is not None:
                result.extra_info["compare"] = compare
        if base is not None:
            results[base].extra_info["base"] = True
        self._annotate(results, absent, bars, notes)

    def _annotate(
        self,
        results: Mapping[str, Any],
        absent: Mapping[str, str],
        bars: Mapping[str, float] | None,
        notes: Mapping[str, str] | None,
    ) -> None:
        first = next(iter(results.values()))
        first.extra_info["load"] = round(os.getloadavg()[0], 2)
        if absent:
            first.extra_info["absent"] = dict(absent)
        for key, known in (("bar", bars), ("note", notes)):
            for name, value in (known or {}).items():
                if name in results:
                    results[name].extra_info[key] = value

    def _result(self, group: str, name: str, operations: int) -> Any:
        """One entry of pytest-benchmark's results; a test of ours has as many as it has contenders."""
        result = copy.copy(self._benchmark)
        result.group, result.name, result.extra_info = group, name, {}
        result._make_stats(operations)
        self._benchmark._mode = result._mode = "race"
        return result

    def _run(
        self,
        contenders: Mapping[str, Contender],
        results: Mapping[str, Any],
        arguments: Mapping[str, Arguments],
        seconds: float,
        rounds: tuple[int, int],
    ) -> None:
        clock = time.perf_counter
        gc.collect()
        gc.freeze()
        try:
            for name, run in contenders.items():
                begun, turns = clock(), 0
                while turns < 2 or (clock() - begun < WARM_UP and turns < rounds[0]):
                    run(*arguments[name]())
                    turns += 1
            order = [(run, arguments[name], results[name].stats.update) for name, run in contenders.items()]
            begun, budget = clock(), seconds * SHARE * len(order)
            least, most = max(3, int(rounds[0] * min(SHARE, 1))), rounds[1]
            for turn in range(most):
                spent = clock() - begun
                if spent > budget and (turn >= least or (turn >= 3 and spent > budget + PATIENCE)):
                    break  # not even the least rounds, where one contender is slower by a thousand times
                order.append(order.pop(0))
                for run, make, note in order:
                    given = make()
                    start = clock()
                    run(*given)
                    note(clock() - start)
        finally:
            gc.unfreeze()

    def _subtract(self, results: Mapping[str, Any], bare: str) -> None:
        """Two loops apart by a minute differ by more than a fast middleware costs; two in turn do not."""
        floor = results[bare].stats.stats
        results[bare].extra_info["bare"] = True
        for name, result in results.items():
            if name == bare:
                continue
            stats = result.stats.stats
            added = round((stats.min - floor.min) * 1e6, 3)
            result.extra_info["added_us"] = added
            result.extra_info["added_median_us"] = round((stats.median - floor.median) * 1e6, 3)
            added_us[f"{result.group}: {name}"] = added


@pytest.fixture
def race(benchmark: Any) -> Iterator[Race]:
    yield Race(benchmark)
