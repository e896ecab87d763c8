"""Session over the compiled table: what one handle does, a statement a test.

The rules that hold on every storage are in cysession.testing and run from tests/contract.
"""

import asyncio
import gc
import sys
import time
import tracemalloc
import weakref
from collections.abc import Callable, Iterator, MutableMapping
from datetime import timedelta
from typing import Any

import pytest

from cysession import (
    Manager,
    MemoryStorage,
    NotSerializable,
    Record,
    Session,
    SessionClosed,
    SessionGone,
    SessionStarted,
    SessionTooLarge,
    Storage,
    StorageMisconfigured,
)
from cysession.ids import new_id
from cysession.testing import FakeClock, FaultyStorage


@pytest.fixture(params=[MemoryStorage, lambda: FaultyStorage(MemoryStorage())], ids=["table", "protocol"])
def storage(request: pytest.FixtureRequest) -> Iterator[Storage]:
    """Both ways a session commits: in C straight to the table, and through the record protocol."""
    storage = request.param()
    yield storage
    storage.close()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def manager(storage: Storage, clock: FakeClock) -> Manager:
    return Manager(100, storage, max_age=1000, clock=clock, max_bytes=5000)


def stats(manager: Manager) -> dict[str, int]:
    return manager.storage.stats()


def stored(manager: Manager, **data: Any) -> str:
    with manager.new() as session:
        session.set_map(data)
    return session.id


# ---- a handle ------------------------------------------------------------------------------------


def test_a_handle_asks_nothing_until_it_is_used(manager: Manager) -> None:
    session_id = stored(manager, a=1)
    before = stats(manager)
    for _ in range(3):
        session = manager.new(session_id)
        assert not session.accessed
        assert session.cookie_state == "keep"
        assert not session.is_dirty
        assert "not started" in repr(session)
        session.discard()
        session.save()
        session.close()
    with manager.new(session_id):
        pass
    asyncio.run(manager.new(session_id).aclose())
    assert stats(manager) == before


USES: dict[str, Callable[[Session], object]] = {
    "get": lambda s: s.get("a"), "[]": lambda s: s["a"], "in": lambda s: "a" in s,
    "contains": lambda s: s.contains("a"),
    "len": len, "size": lambda s: s.size(), "iter": iter, "keys": lambda s: s.keys(),
    "values": lambda s: s.values(),
    "items": lambda s: s.items(), "get_map": lambda s: s.get_map(), "==": lambda s: s == {},
    "id": lambda s: s.id,
    "is_new": lambda s: s.is_new, "created_at": lambda s: s.created_at, "expires_at": lambda s: s.expires_at,
    "ttl": lambda s: s.ttl, "set": lambda s: s.set("b", 1), "[]=": lambda s: s.__setitem__("b", 1),
    "set_map": lambda s: s.set_map({"b": 1}), "update": lambda s: s.update(b=1),
    "setdefault": lambda s: s.setdefault("b"),
    "remove": lambda s: s.remove("a"), "del": lambda s: s.__delitem__("a"), "pop": lambda s: s.pop("a"),
    "popitem": lambda s: s.popitem(), "remove_all": lambda s: s.remove_all(), "clear": lambda s: s.clear(),
    "ttl=": lambda s: setattr(s, "ttl", 5), "regenerate_id": lambda s: s.regenerate_id(), "bool": bool,
}  # fmt: skip


@pytest.mark.parametrize("use", USES)
def test_each_first_use_starts_it_and_counts_as_an_access(manager: Manager, use: str) -> None:
    session = manager.new(stored(manager, a=1))
    USES[use](session)
    assert session.accessed
    assert "open" in repr(session)
    with pytest.raises(SessionStarted):
        session.set_id("x")
    with pytest.raises(SessionStarted):
        session.set_id_func(new_id)
    session.close()


def test_an_access_is_one_read_of_the_storage(manager: Manager) -> None:
    session_id = stored(manager, a=1, b=2)
    before = stats(manager)
    session = manager.new(session_id)
    assert dict(session) == {"a": 1, "b": 2}
    session.close()
    after = stats(manager)
    assert after["hits"] + after["misses"] == before["hits"] + before["misses"] + 1


def test_load_starts_it_without_counting_as_an_access(manager: Manager) -> None:
    session = manager.new(stored(manager, a=1))
    session.load()
    session.load()
    assert "open" in repr(session)
    assert not session.accessed


