"""Several handles on a few sessions against plain dicts: snapshots, merges by key, loans, rotation, ends.

The rules of the reference: a session sees what was committed when it started and its own changes; a commit
writes the keys that this session changed, in place or not, onto what is stored by then; an end is final.
"""

import copy
import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cysession import Manager, MemoryStorage, Session, SessionClosed, SessionGone, SessionStarted, Storage
from cysession.testing import FaultyStorage

GONE = object()


def canonical(value: Any) -> Any:
    """What makes two values the same: type, content and the order of keys."""
    if isinstance(value, list | tuple):
        return type(value), [canonical(v) for v in value]
    if isinstance(value, dict):
        return dict, [(canonical(k), canonical(v)) for k, v in value.items()]
    if isinstance(value, set):
        return set, sorted(repr(canonical(v)) for v in value)
    return type(value), repr(value)


def is_container(value: Any) -> bool:
    return type(value) in (list, dict, set, tuple)


@dataclass
class Stored:
    data: dict[str, Any]
    birth: int


@dataclass
class Own:
    """One changed or lent key: its value by now, and for a loan what it was when it was lent."""

    value: Any
    lent: Any = GONE  # GONE: written or removed, so a change whatever its value
    stale: bool = False  # lent before the last save and left alone: which of two values it reads as is open

    def changed(self) -> bool:
        return self.lent is GONE or canonical(self.value) != canonical(self.lent)


@dataclass
class Handle:
    session: Session
    name: str | None
    started: bool = False
    closed: bool = False
    own_name: bool = False
    cleared: bool = False
    birth: int = 0
    base: dict[str, Any] | None = None
    own: dict[str, Own] = field(default_factory=dict)

    def dirty(self) -> bool:
        if self.base is None:
            return any(own.changed() and own.value is not GONE for own in self.own.values())
        return self.cleared or any(own.changed() for own in self.own.values())

    def view(self) -> dict[str, Any]:
        seen = {} if self.cleared or self.base is None else dict(self.base)
        for key, own in self.own.items():
            if own.value is GONE:
                seen.pop(key, None)
            elif not own.stale:
                seen[key] = own.value
        return seen


