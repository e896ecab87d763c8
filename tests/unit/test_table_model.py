"""SessionTable against a plain dict: random histories under a clock that jumps, integrity checked always."""

import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cysession import Record
from cysession._core import SessionTable

TICK = 1 << 30
HOUR = 3_600 * 10**9
DAY = 24 * HOUR
TTL = 100.0  # seconds; the table's own
EDGES = [0, 64, 64**2, 64**3 - 2, 64**3, 64**4 - 3, 64**4, 3 * 64**4 - 1]  # ticks at which levels wrap


@dataclass(slots=True)
class Entry:
    """What the table holds for one id: a record (None: a session without data) or the id that took over."""

    deadline: int
    record: Record | None
    moved_to: str | None = None
    filed: int = 0  # when it went into the wheel; by then its deadline may have been past


class Model:
    """Does every step on the table and on a dict, and asserts that they agree."""

    def __init__(self, start: int = 0) -> None:
        self.ns = start
        self.furthest = start  # the latest time the table has seen
        self.stored: dict[str, Entry] = {}
        self.expired: list[tuple[str, Record | None]] = []  # ended by time, not announced yet
        self.news: list[tuple[str, Record | None]] = []  # what on_expire has heard and nobody looked at yet
        self.table = SessionTable(TTL, clock=lambda: self.ns / 1e9, on_expire=self.news.extend)
        self.now = self.table.now_ns()

    def settle(self) -> None:
        """Each announcement is of a session that time has ended, and the only one of it."""
        for session_id, record in self.news:
            if (session_id, record) in self.expired:
                self.expired.remove((session_id, record))
                continue
            entry = self.stored.pop(session_id, None)
            assert entry is not None, "announced twice"
            assert entry.moved_to is None, "announced a sign to another id"
            assert entry.record is record, "announced a record of another session"
            assert entry.deadline <= self.now, "announced a live session"
        self.news.clear()

    def put_in(self, session_id: str, entry: Entry) -> None:
        """A new entry takes an id; a dead one that the wheel had not reached is owed an announcement."""
        old = self.stored.get(session_id)
        if old is not None and old.deadline <= self.now and old.moved_to is None:
            self.expired.append((session_id, old.record))
        entry.filed = self.furthest
        self.stored[session_id] = entry

    def live(self, session_id: str) -> Entry | None:
        entry = self.stored.get(session_id)
        return entry if entry is not None and entry.deadline > self.now else None

    def resolve(self, session_id: str) -> tuple[str, Entry | None]:
        while (entry := self.live(session_id)) is not None and entry.moved_to is not None:
            session_id = entry.moved_to
        return session_id, entry

    def end(self, record: Record | None, ttl: float | None) -> int:
        idle = int((TTL if ttl is None else ttl) * 1e9)
        return self.now + idle if record is None else min(self.now + (record.ttl or idle), record.cap)

    def same(self, got: Any, entry: Entry | None) -> None:
        if entry is None:
            assert got is None
        elif entry.record is None:
            assert got is not None
            assert len(got) == 0
        else:
            assert got is entry.record

    # ---- steps ---------------------------------------------------------------------------------------

    def move_clock(self, ns: int) -> None:
        self.ns += ns
        self.now = self.table.now_ns()
        self.furthest = max(self.furthest, self.now)

    def turn_clock_back(self, ns: int) -> None:
        """Only where it brings nothing back to life: the table forgets what has expired, when it likes."""
        self.drain(1000)
        if not any(e.deadline <= self.now for e in self.stored.values()):
            self.move_clock(-min(ns, self.ns))

    def add(self, session_id: str, record: Record | None, ttl: float | None) -> None:
        free = self.live(session_id) is None
        if free:
            self.put_in(session_id, Entry(self.end(record, ttl), record))
        assert self.table.add(session_id, record, ttl) is free

    def put(self, session_id: str, record: Record | None, ttl: float | None) -> None:
        self.put_in(session_id, Entry(self.end(record, ttl), record))
        self.table.put(session_id, record, ttl)

    def get(self, session_id: str) -> None:
        _, entry = self.resolve(session_id)
        self.same(self.table.get(session_id), entry)
        if entry is not None:
            entry.deadline, entry.filed = self.end(entry.record, None), self.furthest

    def peek(self, session_id: str) -> None:
        _, entry = self.resolve(session_id)
        self.same(self.table.peek(session_id), entry)
        assert (session_id in self.table) is (entry is not None)

    def touch(self, session_id: str) -> None:
        _, entry = self.resolve(session_id)
        assert self.table.touch(session_id) is (entry is not None)
        if entry is not None:
            entry.deadline, entry.filed = self.end(entry.record, None), self.furthest

    def replace(self, session_id: str, record: Record, ttl: float | None, stale: bool) -> None:
        entry = self.live(session_id)
        expected = (
            None if stale or entry is None or entry.moved_to is not None else self.table.peek(session_id)
        )
        if expected is not None and entry is not None:
            assert self.table.replace(session_id, expected, record, ttl)
            entry.record, entry.deadline, entry.filed = record, self.end(record, ttl), self.furthest
        else:
            assert not self.table.replace(session_id, STALE, record, ttl)

    def pop(self, session_id: str) -> None:
        found = False
        at: str | None = session_id
        while at is not None and (entry := self.live(at)) is not None:
            del self.stored[at]
            at, found = entry.moved_to, entry.moved_to is None
        assert self.table.pop(session_id) is found

    def rename(self, old: str, new: str, grace: float, wrong_birth: bool = False) -> None:
        at, entry = self.resolve(old)
        if wrong_birth and entry is not None and entry.record is not None:
            assert self.table.rename(old, new, grace, entry.record.birth ^ 2) is None
        elif entry is None:
            assert self.table.rename(old, new, grace) is None
        elif self.live(new) is not None:
            with pytest.raises(ValueError, match="in use"):
                self.table.rename(old, new, grace)
        else:
            self.put_in(new, Entry(self.end(entry.record, None), entry.record))
            if grace:
                self.stored[at] = Entry(self.now + int(grace * 1e9), None, new, self.furthest)
            else:
                del self.stored[at]
            self.same(self.table.rename(old, new, grace), entry)

    def expire(self, budget: int) -> None:
        self.settle()
        removed, more = self.table.expire(budget)
        assert removed == len(self.news) <= budget
        assert isinstance(more, bool)
        self.settle()

    def drain(self, budget: int) -> None:
        """Sweep until the table says that nothing more is due; nothing that is due may be left then."""
        while self.table.expire(budget)[1]:
            pass
        self.settle()
        for session_id, entry in list(self.stored.items()):
            if max(entry.deadline, entry.filed) <= self.furthest - 2 * TICK and entry.deadline <= self.now:
                assert entry.moved_to is not None, "a session outlived a full sweep by two ticks"
                del self.stored[session_id]  # gone without an announcement: it was only a sign

    def clear(self) -> None:
        self.table.clear()
        self.settle()
        self.stored.clear()

    # ---- what holds at any time ------------------------------------------------------------------------

    def check(self) -> None:
        self.settle()
        self.table._check()
        assert len(self.table) == sum(e.moved_to is None for e in self.stored.values())

    def check_snapshots(self) -> None:
        seen = Counter((i, id(r)) for shard in range(64) for i, r in self.table.snapshot(shard))
        assert seen == Counter(
            (i, id(e.record)) for i, e in self.stored.items() if e.deadline > self.now and e.moved_to is None
        )

    def check_next_due(self) -> None:
        due = self.table.next_due()
        for entry in self.stored.values():
            if entry.deadline > self.furthest:
                assert due is not None
                assert due * 1e9 <= entry.deadline - self.now + 2 * TICK

    def check_end(self) -> None:
        """Everything that time ended was announced, once each."""
        self.move_clock(1000 * DAY)
        self.drain(100)
        assert not [e for e in self.stored.values() if e.deadline <= self.now and e.moved_to is None]
        assert self.expired == []
        assert self.table.stats()["live"] == len(self.table)
        self.check()