@pytest.mark.parametrize("presented", [1, b"abc", ["a"], 1.5, type("Text", (str,), {})("a")])
def test_an_id_that_is_no_str_is_a_type_error(manager: Manager, presented: Any) -> None:
    with pytest.raises(TypeError, match="a session id is a str"):
        manager.new(presented)


@pytest.mark.parametrize("presented", [None, ""])
def test_no_id_is_a_new_session(manager: Manager, presented: Any) -> None:
    session = manager.new(presented)
    assert session.is_new
    assert session.cookie_state == "keep"


# ---- identity ------------------------------------------------------------------------------------


def test_the_id_of_a_new_session_is_drawn_once_and_stores_nothing(manager: Manager) -> None:
    session = manager.new()
    assert session.id == session.id
    assert len(session.id) == 43
    session.close()
    assert stats(manager)["live"] == 0


@pytest.mark.parametrize("made", [None, 7, "", "a b", "x" * 129, "ü", b"abc"])
def test_an_id_function_that_returns_no_id_is_an_error(manager: Manager, made: Any) -> None:
    session = manager.new()
    session.set_id_func(lambda: made)
    with pytest.raises(ValueError, match="id function"):
        session.id  # noqa: B018
    session["a"] = 1
    with pytest.raises(ValueError, match="id function"):
        session.save()
    assert stats(manager)["live"] == 0


def test_an_id_function_that_repeats_itself_is_an_error_not_a_loop(manager: Manager) -> None:
    for data in ({"a": 1}, {"a": 2}):
        session = manager.new()
        session.set_id_func(lambda: "always-the-same")
        session.set_map(data)
        if data["a"] == 2:
            with pytest.raises(ValueError, match="in use"):
                session.save()
        else:
            session.save()
    assert manager.new("always-the-same").get_map() == {"a": 1}


def test_R38_what_an_id_function_raises_reaches_the_caller(manager: Manager) -> None:
    def broken() -> str:
        raise RuntimeError("no ids today")

    session = manager.new()
    session.set_id_func(broken)
    session["a"] = 1
    with pytest.raises(RuntimeError, match="no ids today"):
        session.save()
    assert session["a"] == 1


@pytest.mark.parametrize("func", [None, "x", 1])
def test_an_id_function_must_be_callable(manager: Manager, func: Any) -> None:
    with pytest.raises(TypeError):
        manager.new().set_id_func(func)


def test_a_set_id_wins_over_the_presented_one(manager: Manager) -> None:
    one, other = stored(manager, a=1), stored(manager, a=2)
    session = manager.new(one)
    session.set_id(other)
    assert session["a"] == 2
    assert session.id == other
    assert session.cookie_state == "set"


# ---- reading and writing: the protocol of a mutable mapping --------------------------------------


def test_it_is_a_mutable_mapping(manager: Manager) -> None:
    session = manager.new()
    assert isinstance(session, MutableMapping)
    for name in ("get", "keys", "items", "values", "pop", "popitem", "clear", "update", "setdefault"):
        assert callable(getattr(session, name))
    assert Session.__hash__ is None
    with pytest.raises(TypeError):
        hash(session)


def test_equality_is_of_the_data(manager: Manager) -> None:
    session = manager.new(stored(manager, a=[1]))
    assert session == {"a": [1]}
    assert session == manager.new(session.id)
    assert session != {"a": [2]}
    assert session != [("a", [1])]
    assert session == Record.build({"a": [1]}, 0)


def test_missing_keys(manager: Manager) -> None:
    session = manager.new(stored(manager, a=1))
    assert session.get("b") is None
    assert session.get("b", 5) == 5
    assert session.pop("b", 5) == 5
    session.remove("b", "c")
    assert not session.is_dirty
    for act in (lambda: session["b"], lambda: session.pop("b"), lambda: session.__delitem__("b")):
        with pytest.raises(KeyError, match="b"):
            act()
    with pytest.raises(TypeError):
        session.pop("a", 1, 2)
    session.clear()
    with pytest.raises(KeyError):
        session.popitem()


@pytest.mark.parametrize("key", [1, None, b"a", ("a",), [], {}])
def test_what_is_no_str_is_never_found(manager: Manager, key: Any) -> None:
    few, many = manager.new(), manager.new()
    few["a"] = 1
    many.update({f"k{i}": i for i in range(30)})
    for session in (few, many):
        assert session.get(key, "default") == "default"
        assert key not in session
        session.remove(key)
        with pytest.raises(KeyError):
            session[key]