class SessionMachine(RuleBasedStateMachine):
    def make_storage(self) -> Storage:
        return MemoryStorage()

    def __init__(self) -> None:
        super().__init__()
        self.storage = self.make_storage()
        self.table = getattr(self.storage, "inner", self.storage).table
        self.manager = Manager(1000, self.storage, max_bytes=0)
        self.server: dict[str, Stored | str] = {}  # id -> session, or the id that took over
        self.ids = ["never-stored"]
        self.handles: list[Handle] = []
        self.births = 0

    # ---- the reference ---------------------------------------------------------------------------

    def resolve(self, name: str | None) -> str | None:
        while name is not None and isinstance(target := self.server.get(name), str):
            name = target
        return name if name in self.server else None

    def start(self, h: Handle) -> None:
        if h.started or h.closed:
            return
        h.started = True
        at = self.resolve(h.name)
        if at is not None:
            stored = self.server[at]
            assert isinstance(stored, Stored)
            h.base, h.birth = copy.deepcopy(stored.data), stored.birth
        elif not h.own_name:
            h.name = None

    def commit(self, h: Handle) -> bool:
        """False: the session is gone."""
        if not h.started or not h.dirty():
            return True
        if h.base is None:
            at = self.resolve(h.name) if h.own_name else None
            if at is None:
                data = {
                    key: own.value for key, own in h.own.items() if own.value is not GONE and own.changed()
                }
                if not data:
                    return True
                h.name = at = h.session.id
                self.births += 1
                self.server[at] = Stored({}, self.births)
                self.ids.append(at)
        else:
            at = self.resolve(h.name)
        stored = self.server.get(at) if at is not None else None
        if not isinstance(stored, Stored) or (h.base is not None and stored.birth != h.birth):
            return False
        data = {} if h.cleared else stored.data
        for key, own in h.own.items():
            if own.changed():
                if own.value is GONE:
                    data.pop(key, None)
                else:
                    data[key] = copy.deepcopy(own.value)
        assert at is not None
        if data:
            stored.data = data
            h.base, h.birth = copy.deepcopy(data), stored.birth
            for key, own in list(h.own.items()):
                if is_container(own.value):
                    own.stale = not own.changed()
                    own.lent = copy.deepcopy(own.value)
                else:
                    del h.own[key]
        else:
            del self.server[at]
            h.base = None
            h.own.clear()
            if not h.own_name:
                h.name = None
        h.cleared = False
        return True

    # ---- steps -------------------------------------------------------------------------------------

    which = st.integers(0, 2)
    keys = st.sampled_from(["a", "b", "é"])
    values = st.sampled_from([0, "y" * 2000, [1], {"k": [1]}, {"s"}, ([1],), (1, 2)])

    @initialize()
    def begin(self) -> None:
        """Three handles on one stored session."""
        self.open(0, 0, False)
        for key, value in (("a", [1]), ("b", {"k": [1]}), ("é", "text")):
            self.put(0, key, value)
        self.commit_now(0, False)
        self.open(1, 1, False)
        self.open(2, 1, False)

    def handle(self, i: int) -> Handle | None:
        return self.handles[i] if i < len(self.handles) else None

    def expect_closed(self, h: Handle, call: Any) -> bool:
        if not h.closed:
            return False
        try:
            call()
        except SessionClosed:
            return True
        raise AssertionError("a closed session took a write")

    @rule(i=which, back=st.integers(0, 4), own_name=st.sampled_from([False, False, False, True]))
    def new(self, i: int, back: int, own_name: bool) -> None:
        self.open(i, back, own_name)

    def open(self, i: int, back: int, own_name: bool) -> None:
        """Present one of the latest ids; 0: none."""
        known = self.ids[-min(back or 1, len(self.ids))]
        presented = known if back else ""
        h = Handle(self.manager.new(presented), presented or None)
        if own_name:
            h.name, h.own_name = known, True
            h.session.set_id(known)
        if i < len(self.handles):
            self.handles[i] = h
        else:
            self.handles.append(h)

    @rule(i=which, key=keys)
    def read(self, i: int, key: str) -> None:
        if (h := self.handle(i)) is None or (h.closed and not h.started):
            return
        self.look(h, key)

    def look(self, h: Handle, key: str) -> None:
        self.start(h)
        self.lend(h, key, h.session.get(key, GONE))

    def lend(self, h: Handle, key: str, got: Any) -> None:
        own = h.own.get(key)
        if own is not None and own.stale:
            stored = GONE if h.base is None or h.cleared else h.base.get(key, GONE)
            assert canonical(got) in (canonical(own.lent), canonical(stored))
            del h.own[key]
            if got is not GONE and is_container(got):
                h.own[key] = Own(copy.deepcopy(got), copy.deepcopy(got))
            return
        expected = h.view().get(key, GONE)
        assert canonical(got) == canonical(expected), (got, expected)
        if own is None and got is not GONE and is_container(got) and not h.closed:
            h.own[key] = Own(copy.deepcopy(got), copy.deepcopy(got))

    @rule(i=which, key=keys, value=values)
    def write(self, i: int, key: str, value: Any) -> None:
        self.put(i, key, value)

    @rule(i=which, n=st.integers(1, 30))
    def write_many(self, i: int, n: int) -> None:
        for k in range(n):
            self.put(i, f"k{k}", k)

    def put(self, i: int, key: str, value: Any) -> None:
        if (h := self.handle(i)) is None or self.expect_closed(h, lambda: h.session.set(key, value)):
            return
        self.start(h)
        h.session[key] = copy.deepcopy(value)
        h.own[key] = Own(copy.deepcopy(value))

    @rule(i=which, key=keys, n=st.integers(0, 3))
    def change_in_place(self, i: int, key: str, n: int) -> None:
        """The same change to what the session handed out and to what the reference holds."""
        if (h := self.handle(i)) is None or h.closed:
            return
        self.look(h, key)
        if key not in h.own or not is_container(h.own[key].value):
            return
        for value in (h.session[key], h.own[key].value):
            while type(value) is tuple and value:
                value = value[0]
            if type(value) is list:
                value.append(n) if n else value.clear()
            elif type(value) is dict:
                value.setdefault("k", []).append(n) if n else value.clear()
            elif type(value) is set:
                value ^= {n}

    @rule(i=which, key=keys, way=st.sampled_from(["del", "pop", "remove"]))
    def remove(self, i: int, key: str, way: str) -> None:
        if (h := self.handle(i)) is None or self.expect_closed(h, lambda: h.session.remove(key)):
            return
        self.look(h, key)
        present = key in h.view() or (key in h.own and h.own[key].value is not GONE)
        if way == "pop":
            assert (h.session.pop(key, GONE) is not GONE) is present
        elif way == "remove":
            h.session.remove(key)
        else:
            try:
                del h.session[key]
                assert present
            except KeyError:
                assert not present
        if present:
            h.own[key] = Own(GONE)

    @rule(i=which)
    def remove_all(self, i: int) -> None:
        if (h := self.handle(i)) is None or self.expect_closed(h, lambda: h.session.remove_all()):
            return
        self.start(h)
        h.session.clear()
        h.own.clear()
        h.cleared = True

    @rule(i=which, close=st.booleans())
    def save(self, i: int, close: bool) -> None:
        self.commit_now(i, close)

    def commit_now(self, i: int, close: bool) -> None:
        if (h := self.handle(i)) is None or h.closed:
            return
        try:
            h.session.save()
            done = True
        except SessionGone:
            done = False
        assert self.commit(h) is done
        if close and done:
            h.session.close()
            h.closed = True
            h.own.clear()

    @rule(i=which)
    def discard(self, i: int) -> None:
        if (h := self.handle(i)) is not None:
            h.session.discard()
            h.own.clear()
            h.cleared = False

    @rule(i=which)
    def destroy(self, i: int) -> None:
        if (h := self.handle(i)) is None or self.expect_closed(h, lambda: h.session.destroy()):
            return
        h.session.destroy()
        at = h.name
        while at is not None:
            ended = self.server.pop(at, None)
            at = ended if isinstance(ended, str) else None
        h.started, h.own_name, h.cleared, h.base, h.name = True, False, False, None, None
        h.own.clear()

    @rule(i=which, delete_old=st.booleans())
    def rotate(self, i: int, delete_old: bool) -> None:
        if (h := self.handle(i)) is None or self.expect_closed(h, lambda: h.session.regenerate_id()):
            return
        self.start(h)
        try:
            fresh = h.session.regenerate_id(delete_old)
        except SessionGone:
            fresh = ""
        if h.base is not None:
            at = self.resolve(h.name)
            stored = self.server.get(at) if at is not None else None
            alive = isinstance(stored, Stored) and stored.birth == h.birth
            assert alive is bool(fresh)
            if not alive:
                return
            assert at is not None
            assert stored is not None
            self.server[fresh] = stored
            if delete_old:
                del self.server[at]
            else:
                self.server[at] = fresh
        assert fresh
        self.ids.append(fresh)
        h.name = fresh

    @rule(i=which)
    def look_at_all(self, i: int) -> None:
        if (h := self.handle(i)) is None or (h.closed and not h.started):
            return
        self.start(h)
        if any(own.stale for own in h.own.values()):
            return
        view = h.view()
        assert len(h.session) == len(view)
        assert set(h.session) == set(view)
        got = h.session.get_map()
        for key in got:
            self.lend(h, key, got[key])
        assert h.session.is_new is (h.base is None)
        if h.base is not None:
            assert h.session.id == h.name

    @precondition(lambda self: self.handles)
    @rule(i=which)
    def too_late_to_choose(self, i: int) -> None:
        h = self.handle(i)
        if h is not None and h.started:
            try:
                h.session.set_id("x")
                raise AssertionError("a started session took an id")
            except SessionStarted:
                pass

    # ---- what holds at any time ------------------------------------------------------------------------

    @invariant()
    def what_is_stored(self) -> None:
        stored = dict(row for shard in range(64) for row in self.table.snapshot(shard))
        expected = {i: s.data for i, s in self.server.items() if isinstance(s, Stored)}
        assert stored.keys() == expected.keys()
        for i, record in stored.items():
            assert canonical(sorted(record.to_dict().items())) == canonical(sorted(expected[i].items()))
        self.table._check()

    @invariant()
    def what_is_dirty(self) -> None:
        for h in self.handles:
            assert h.session.is_dirty is (h.started and not h.closed and h.dirty())

    def teardown(self) -> None:
        self.storage.close()


