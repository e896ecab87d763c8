"""The timer wheel (src/_wheel.pxd) against a reference: never early, at most a tick late, nothing lost."""

import random
from types import ModuleType
from typing import Any

import pytest

TICK = 1 << 30
DAY = 86_400 * 10**9
# Where a level wraps: ticks before, at and after the multiples of 64, 64**2, 64**3 and 64**4.
EDGES = sorted(
    {max(0, 64**level * k + d) for level in range(1, 5) for k in (1, 3) for d in (-2, -1, 0, 1)} | {0, 5}
)


def ceil_tick(ns: int) -> int:
    return -(-ns // TICK)


def drain(wheel: Any, now: int, budget: int = 10**6) -> list[int]:
    fired = []
    while True:
        i, left = wheel.next(now, budget)
        if i is not None:
            fired.append(i)
        elif left > 0:
            return fired


@pytest.mark.parametrize("start", EDGES)
def test_a_timer_fires_within_a_tick_of_its_deadline_and_never_before(probe: ModuleType, start: int) -> None:
    spans = [1, 10**6, TICK - 1, TICK, TICK + 1, 10**10, 63 * TICK, 64 * TICK, 65 * TICK, 3600 * 10**9]
    spans += [
        4095 * TICK,
        4096 * TICK,
        DAY,
        3 * DAY,
        4 * DAY,
        64**3 * TICK,
        207 * DAY,
        64**4 * TICK,
        300 * DAY,
    ]
    for span in spans:
        wheel = probe.Wheel(start, 1)
        deadline = start * TICK + span
        wheel.file(0, deadline)
        assert wheel.check() == 1
        for now in (start * TICK, start * TICK + span // 3, start * TICK + span // 2, deadline - 1):
            assert drain(wheel, now) == [], (span, now)
            assert wheel.check() == 1
        assert drain(wheel, ceil_tick(deadline) * TICK) == [0], span
        assert wheel.check() == 0


@pytest.mark.parametrize("start", EDGES)
def test_every_slot_of_every_level_is_reached_from_any_tick(probe: ModuleType, start: int) -> None:
    spans = [64**level * k for level in range(4) for k in range(1, 65)]
    wheel = probe.Wheel(start, len(spans))
    for i, span in enumerate(spans):
        wheel.file(i, (start + span) * TICK)
    assert wheel.check() == len(spans)
    order = []
    for span in sorted(set(spans)):
        order += drain(wheel, (start + span) * TICK)
        assert wheel.check() == len(spans) - len(order)
    assert [spans[i] for i in order] == sorted(spans)


@pytest.mark.parametrize("start", [64**4 - 1, 64**4, 64**4 - 64**3, 3 * 64**4 - 2])
def test_a_timer_beyond_the_top_level_is_filed_early_and_again(probe: ModuleType, start: int) -> None:
    wheel = probe.Wheel(start, 1)
    deadline = (start + 5 * 64**4) * TICK + 1
    wheel.file(0, deadline)
    level, _ = wheel.slot_of(0)
    assert level == 3
    now = start
    while now < ceil_tick(deadline) - 64**3:
        now += 64**3
        assert drain(wheel, now * TICK) == []
        assert wheel.check() == 1
    assert wheel.refiled >= 5
    assert drain(wheel, deadline - 1) == []
    assert drain(wheel, deadline + TICK) == [0]


@pytest.mark.parametrize("start", [64**4 - 1, 2 * 64**4 - 1, 64**4 - 10])
def test_merely_crossing_the_top_level_boundary_makes_no_timer_late(probe: ModuleType, start: int) -> None:
    wheel = probe.Wheel(start, 3)
    for i, ticks in enumerate((1, 20, 70)):
        wheel.file(i, (start + ticks) * TICK)
    assert wheel.check() == 3
    assert drain(wheel, (start + 1) * TICK) == [0]
    assert drain(wheel, (start + 20) * TICK) == [1]
    assert drain(wheel, (start + 70) * TICK) == [2]


def test_a_deadline_in_the_past_fires_at_the_next_tick(probe: ModuleType) -> None:
    wheel = probe.Wheel(1000, 2)
    wheel.file(0, 3)
    wheel.file(1, 1000 * TICK)
    assert wheel.check() == 2
    assert drain(wheel, 1000 * TICK + TICK - 1) == []  # the tick that was looked at is not looked at again
    assert sorted(drain(wheel, 1001 * TICK)) == [0, 1]


def test_a_budget_of_one_looks_at_one_timer_a_call_and_still_ends(probe: ModuleType) -> None:
    n = 300
    wheel = probe.Wheel(0, n)
    for i in range(n):
        wheel.file(i, (70 + i % 7) * 64 * TICK)
    now, fired, calls = 80 * 64 * TICK, [], 0
    while wheel.is_behind(now):
        i, left = wheel.next(now, 1)
        calls += 1
        assert left == 0 or (i is None and not wheel.draining)
        if i is not None:
            fired.append(i)
        assert wheel.check() == n - len(fired)
        assert calls <= 4 * n + 1, "it makes no progress"
    assert sorted(fired) == list(range(n))


def test_a_budget_of_nothing_does_nothing(probe: ModuleType) -> None:
    wheel = probe.Wheel(0, 1)
    wheel.file(0, TICK)
    for _ in range(3):
        assert wheel.next(10 * TICK, 0) == (None, 0)
    assert wheel.check() == 1
    assert wheel.next(10 * TICK, 1) == (0, 0)


@pytest.mark.parametrize("victim", [0, 1, 7, 14, 15])
def test_a_timer_unlinked_during_a_sweep_is_not_handed_out(probe: ModuleType, victim: int) -> None:
    wheel = probe.Wheel(0, 16)
    for i in range(16):
        wheel.file(i, 5 * TICK)
    first, _ = wheel.next(9 * TICK, 1)
    assert wheel.draining
    if victim == first:
        victim = (victim + 1) % 16
    wheel.unlink(victim)
    assert wheel.check() == 14
    fired = [first, *drain(wheel, 9 * TICK)]
    assert sorted(fired) == [i for i in range(16) if i != victim]


def test_the_last_timer_unlinked_during_a_sweep_ends_it(probe: ModuleType) -> None:
    wheel = probe.Wheel(0, 2)
    wheel.file(0, 5 * TICK)
    wheel.file(1, 5 * TICK)
    first, _ = wheel.next(9 * TICK, 1)
    wheel.unlink(1 - first)
    assert not wheel.draining
    assert drain(wheel, 9 * TICK) == []


def test_a_timer_touched_during_a_sweep_is_filed_again(probe: ModuleType) -> None:
    wheel = probe.Wheel(0, 3)
    for i in range(3):
        wheel.file(i, 5 * TICK)
    first, _ = wheel.next(9 * TICK, 1)
    touched = (first + 1) % 3
    wheel.later(touched, 40 * TICK)
    assert drain(wheel, 9 * TICK) == [3 - first - touched]
    assert wheel.refiled == 1
    assert wheel.check() == 1
    assert drain(wheel, 40 * TICK) == [touched]


def test_a_timer_filed_during_a_sweep_waits_for_its_own_slot(probe: ModuleType) -> None:
    wheel = probe.Wheel(0, 4)
    for i in range(3):
        wheel.file(i, 5 * TICK)
    wheel.next(9 * TICK, 1)
    wheel.file(3, 7 * TICK)
    assert wheel.check() == 3
    assert 3 in drain(wheel, 9 * TICK)


def test_an_earlier_deadline_needs_no_waiting_for_the_old_slot(probe: ModuleType) -> None:
    wheel = probe.Wheel(0, 1)
    wheel.file(0, 300 * DAY)
    wheel.earlier(0, 5 * TICK)
    assert wheel.check() == 1
    assert drain(wheel, 5 * TICK) == [0]


def test_a_timer_in_constant_use_is_filed_again_a_few_times_per_ttl(probe: ModuleType) -> None:
    wheel = probe.Wheel(12345, 1)
    ttl, now = 1 * DAY, 12345 * TICK
    wheel.file(0, now + ttl)
    for _ in range(24 * 60 * 10):  # ten days, once a minute
        now += 60 * 10**9
        assert drain(wheel, now) == []
        wheel.later(0, now + ttl)
    assert wheel.refiled <= 4 * 10 + 4


@pytest.mark.parametrize(
    ("ticks", "levels"), [(1, 0), (30, 0), (63, 0), (4000, 1), (200_000, 2), (60 * 64**3, 3)]
)
def test_an_untouched_timer_is_filed_again_once_a_level_at_most(
    probe: ModuleType, ticks: int, levels: int
) -> None:
    wheel = probe.Wheel(64**4 * 8, 1)
    deadline = (64**4 * 8 + ticks) * TICK - 1
    wheel.file(0, deadline)
    assert drain(wheel, deadline - 1) == []
    assert drain(wheel, deadline + 1) == [0]
    assert wheel.refiled <= levels


def test_a_clock_that_goes_back_loses_nothing(probe: ModuleType) -> None:
    wheel = probe.Wheel(0, 3)
    wheel.file(0, 50 * TICK)
    wheel.file(1, 200 * TICK)
    assert drain(wheel, 100 * TICK) == [0]
    assert drain(wheel, 10 * TICK) == []
    assert wheel.tick == 100  # the wheel never turns backwards
    wheel.file(2, 20 * TICK)  # a deadline on the clock that went back
    assert wheel.check() == 2
    assert drain(wheel, 30 * TICK) == []
    assert drain(wheel, 101 * TICK) == [2]
    assert drain(wheel, 200 * TICK) == [1]


def test_a_sweep_that_the_clock_interrupts_going_back_keeps_what_is_not_due_any_more(
    probe: ModuleType,
) -> None:
    wheel = probe.Wheel(0, 4)
    for i in range(4):
        wheel.file(i, 50 * TICK - i)
    first, _ = wheel.next(60 * TICK, 1)
    assert drain(wheel, 10 * TICK) == []
    assert wheel.check() == 3
    assert sorted(drain(wheel, 60 * TICK)) == sorted({0, 1, 2, 3} - {first})


def test_next_slot_never_starts_after_the_earliest_deadline(probe: ModuleType) -> None:
    random_ = random.Random(4)
    for start in EDGES:
        wheel = probe.Wheel(start, 40)
        assert wheel.next_slot() is None
        earliest = 1 << 62
        for i in range(40):
            deadline = (start + 1) * TICK + random_.randrange(1 << random_.randrange(1, 56))
            wheel.file(i, deadline)
            earliest = min(earliest, deadline)
            assert start < wheel.next_slot()[0] <= ceil_tick(earliest)


class Reference:
    """What is in the wheel, and the tick by which a full drain must have handed each timer out."""

    def __init__(self, tick: int) -> None:
        self.tick = tick  # the furthest that was looked at
        self.inside: dict[int, tuple[int, int]] = {}  # number -> (deadline, latest tick)

    def file(self, i: int, deadline: int) -> None:
        self.inside[i] = deadline, max(ceil_tick(deadline), self.tick + 1)


@pytest.mark.parametrize(
    "start", [0, 64**2 - 3, 64**3 - 2, 64**3, 64**4 - 64**3 - 1, 64**4 - 2, 3 * 64**4 - 1]
)
@pytest.mark.parametrize("seed", range(6))
def test_R17_random_histories_match_the_reference(probe: ModuleType, start: int, seed: int) -> None:
    random_ = random.Random(start * 100 + seed)
    n = 40
    wheel, reference = probe.Wheel(start, n), Reference(start)
    now = start * TICK
    for step in range(1500):
        i, inside = random_.randrange(n), reference.inside
        what = random_.random()
        span = random_.randrange(1, 1 << random_.randrange(2, 56))  # ns to 800 days
        if what < 0.35:
            if i not in inside:
                deadline = now + span if random_.random() < 0.95 else max(0, now - span)
                wheel.file(i, deadline)
                reference.file(i, deadline)
        elif what < 0.5:
            if i in inside and now + span >= inside[i][0]:
                wheel.later(i, now + span)
                reference.file(i, now + span)
        elif what < 0.57:
            if i in inside:
                deadline = min(inside[i][0], now + span)
                wheel.earlier(i, deadline)
                reference.file(i, deadline)
        elif what < 0.67:
            if i in inside:
                wheel.unlink(i)
                del inside[i]
        else:
            if what < 0.7:
                now = max(0, now - random_.randrange(3 * TICK))
            elif what < 0.95:
                now += random_.randrange(1 << random_.randrange(1, 49))  # up to 78 h
            budget = random_.choice((0, 1, 1, 2, 5, 1000))
            while True:
                fired, budget = wheel.next(now, budget)
                if fired is None:
                    break
                assert inside.pop(fired)[0] <= now, "handed out before its deadline"
            reference.tick = max(reference.tick, wheel.tick)
            if budget > 0:  # it was not the budget that ended it: nothing that is due may be left
                assert not wheel.is_behind(now)
                late = [i for i, (_, latest) in inside.items() if latest <= now // TICK]
                assert not late, f"late at step {step}: {late}"
        assert wheel.check() == len(inside)
    now += 900 * DAY
    assert sorted(drain(wheel, now)) == sorted(reference.inside)
    assert wheel.check() == 0
