"""The breaker (R21, R42): opens after repeated failure, lets one probe through, closes with its success."""

import pytest

from cysession.storage.redis import breaker as module
from cysession.storage.redis.breaker import Breaker


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


def fail(breaker: Breaker, clock: Clock, times: int) -> None:
    for _ in range(times):
        clock.now += 0.001
        breaker.failed(clock.now)


def test_it_opens_after_the_third_failure_in_a_row(clock: Clock) -> None:
    breaker = Breaker(threshold=3)
    fail(breaker, clock, 2)
    breaker.succeeded()
    fail(breaker, clock, 2)
    assert breaker.admit()
    assert breaker.admit()
    fail(breaker, clock, 1)
    assert not breaker.closed
    assert not breaker.admit()


def test_what_fails_together_counts_once(clock: Clock) -> None:
    breaker = Breaker(threshold=3)
    for n in range(100):
        breaker.failed(clock.now - n)
    assert breaker.failures == 1
    assert breaker.closed


def test_one_probe_at_a_time(clock: Clock) -> None:
    breaker = Breaker(threshold=1, shortest=0.1, longest=1.0, patience=0.5)
    fail(breaker, clock, 1)
    clock.now += 1.0
    assert breaker.admit()
    assert not breaker.admit()
    breaker.succeeded()
    assert breaker.admit()
    assert breaker.closed


def test_a_failed_probe_opens_it_for_longer_but_never_for_too_long(clock: Clock) -> None:
    breaker = Breaker(threshold=1, shortest=0.1, longest=1.0)
    for _ in range(50):
        fail(breaker, clock, 1)
        assert not breaker.admit()
        clock.now += 1.0
        assert breaker.admit()


def test_a_probe_that_never_reports_is_replaced(clock: Clock) -> None:
    breaker = Breaker(threshold=1, patience=0.5)
    fail(breaker, clock, 1)
    clock.now += 1.0
    assert breaker.admit()
    clock.now += 0.4
    assert not breaker.admit()
    clock.now += 0.2
    assert breaker.admit()


def test_pauses_differ(clock: Clock) -> None:
    """Full jitter: processes that failed at the same moment do not come back at the same moment."""
    ends = set()
    for _ in range(20):
        breaker = Breaker(threshold=1, shortest=1.0, longest=1.0)
        fail(breaker, clock, 1)
        start = clock.now
        while not breaker.admit():
            clock.now += 0.01
        ends.add(round(clock.now - start, 2))
        clock.now = start
    assert len(ends) > 5