class ProtocolMachine(SessionMachine):
    """The same through the record protocol."""

    def make_storage(self) -> Storage:
        return FaultyStorage(MemoryStorage())


STEPS = (
    ["read"] * 12
    + ["put"] * 12
    + ["change_in_place"] * 12
    + ["commit_now"] * 24
    + ["open"] * 9
    + ["remove"] * 3
)
STEPS += ["look_at_all"] * 3 + ["write_many", "discard", "remove_all", "destroy", "rotate"]
VALUES = [0, "y" * 2000, [1], {"k": [1]}, {"s"}, ([1],), (1, 2)]


@pytest.mark.stress
@pytest.mark.parametrize("machine", [SessionMachine, ProtocolMachine])
@pytest.mark.parametrize("seed", range(12))
def test_random_histories(machine: type[SessionMachine], seed: int) -> None:
    """More steps than hypothesis takes, and more of those that requests take most."""
    draw = random.Random(seed)
    m = machine()
    m.begin()
    for _ in range(1000):
        step, i, key, n = draw.choice(STEPS), draw.randrange(3), draw.choice("abé"), draw.randrange(8)
        choices: dict[str, tuple[Any, ...]] = {
            "read": (key,),
            "put": (key, draw.choice(VALUES)),
            "write_many": (n * 4,),
            "change_in_place": (key, n % 4),
            "remove": (key, ("del", "pop", "remove")[n % 3]),
            "commit_now": (n == 0,),
            "open": (draw.choice((0, 1, 1, 1, 1, 1, 1, 1, 2, 3)), draw.random() < 0.05),
            "rotate": (n > 4,),
        }
        getattr(m, step)(i, *choices.get(step, ()))
        m.what_is_stored()
        m.what_is_dirty()
    m.teardown()


TestSessions = SessionMachine.TestCase
TestSessionsByTheRecordProtocol = ProtocolMachine.TestCase
TestSessions.settings = settings(
    max_examples=300, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestSessionsByTheRecordProtocol.settings = settings(TestSessions.settings, max_examples=150)