STALE = Record.build({"stale": True}, 0)
IDS = [f"session-{i}" for i in range(10)] + ["x" * 128, "y"]
# Seconds: 1 ms to 300 days, and such that they end around the boundaries of the wheel's levels.
TTLS = [0.001, 0.5, 1.0, 1.0737, 2.2, 68.7, 70.0, 4398.0, 90_000.0, 281_000.0, 300 * 86_400.0]
JUMPS = [0, 1, 999_999, TICK - 1, TICK, TICK + 1, 10 * 10**9, 63 * TICK, 64 * TICK, HOUR, 75 * 60 * 10**9]
JUMPS += [DAY, 64**3 * TICK, 80 * HOUR]


class TableMachine(RuleBasedStateMachine):
    @initialize(start=st.sampled_from(EDGES), offset=st.integers(0, TICK))
    def begin(self, start: int, offset: int) -> None:
        self.model = Model(start * TICK + offset)

    ids = st.sampled_from(IDS)
    ttls = st.none() | st.sampled_from(TTLS) | st.floats(0.001, 300 * 86_400)
    records = st.builds(
        lambda ttl, left: (ttl, left),
        st.just(0) | st.sampled_from(TTLS).map(lambda s: int(s * 1e9)),
        st.none() | st.sampled_from(JUMPS) | st.integers(-DAY, 300 * DAY),
    )

    def record(self, spec: tuple[int, int | None] | None) -> Record | None:
        if spec is None:
            return None
        ttl, left = spec
        cap = Record.NEVER if left is None else max(0, self.model.now + left)
        return Record.build({"k": 1}, self.model.now, cap, ttl)

    @rule(i=ids, spec=st.none() | records, ttl=ttls)
    def add(self, i: str, spec: Any, ttl: float | None) -> None:
        self.model.add(i, self.record(spec), ttl)

    @rule(i=ids, spec=st.none() | records, ttl=ttls)
    def put(self, i: str, spec: Any, ttl: float | None) -> None:
        self.model.put(i, self.record(spec), ttl)

    @rule(i=ids)
    def get(self, i: str) -> None:
        self.model.get(i)

    @rule(i=ids)
    def peek(self, i: str) -> None:
        self.model.peek(i)

    @rule(i=ids)
    def touch(self, i: str) -> None:
        self.model.touch(i)

    @rule(i=ids, spec=records, ttl=ttls, stale=st.booleans())
    def replace(self, i: str, spec: Any, ttl: float | None, stale: bool) -> None:
        record = self.record(spec)
        assert record is not None
        self.model.replace(i, record, ttl, stale)

    @rule(i=ids)
    def pop(self, i: str) -> None:
        self.model.pop(i)

    @rule(old=ids, new=ids, grace=st.sampled_from([0.0, 0.0, 0.001, 30.0, 4000.0]), wrong=st.booleans())
    def rename(self, old: str, new: str, grace: float, wrong: bool) -> None:
        self.model.rename(old, new, grace, wrong)

    @rule(ns=st.sampled_from(JUMPS) | st.integers(0, 80 * HOUR))
    def wait(self, ns: int) -> None:
        self.model.move_clock(ns)

    @rule(ns=st.integers(0, 5 * TICK))
    def turn_back(self, ns: int) -> None:
        self.model.turn_clock_back(ns)

    @rule(budget=st.integers(0, 4) | st.just(256))
    def expire(self, budget: int) -> None:
        self.model.expire(budget)

    @rule(budget=st.integers(1, 3) | st.just(256))
    def drain(self, budget: int) -> None:
        self.model.drain(budget)

    @rule()
    def clear(self) -> None:
        self.model.clear()

    @rule()
    def look(self) -> None:
        self.model.check_snapshots()
        self.model.check_next_due()

    @invariant()
    def whole(self) -> None:
        if hasattr(self, "model"):
            self.model.check()

    def teardown(self) -> None:
        if hasattr(self, "model"):
            self.model.check_end()