def test_update_takes_what_dict_takes(manager: Manager) -> None:
    session = manager.new()
    session.update({"a": 1}, b=2)
    session.update([("c", 3)])
    session.update(d=4)
    session.update(mapping=5)  # a key like any other
    session.update()
    assert {**session} == session.get_map()
    assert list(session) == ["a", "b", "c", "d", "mapping"]


def test_what_a_dict_has_beyond_the_protocol(manager: Manager) -> None:
    session = same = manager.new(stored(manager, a=1, cart=["tea"]))
    session |= {"b": 2}
    session |= [("c", 3)]
    assert session is same and session.is_dirty
    with pytest.raises(TypeError):
        session |= 5  # type: ignore[arg-type]
    taken = session.copy()
    taken["d"] = 4
    assert type(taken) is dict and "d" not in session
    taken["cart"].append("milk")  # as shallow as that of a dict
    assert session == {"a": 1, "b": 2, "c": 3, "cart": ["tea", "milk"]}


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 9, 11, 12, 13, 31, 33, 100, 1000])
def test_any_number_of_changes(manager: Manager, n: int) -> None:
    """From a few in the handle itself over a vector to one with an index."""
    session = manager.new(stored(manager, k0="old", other=1))
    for i in range(n):
        session[f"k{i}"] = i
        assert session[f"k{i}"] == i
    assert len(session) == n + 1
    for i in range(0, n, 2):
        del session[f"k{i}"]
    for i in range(0, n, 4):
        session[f"k{i}"] = [i]
    expected = {"k0": [0], "other": 1} | {
        f"k{i}": i if i % 2 else [i] for i in range(1, n) if i % 2 or i % 4 == 0
    }
    assert session.get_map() == expected
    if n == 1000:
        with pytest.raises(SessionTooLarge):
            session.save()
    else:
        session.save()
        assert manager.new(session.id).get_map() == expected


