"""How benchmarks are timed and told: contenders in turn, a missing one named, ratios to the right row."""

from types import SimpleNamespace
from typing import Any

import pytest
from race import Absent, Race, built


class Benchmark:
    """What the race needs of pytest-benchmark's fixture."""

    disabled = False

    def __init__(self) -> None:
        self.made: list[Any] = []

    def __copy__(self) -> Any:
        other = SimpleNamespace(times=[])

        def make_stats(operations: int) -> None:
            other.operations = operations
            other.stats = SimpleNamespace(update=other.times.append)
            self.made.append(other)

        other._make_stats = make_stats
        return other


def test_every_round_runs_each_contender_and_begins_with_another() -> None:
    benchmark, order = Benchmark(), []
    contenders = {name: lambda name=name: order.append(name) for name in "abc"}
    Race(benchmark)("letters", contenders, operations=1, seconds=0.0, rounds=(6, 6))
    counted = order[-18:]  # behind those that warm up
    rounds = [counted[n : n + 3] for n in range(0, 18, 3)]
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert {one[0] for one in rounds} == {"a", "b", "c"}
    assert [len(made.times) for made in benchmark.made] == [6, 6, 6]


def test_arguments_are_made_for_every_round_and_not_timed() -> None:
    given: list[int] = []
    numbers = iter(range(1000))
    Race(Benchmark())(
        "numbers", {"cysession": given.append}, arguments=lambda: (next(numbers),), seconds=0.0, rounds=(4, 4)
    )
    assert given == list(range(len(given))) and len(given) > 4


def test_a_peer_that_is_not_installed_is_named() -> None:
    def peer() -> object:
        import no_such_package

        return no_such_package

    assert built(peer) == Absent("no_such_package")
    benchmark = Benchmark()
    said = Race(benchmark)(
        "maps", {"cysession": lambda: None, "peer": built(peer)}, seconds=0.0, rounds=(3, 3)
    )
    assert said["cysession"]["absent"] == {"peer": "no_such_package"} and list(said) == ["cysession"]


def test_figures_are_the_least_of_all_times() -> None:
    figures = iter([{"ms": 3.0, "bytes": 5.0}, {"ms": 2.0, "bytes": 7.0}])
    benchmark = Benchmark()
    Race(benchmark).facts("import", {"cysession": lambda: next(figures)}, compare="ms", times=2)
    assert benchmark.made[0].extra_info["ms"] == 2.0 and benchmark.made[0].extra_info["bytes"] == 5.0


def test_a_benchmark_that_is_switched_off_runs_each_once() -> None:
    benchmark, ran = Benchmark(), []
    benchmark.disabled = True
    Race(benchmark)("letters", {name: lambda name=name: ran.append(name) for name in "ab"})
    assert ran == ["a", "b"] and not benchmark.made


def test_an_error_of_a_contender_is_not_hidden() -> None:
    def wrong() -> None:
        raise RuntimeError("wrong")

    with pytest.raises(RuntimeError, match="wrong"):
        Race(Benchmark())("letters", {"cysession": wrong}, rounds=(3, 3))