TestTable = TableMachine.TestCase
TestTable.settings = settings(
    max_examples=200, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)


SEEDS, STEPS, CHECK_EVERY = 60, 20_000, 500


@pytest.mark.stress
@pytest.mark.parametrize("group", range(6))
def test_R17_long_random_histories(group: int) -> None:
    for seed in range(group * SEEDS // 6, (group + 1) * SEEDS // 6):
        long_history(seed)


def long_history(seed: int) -> None:
    draw = random.Random(seed)
    uniform, choice, below = draw.random, draw.choice, draw.randrange
    model = Model(EDGES[seed % len(EDGES)] * TICK + below(TICK))
    ids = [f"{seed}-{i}" for i in range(5 + 40 * (seed % 7))]

    def record() -> Record | None:
        kind = uniform()
        if kind < 0.2:
            return None
        if kind < 0.6:
            return PLAIN[below(len(PLAIN))]
        cap = Record.NEVER if kind < 0.8 else max(0, model.now + below(1 << below(20, 56)) - TICK)
        return Record.build({}, 0, cap, 0 if uniform() < 0.5 else below(1, 1 << below(20, 55)))

    for step in range(STEPS):
        what = uniform()
        i = choice(ids)
        if what < 0.30:
            model.get(i)
        elif what < 0.50:
            model.put(i, record(), choice(TTLS) if uniform() < 0.5 else None)
        elif what < 0.60:
            model.add(i, record(), choice(TTLS) if uniform() < 0.5 else None)
        elif what < 0.66:
            model.replace(i, record() or PLAIN[0], None, uniform() < 0.3)
        elif what < 0.74:
            model.pop(i)
        elif what < 0.80:
            model.rename(i, choice(ids), choice((0.0, 0.0, 5.0, 100.0)))
        elif what < 0.84:
            model.touch(i)
        elif what < 0.86:
            model.peek(i)
        elif what < 0.91:
            model.expire(choice((1, 1, 2, 3, 40)))
        elif what < 0.995:
            model.move_clock(below(1 << below(20, 34)))  # 1 ms to 17 s
        elif what < 0.998:
            model.move_clock(choice(JUMPS))
        elif what < 0.999:
            model.turn_clock_back(below(3 * TICK))
        else:
            model.drain(choice((1, 5, 256)))
        if step % CHECK_EVERY == 0:
            model.check()
            model.check_snapshots()
            model.check_next_due()
    model.check_end()


PLAIN = [Record.build({"n": n}, 0) for n in range(50)]