@pytest.mark.parametrize("n", [5, 9, 40, 140])
def test_any_number_of_values_on_loan(manager: Manager, n: int) -> None:
    """They are found again after one of them was taken back, and over a save; short keys and others."""
    keys = [f"k{i}" if i % 3 else f"ключ {i}" for i in range(n)]
    session = manager.new(stored(manager, **{key: [i] for i, key in enumerate(keys)}))
    lent = session.get_map()
    assert list(lent.items()) == [(key, [i]) for i, key in enumerate(keys)]
    assert session.modify(keys[n // 2], lambda value: [*value, "more"]) == [n // 2, "more"]
    for key in (keys[0], keys[-1]):
        lent[key].append("in place")
    del session[keys[1]]
    session["new"] = 1
    session.save()
    lent[keys[-1]].append("again")
    session.save()
    expected = {key: [i] for i, key in enumerate(keys) if i != 1} | {"new": 1}
    expected[keys[n // 2]].append("more")
    expected[keys[0]].append("in place")
    expected[keys[-1]] += ["in place", "again"]
    assert list(session.items()) == list(expected.items())
    assert list(manager.new(session.id).items()) == list(expected.items())


def test_equal_keys_that_are_other_objects_are_one_key(manager: Manager) -> None:
    session = manager.new()
    for i in range(20):
        session["".join(["k", str(i)])] = 1
        session["".join(["k", str(i)])] = 2
    assert len(session) == 20
    assert set(session.values()) == {2}


def test_a_key_removed_and_set_again(manager: Manager) -> None:
    session = manager.new(stored(manager, a=1, b=2))
    del session["a"]
    assert "a" not in session
    session["a"] = 3
    assert session["a"] == 3
    session.save()
    assert manager.new(session.id).get_map() == {"a": 3, "b": 2}


def test_setdefault_hands_out_what_belongs_to_the_session(manager: Manager) -> None:
    session = manager.new()
    session.setdefault("cart", []).append("book")
    assert session.setdefault("cart", ["other"]) == ["book"]
    session.save()
    session.setdefault("cart", []).append("pen")
    session.close()
    assert manager.new(session.id)["cart"] == ["book", "pen"]


# ---- changes in place ----------------------------------------------------------------------------

IN_PLACE: dict[str, tuple[Any, Callable[[Any], object], Any]] = {
    "list": ([1], lambda v: v.append(2), [1, 2]),
    "dict": ({"a": 1}, lambda v: v.update(a=2), {"a": 2}),
    "set": ({1}, lambda v: v.add(2), {1, 2}),
    "list in dict": ({"a": [1]}, lambda v: v["a"].clear(), {"a": []}),
    "dict in list": ([{}], lambda v: v[0].update(x=1), [{"x": 1}]),
    "set in tuple": (({1},), lambda v: v[0].clear(), (set(),)),
    "list in tuple in dict": ({"a": (0, [1])}, lambda v: v["a"][1].append(2), {"a": (0, [1, 2])}),
    "order of a dict": ({"a": 1, "b": 2}, lambda v: v.update(a=v.pop("a")), {"b": 2, "a": 1}),
    "type of a member": ([1], lambda v: v.__setitem__(0, True), [True]),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_a_change_in_place_is_noticed(manager: Manager, name: str) -> None:
    before, change, after = IN_PLACE[name]
    session = manager.new(stored(manager, v=before, other=1))
    value = session["v"]
    assert not session.is_dirty
    change(value)
    assert session.is_dirty
    session.save()
    assert not session.is_dirty
    assert repr(manager.new(session.id)["v"]) == repr(after)


@pytest.mark.parametrize("read", ["get", "values", "items", "get_map", "pop and set", "setdefault"])
def test_whichever_way_a_value_was_read_its_changes_count(manager: Manager, read: str) -> None:
    session = manager.new(stored(manager, v=[1]))
    value = {
        "get": lambda: session.get("v"), "values": lambda: session.values()[0],
        "items": lambda: session.items()[0][1],
        "get_map": lambda: session.get_map()["v"],
        "pop and set": lambda: session.setdefault("v", session.pop("v")),
        "setdefault": lambda: session.setdefault("v"),
    }[read]()  # fmt: skip
    value.append(2)
    assert session["v"] is value
    session.close()
    assert manager.new(session.id)["v"] == [1, 2]


def test_reading_a_value_twice_gives_the_same_object(manager: Manager) -> None:
    session = manager.new(stored(manager, v=[1]))
    assert session["v"] is session["v"] is session.get_map()["v"]


def test_a_value_stays_on_loan_over_a_save(manager: Manager) -> None:
    session = manager.new()
    mine: list[int] = []
    session["v"] = mine
    for i in range(3):
        session.save()
        assert not session.is_dirty
        mine.append(i)
        assert session.is_dirty
    session.close()
    assert manager.new(session.id)["v"] == [0, 1, 2]


def test_a_value_read_and_left_alone_is_no_change(manager: Manager) -> None:
    session_id = stored(manager, v=[1, {"a": (1.5, float("nan"))}])
    one, other = manager.new(session_id), manager.new(session_id)
    other["v"] = "new"
    assert one["v"]
    other.close()
    one["w"] = 1
    one.close()
    assert manager.new(session_id)["v"] == "new"


def test_a_value_only_read_is_not_written_back_by_a_second_save(manager: Manager) -> None:
    """An application saves, then its middleware closes: between the two somebody else's value was loaded."""
    session_id = stored(manager, cart=["book"], n=0)
    one, other = manager.new(session_id), manager.new(session_id)
    assert one["cart"] == ["book"]
    other["cart"].append("pen")
    other.close()
    one["n"] = 1
    one.save()
    assert not one.is_dirty
    one.close()
    assert manager.new(session_id).get_map() == {"cart": ["book", "pen"], "n": 1}


def test_a_value_taken_from_a_closed_session_is_nobodys(manager: Manager) -> None:
    session = manager.new(stored(manager, v=[1]))
    assert session
    session.close()
    session["v"].append(2)
    assert session["v"] == [1]
    assert not session.is_dirty


def test_discard_forgets_changes_in_place_too(manager: Manager) -> None:
    session = manager.new(stored(manager, v=[1]))
    session["v"].append(2)
    session["w"] = 1
    session.ttl = 7
    session.discard()
    assert not session.is_dirty
    assert session.get_map() == {"v": [1]}
    assert session.ttl == 100


# ---- the end -------------------------------------------------------------------------------------


def test_a_session_first_looked_at_after_its_close_says_so(manager: Manager) -> None:
    """S15: the response has left by then, and did not say that it depends on the cookie."""
    never_read, loaded = manager.new(stored(manager, a=1)), manager.new(stored(manager, a=1))
    loaded.load()
    for session in (never_read, loaded):
        session.close()
        with pytest.raises(SessionClosed):
            session.get("a")


def test_a_closed_session_can_be_read_and_not_written(manager: Manager) -> None:
    session = manager.new(stored(manager, a=1, v=[1]))
    assert session["a"] == 1
    session.close()
    assert session["a"] == 1
    assert session.get_map() == {"a": 1, "v": [1]}
    assert session.id
    for write in (
        "set",
        "[]=",
        "set_map",
        "remove",
        "del",
        "pop",
        "popitem",
        "remove_all",
        "ttl=",
        "regenerate_id",
    ):
        with pytest.raises(SessionClosed):
            USES[write](session)
    for end in (session.destroy, session.save):
        with pytest.raises(SessionClosed):
            end()
    session.close()
    assert session.get_map() == {"a": 1, "v": [1]}
    assert manager.new(session.id).get_map() == {"a": 1, "v": [1]}


def test_a_handle_closed_before_it_was_read_does_not_pretend_to_be_empty(manager: Manager) -> None:
    session = manager.new(stored(manager, a=1))
    session.close()
    for use in ("get", "[]", "in", "len", "is_new", "id"):
        with pytest.raises(SessionClosed):
            USES[use](session)


def test_leaving_the_context_commits_or_discards(manager: Manager) -> None:
    session_id = stored(manager, a=1)
    with manager.new(session_id) as session:
        session["a"] = 2
    with pytest.raises(ZeroDivisionError), manager.new(session_id) as session:
        session["a"] = 3
        raise ZeroDivisionError
    with pytest.raises(SessionClosed):
        session["a"] = 4
    assert manager.new(session_id)["a"] == 2


def test_an_error_inside_the_context_is_not_masked_by_a_failing_commit(manager: Manager) -> None:
    with pytest.raises(ZeroDivisionError), manager.new() as session:
        session["a"] = [object()]
        raise ZeroDivisionError


def test_a_failed_close_leaves_the_session_open(manager: Manager) -> None:
    session = manager.new()
    session["a"] = [object()]
    with pytest.raises(NotSerializable):
        session.close()
    session["a"] = 1
    session.close()
    assert manager.new(session.id)["a"] == 1


def test_V17_too_large_leaves_the_record_and_the_changes(manager: Manager) -> None:
    session = manager.new(stored(manager, a=1))
    session["big"] = "x" * 6000
    with pytest.raises(SessionTooLarge) as caught:
        session.save()
    assert (caught.value.limit, caught.value.size > 6000) == (5000, True)
    assert manager.new(session.id).get_map() == {"a": 1}
    assert session.is_dirty
    session["big"] = "small"
    session.save()
    assert manager.new(session.id).get_map() == {"a": 1, "big": "small"}


def test_cookie_states(manager: Manager) -> None:
    """(what was presented, what was done) -> what the adapter does with the cookie after the close."""

    def state(presented: str, *acts: Callable[[Session], object]) -> str:
        session = manager.new(presented)
        for act in acts:
            act(session)
        session.close()
        return session.cookie_state

    def live() -> str:
        return stored(manager, a=1)

    read, write = USES["get"], USES["[]="]
    dead = new_id()
    assert state("") == state("", read) == state("", USES["id"]) == "keep"
    assert state("", write) == "set"
    assert state(live()) == state(live(), read) == state(live(), write) == "keep"
    # An id found dead may have been rotated meanwhile: dropping the cookie could delete its successor (V7).
    assert (
        state(dead) == state(dead, read) == state(dead, lambda s: s.load()) == state("../x", read) == "keep"
    )
    assert state(dead, write) == "set"
    assert state(live(), USES["regenerate_id"]) == "set"
    assert state("", USES["regenerate_id"]) == "keep"
    assert state(live(), lambda s: s.destroy()) == "drop"
    assert state(live(), lambda s: s.destroy(), write) == "set"
    assert state("", lambda s: s.destroy()) == "keep"
    assert state(live(), USES["remove_all"]) == "drop"
    assert state(live(), USES["remove"]) == "drop"
    assert state(live(), USES["remove_all"], write) == "keep"
    assert state(live(), lambda s: s.regenerate_id(), USES["remove_all"]) == "drop"


def test_a_session_that_lost_its_record_says_so_to_the_cookie(manager: Manager) -> None:
    session_id = stored(manager, a=1)
    session = manager.new(session_id)
    session["a"] = 2
    manager.new(session_id).destroy()
    with pytest.raises(SessionGone):
        session.save()


# ---- time ----------------------------------------------------------------------------------------


def test_expiry_to_the_millisecond(manager: Manager, clock: FakeClock) -> None:
    session_id = stored(manager, a=1)
    clock.advance(ms=99_999)
    assert manager.new(session_id)["a"] == 1
    clock.advance(ms=100_000)
    assert manager.new(session_id).is_new


def test_no_use_passes_max_age(manager: Manager, clock: FakeClock) -> None:
    session_id = stored(manager, a=1)
    for i in range(10):
        clock.advance(ms=99_999)
        with manager.new(session_id) as session:
            assert session["a"] == i + 1
            session["a"] += 1
    clock.advance(ms=9)
    assert manager.new(session_id)["a"] == 11
    clock.advance(ms=1)
    assert manager.new(session_id).is_new


@pytest.mark.parametrize("ttl", [7, 7.5, timedelta(seconds=7), timedelta(days=49.8)])
def test_a_ttl_of_its_own(storage: Storage, clock: FakeClock, ttl: Any) -> None:
    manager = Manager(100, storage, clock=clock)
    with manager.new() as session:
        session["a"] = 1
        session.ttl = ttl
    seconds = ttl.total_seconds() if isinstance(ttl, timedelta) else ttl
    clock.advance(seconds, ms=-1)
    assert manager.new(session.id).ttl == seconds
    clock.advance(seconds)
    assert manager.new(session.id).is_new


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf"), 1e10])
def test_a_ttl_out_of_range_is_refused(manager: Manager, ttl: float) -> None:
    session = manager.new(stored(manager, a=1))
    with pytest.raises(ValueError, match="ttl"):
        session.ttl = ttl
    assert not session.is_dirty


@pytest.mark.parametrize("ttl", ["7", None, True])
def test_a_ttl_that_is_no_number_is_refused(manager: Manager, ttl: Any) -> None:
    with pytest.raises(TypeError, match="ttl"):
        manager.new().ttl = ttl


def test_times_on_a_clock_of_ones_own(manager: Manager, clock: FakeClock) -> None:
    session = manager.new()
    assert session.created_at is session.expires_at is None
    session["a"] = 1
    session.save()
    created = clock()
    assert session.created_at == pytest.approx(created)
    assert session.expires_at == pytest.approx(created + 100)
    clock.advance(60)
    later = manager.new(session.id)
    assert later.created_at == pytest.approx(created)
    assert later.expires_at == pytest.approx(created + 160)


def test_times_on_the_native_clock_are_epoch_seconds() -> None:
    manager = Manager(100, MemoryStorage())
    with manager.new() as session:
        session["a"] = 1
    assert session.created_at == pytest.approx(time.time(), abs=1)
    assert session.expires_at == pytest.approx(time.time() + 100, abs=1)
    manager.close()


def test_the_managers_ttl_can_be_changed(manager: Manager, clock: FakeClock) -> None:
    session_id = stored(manager, a=1)
    manager.ttl = 5
    assert manager.ttl == 5
    assert not manager.new(session_id).is_new
    clock.advance(5)
    assert manager.new(session_id).is_new


@pytest.mark.parametrize("meanwhile", ["set", "replace", "remove_all", "destroy", "save", "close"])
def test_a_clock_that_uses_the_session_while_it_commits(meanwhile: str) -> None:
    """The clock is user code in the middle of a commit: whichever way it changes the session, the end is whole."""
    storage, busy = MemoryStorage(), [False]

    def clock() -> float:
        if busy[0]:
            busy[0] = False
            uses[meanwhile]()
        return 1000.0

    manager = Manager(100, storage, clock=clock)
    session = manager.new(stored(manager, a="1", b="2"))
    uses: dict[str, Callable[[], object]] = {
        "set": lambda: session.set("c", "3"),
        "replace": lambda: session.set("a", ["other"]),
        "remove_all": session.remove_all,
        "destroy": session.destroy,
        "save": session.save,
        "close": session.close,
    }
    session["a"] = "new"
    busy[0] = True
    try:
        session.save()
    except (SessionClosed, SessionGone):
        assert meanwhile in ("close", "destroy")
    assert not busy[0]
    assert storage.table is not None
    storage.table._check()
    expected = {
        "set": {"a": "new", "b": "2", "c": "3"},
        "replace": {"a": ["other"], "b": "2"},
        "remove_all": {},
        "destroy": {},
        "save": {"a": "new", "b": "2"},
        "close": {"a": "new", "b": "2"},
    }[meanwhile]
    if meanwhile != "close":
        session.save()
        assert session.get_map() == expected
    assert manager.new(session.id).get_map() == expected


def test_another_storage_leaves_old_handles_where_they_are(manager: Manager, clock: FakeClock) -> None:
    session = manager.new(stored(manager, a=1))
    session["a"] = 2
    old, new = manager.storage, MemoryStorage()
    manager.storage = new
    session.save()
    assert manager.new(session.id).is_new
    manager.storage = old
    assert manager.new(session.id)["a"] == 2
    with pytest.raises(StorageMisconfigured):
        manager.storage = {}  # type: ignore[assignment]
    new.close()


# ---- the async twins -----------------------------------------------------------------------------


def test_the_async_twins_do_the_same(manager: Manager) -> None:
    async def story() -> None:
        async with manager.new() as session:
            session["a"] = 1
        session_id = session.id
        session = manager.new(session_id)
        await session.aload()
        await session.aload()
        assert not session.accessed
        session["a"] += 1
        await session.asave()
        fresh = await session.aregenerate_id()
        assert manager.new(session_id).is_new
        other = manager.new(fresh)
        await other.aload()
        assert other["a"] == 2
        old = fresh
        fresh = await other.aregenerate_id(delete_old=False)
        assert manager.new(old)["a"] == 2
        await other.adestroy()
        assert manager.new(fresh).is_new
        assert manager.new(old).is_new
        with pytest.raises(ZeroDivisionError):
            async with manager.new() as session:
                session["b"] = 1
                raise ZeroDivisionError
        assert stats(manager)["live"] == 0
        session = manager.new()
        await session.aclose()
        with pytest.raises(SessionClosed):
            session["a"] = 1

    asyncio.run(story())


def test_many_tasks_and_loops_use_one_manager(manager: Manager) -> None:
    async def visit(session_id: str, key: str) -> None:
        async with manager.new(session_id) as session:
            await asyncio.sleep(0)
            session[key] = key

    async def all_of(session_id: str, loop: int) -> None:
        await asyncio.gather(*(visit(session_id, f"{loop}-{i}") for i in range(20)))

    session_id = stored(manager, a=1)
    for loop in range(3):
        asyncio.run(all_of(session_id, loop))
    assert manager.new(session_id).size() == 61


# ---- objects: construction, secrecy, references --------------------------------------------------


def test_only_a_manager_makes_sessions() -> None:
    for make in (
        lambda: Session(),
        lambda: Session("a"),  # type: ignore[call-arg]
        lambda: Session.__new__(Session),
        lambda: object.__new__(Session),
    ):
        with pytest.raises(TypeError):
            make()
    with pytest.raises(TypeError):
        type("Mine", (Session,), {})


def test_no_text_about_a_session_holds_its_id(manager: Manager) -> None:
    session = manager.new(stored(manager, a=1))
    session["a"] = 2
    manager.new(session.id).destroy()
    with pytest.raises(SessionGone) as gone:
        session.save()
    texts = [
        repr(session),
        str(session),
        repr(manager),
        repr(manager.storage),
        str(gone.value),
        repr(gone.value),
    ]
    with pytest.raises(KeyError) as missing:
        manager.new(session.id)["nothing"]
    texts.append(str(missing.value))
    assert not [text for text in texts if session.id in text or session.id[:8] in text]


def test_a_session_dies_when_it_is_let_go(manager: Manager) -> None:
    for act in USES.values():
        session = manager.new(stored(manager, a=1))
        act(session)
        alive = weakref.ref(session)
        del session
        assert alive() is None, act


def test_R34_a_session_in_a_cycle_through_its_values_is_collected() -> None:
    class Value:
        session: Session

        def draw(self) -> str:
            return self.session.id

    manager = Manager(storage=MemoryStorage(any_object=True))
    for n in (1, 30):
        session, value = manager.new(), Value()
        value.session = session
        for i in range(n):
            session[f"k{i}"] = value
        alive = weakref.ref(value)
        del session, value
        gc.collect()
        assert alive() is None
    session, value = manager.new(), Value()
    value.session = session
    session.set_id_func(value.draw)
    alive = weakref.ref(value)
    del session, value
    gc.collect()
    assert alive() is None
    manager.close()


def test_a_manager_dies_with_its_storage_and_not_before_its_sessions() -> None:
    manager = Manager(storage=MemoryStorage())
    session = manager.new()
    session["a"] = 1
    alive, kept = weakref.ref(manager), weakref.ref(manager.storage)
    del manager
    gc.collect()
    session.save()
    assert kept() is not None
    del session
    assert gone(alive)
    assert gone(kept)  # its thread holds it for as long as one look at the wheel takes


def gone(reference: "weakref.ref[object]", seconds: float = 5) -> bool:
    end = time.monotonic() + seconds
    while reference() is not None and time.monotonic() < end:
        gc.collect()
        # Without a GIL each collection stops all threads; one that holds the object must get to run.
        time.sleep(0.001)
    return reference() is None


CYCLES: dict[str, Callable[[Manager, str], object]] = {
    "write": lambda m, i: m.new(i).set("n", 1),
    "commit": lambda m, i: USES["set"](s := m.new(i)) or s.close(),
    "in place": lambda m, i: (s := m.new(i))["v"].append(1) or s.close(),
    "many keys": lambda m, i: (s := m.new(i)).update({f"é{n}": [n] for n in range(30)}) or s.close(),
    "create": lambda m, i: m.new(stored(m, a=[1], b="x" * 3000)).destroy(),
    "rotate": lambda m, i: (s := m.new(stored(m, a=1))).regenerate_id() and s.destroy(),
    "grace": lambda m, i: m.new(rotated(m, delete_old=False)).destroy(),
    "refused": lambda m, i: refused(m.new(i), [[1], object()], NotSerializable),
    "too large": lambda m, i: refused(m.new(i), "x" * 6000, SessionTooLarge),
    "empty": lambda m, i: (s := m.new(stored(m, a=[1]))).clear() or s.close(),
    "discard": lambda m, i: (s := m.new(i)).set("n", [1]) or s.discard(),
    "conflict": lambda m, i: conflict(m, i),
}


def rotated(manager: Manager, delete_old: bool) -> str:
    """The id that a session had before its rotation."""
    session = manager.new(stored(manager, a=1))
    old = session.id
    session.regenerate_id(delete_old)
    return old


def refused(session: Session, value: Any, error: type[Exception]) -> None:
    session["ok"], session["é"], session["v"] = [1], "é", value
    with pytest.raises(error):
        session.save()


def conflict(manager: Manager, session_id: str) -> None:
    one, other = manager.new(session_id), manager.new(session_id)
    one["x"], other["y"] = [1], [2]
    one.close()
    other.close()


@pytest.mark.parametrize("cycle", CYCLES)
def test_R34_no_use_of_a_session_leaks(manager: Manager, clock: FakeClock, cycle: str) -> None:
    session_id, run = stored(manager, v=[0]), CYCLES[cycle]

    def many() -> int:
        for _ in range(60):
            run(manager, session_id)
            with manager.new(session_id) as session:
                session.clear()
                session["v"] = [0]
        if isinstance(manager.storage, FaultyStorage):
            manager.storage.steps.clear()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        many()
        before = many()
        grown = min(many() - before, many() - before)
    finally:
        tracemalloc.stop()
    assert grown < 60 * 16, "an object per turn"


def test_values_are_released_with_the_session_and_its_record() -> None:
    value, text = object(), "x" * 5000
    manager = Manager(storage=MemoryStorage(any_object=True))
    before = sys.getrefcount(value), sys.getrefcount(text)
    with manager.new() as session:
        for i in range(40):
            session[f"k{i}"] = value
        session["list"] = [value, text]
        session["text"] = text
    with manager.new(session.id) as session:
        assert session["list"][0] is value
        session["k1"] = text
    manager.new(session.id).destroy()
    del session
    gc.collect()
    assert (sys.getrefcount(value), sys.getrefcount(text)) == before
    manager.close()
