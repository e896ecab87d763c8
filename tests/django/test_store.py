"""SessionStore says and does what Django's documentation promises of every engine, over every storage."""

from __future__ import annotations

import string
from collections import namedtuple
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.contrib.sessions.backends.base import CreateError, SessionBase, UpdateError
from django.contrib.sessions.exceptions import SessionInterrupted
from django.core.management import call_command
from django.db import models
from django.http import QueryDict
from django.test import override_settings
from django.utils import timezone
from django.utils.safestring import mark_safe
from django.utils.translation import gettext_lazy

from cysession import FileStorage, Manager, NotSerializable, SessionTooLarge, StorageUnavailable
from cysession.django import SessionStore
from cysession.testing import FakeClock
from tests.web.storages import DictStorage


def stored(**data: Any) -> SessionStore:
    """A session that an earlier request saved."""
    store = SessionStore()
    store.update(data)
    store.save()
    return SessionStore(store.session_key)


def again(store: SessionStore) -> SessionStore:
    """The same session in the next request."""
    return SessionStore(store.session_key)


def kept(store: SessionStore) -> dict[str, Any]:
    return dict(again(store).items())


# -- a new session ---------------------------------------------------------------------------------------


def test_it_is_a_session_of_django(store: SessionStore) -> None:
    assert isinstance(store, SessionBase)


def test_a_new_session_has_no_key_no_data_and_was_not_touched(store: SessionStore) -> None:
    assert store.session_key is None
    assert store.accessed is False and store.modified is False
    assert store.is_empty()
    assert list(store.keys()) == []


def test_reading_is_an_access_and_no_modification(store: SessionStore) -> None:
    assert store.get("cat") is None and store.get("cat", "none") == "none"
    assert store.accessed is True and store.modified is False
    assert store.session_key is None


@pytest.mark.parametrize(
    "read",
    [
        lambda s: s.get("a"),
        lambda s: "a" in s,
        lambda s: s.has_key("a"),
        lambda s: s.keys(),
        lambda s: s.values(),
        lambda s: s.items(),
        lambda s: s["a"],
        lambda s: s.get_expiry_age(),
        lambda s: s.pop("absent", None),
        lambda s: s.setdefault("a", 2),
        lambda s: s.test_cookie_worked(),
    ],
)
def test_every_way_to_read_is_an_access_and_no_modification(manager: Manager, read: Any) -> None:
    store = stored(a=1, deep=[1])
    read(store)
    assert store.accessed is True and store.modified is False


@pytest.mark.parametrize(
    "write",
    [
        lambda s: s.__setitem__("b", 2),
        lambda s: s.__delitem__("a"),
        lambda s: s.update({"b": 2}),
        lambda s: s.pop("a"),
        lambda s: s.setdefault("b", 2),
        lambda s: s.clear(),
        lambda s: s.flush(),
        lambda s: s.cycle_key(),
        lambda s: s.create(),
        lambda s: s.set_expiry(60),
        lambda s: s.set_test_cookie(),
    ],
)
def test_every_way_to_write_is_an_access_and_a_modification(manager: Manager, write: Any) -> None:
    store = stored(a=1)
    write(store)
    assert store.accessed is True and store.modified is True


def test_nothing_is_stored_before_a_save(manager: Manager, store: SessionStore) -> None:
    store["a"] = 1
    assert store.session_key is None
    assert manager.stats()["created"] == 0


# -- the dict --------------------------------------------------------------------------------------------


def test_values_come_back(manager: Manager) -> None:
    assert kept(stored(a=1, b="two")) == {"a": 1, "b": "two"}


def test_a_missing_key_is_a_key_error(store: SessionStore) -> None:
    with pytest.raises(KeyError):
        store["a"]
    with pytest.raises(KeyError):
        del store["a"]
    with pytest.raises(KeyError):
        store.pop("a")


def test_pop_takes_away_and_falls_back(manager: Manager) -> None:
    store = stored(a=1)
    assert store.pop("a", "default") == 1 and store.pop("a", "default") == "default"
    store.save()
    assert kept(store) == {}


def test_as_many_keys_may_go_as_come(manager: Manager) -> None:
    store = stored(a=1, b=2, kept=3)
    del store["a"], store["b"]
    store.update({"c": 4, "d": 5})
    store.save()
    assert kept(store) == {"kept": 3, "c": 4, "d": 5}


def test_setdefault(manager: Manager) -> None:
    store = stored(a=1)
    assert store.setdefault("a", 2) == 1 and store.setdefault("b", 2) == 2
    store.save()
    assert kept(store) == {"a": 1, "b": 2}


def test_update_keys_values_items(manager: Manager) -> None:
    store = stored(a=1)
    store.update({"b": 2})
    assert list(store.keys()) == ["a", "b"] and list(store.values()) == [1, 2]
    assert list(store.items()) == [("a", 1), ("b", 2)]
    assert "b" in store and store.has_key("b") and "c" not in store


def test_clear_empties_and_keeps_the_key(manager: Manager) -> None:
    store = stored(a=1)
    key = store.session_key
    store.clear()
    store.save()
    assert store.session_key == key and kept(store) == {} and store.exists(key)


def test_clear_then_write_leaves_only_what_was_written(manager: Manager) -> None:
    store = stored(a=1, b=2)
    store.clear()
    store["c"] = 3
    store.save()
    assert kept(store) == {"c": 3}


def test_test_cookies(manager: Manager) -> None:
    store = stored()
    assert not store.test_cookie_worked()
    store.set_test_cookie()
    store.save()
    store = again(store)
    assert store.test_cookie_worked()
    store.delete_test_cookie()
    store.save()
    assert not again(store).test_cookie_worked()


# -- keys ------------------------------------------------------------------------------------------------


def test_S1_keys_have_256_random_bits_and_fit_a_cookie(manager: Manager) -> None:
    keys = {stored(a=1).session_key for _ in range(50)}
    assert len(keys) == 50
    assert all(key and len(key) == 43 for key in keys)
    assert set("".join(key or "" for key in keys)) <= set(string.ascii_letters + string.digits + "_-")


def test_S3_a_key_that_nobody_issued_is_dropped_at_load(manager: Manager) -> None:
    store = SessionStore("A" * 43)
    assert store.session_key == "A" * 43  # unchecked so far, as Django has it
    assert store.get("a") is None
    assert store.session_key is None
    store["a"] = 1
    store.save()
    assert store.session_key not in (None, "A" * 43)
    assert not store.exists("A" * 43)


@pytest.mark.parametrize(
    "key", ["", "1", "1234567", "a/b" * 9, "../" * 9, "a b" * 9, "ä" * 20, "a\0" * 9, "x" * 129]
)
def test_S4_what_is_no_key_is_none_and_reaches_no_storage(key: str) -> None:
    storage = DictStorage()
    with Manager(storage=storage) as manager, override_settings(CYSESSION={"MANAGER": manager}):
        store = SessionStore(key)
        assert store.session_key is None and store.get("a") is None
        assert store.exists(key) is False
        store.delete(key)
        assert storage.seen == []
        store.save()
        assert store.session_key != key


def test_exists(manager: Manager) -> None:
    store = stored(a=1)
    assert store.exists(store.session_key) is True
    assert store.exists("A" * 43) is False and store.exists(None) is False


def test_session_key_is_read_only(store: SessionStore) -> None:
    with pytest.raises(AttributeError):
        store.session_key = "A" * 43  # type: ignore[misc]


# -- create, save, delete --------------------------------------------------------------------------------


def test_create_stores_at_once_even_without_data(manager: Manager, store: SessionStore) -> None:
    store.create()
    assert store.session_key and store.exists(store.session_key)
    assert kept(store) == {}


def test_create_on_a_session_with_a_key_begins_another_one(manager: Manager) -> None:
    store = stored(a=1)
    old = store.session_key
    store.create()
    assert store.session_key != old and store.exists(old)


def test_save_of_a_new_session_creates_it(manager: Manager, store: SessionStore) -> None:
    store.save()
    assert store.exists(store.session_key)


def test_save_must_create_takes_no_key_that_is_in_use(manager: Manager) -> None:
    store = stored(a=1)
    with pytest.raises(CreateError):
        store.save(must_create=True)
    assert kept(store) == {"a": 1}


def test_save_must_create_takes_a_key_of_the_servers_choice(manager: Manager, store: SessionStore) -> None:
    store._session_key = "chosen-by-the-server"
    store.save(must_create=True)
    store["a"] = 1
    store.save()
    assert store.session_key == "chosen-by-the-server" and kept(store) == {"a": 1}


def test_saves_can_follow_one_another(manager: Manager) -> None:
    store = stored(list=[1])
    for number in range(3):
        store["list"].append(number)
        store["n"] = number
        store.save()
        assert kept(store) == {"list": [1, *range(number + 1)], "n": number}
    del store["n"]
    store.save()
    assert kept(store) == {"list": [1, 0, 1, 2]}


def test_save_keeps_what_other_requests_changed(manager: Manager) -> None:
    """Django's engines would write the whole session and lose "b"."""
    one = stored(a=1, b=1, c=1)
    other = again(one)
    one["a"] = 2
    other["b"] = 2
    del other["c"]
    one.save()
    other.save()
    assert kept(one) == {"a": 2, "b": 2}


def test_V5_save_does_not_bring_a_deleted_session_back(manager: Manager) -> None:
    one = stored(a=1)
    other = again(one)
    one["a"] = 2
    other.flush()
    with pytest.raises(UpdateError):
        one.save()
    assert not one.exists(one.session_key) and kept(one) == {}


def test_V5_save_of_a_deleted_session_is_an_error_without_changes_too(manager: Manager) -> None:
    one = stored(a=1)
    one.get("a")
    again(one).delete()
    with pytest.raises(UpdateError):
        one.save()
    with pytest.raises(UpdateError):
        again(one).save()
    cleared = again(one)
    cleared.clear()
    with pytest.raises(UpdateError):
        cleared.save()


def test_delete_of_the_own_session_and_of_another(manager: Manager) -> None:
    one, other = stored(a=1), stored(b=1)
    one.delete(other.session_key)
    assert not one.exists(other.session_key) and one.exists(one.session_key)
    one.delete()
    assert not one.exists(one.session_key)
    one.delete()  # once more is no error
    SessionStore().delete()


def test_flush_deletes_and_forgets(manager: Manager) -> None:
    store = stored(a=1)
    key = store.session_key
    assert store["a"] == 1
    store.flush()
    assert store.session_key is None and store.is_empty() and dict(store.items()) == {}
    assert not store.exists(key)
    store["b"] = 1
    store.save()
    assert store.session_key != key and kept(store) == {"b": 1}


def test_flush_of_an_unread_session_deletes_it(manager: Manager) -> None:
    store = stored(a=1)
    key = store.session_key
    store.flush()
    assert not store.exists(key)


# -- a new key for the same session ----------------------------------------------------------------------


def test_S5_cycle_key_keeps_the_data_and_kills_the_old_key(manager: Manager) -> None:
    store = stored(a=1, deep={"b": [2]})
    old = store.session_key
    store.cycle_key()
    assert store.session_key not in (None, old) and not store.exists(old)
    assert kept(store) == {"a": 1, "deep": {"b": [2]}}
    store["deep"]["b"].append(3)
    store.save()
    assert kept(store)["deep"] == {"b": [2, 3]}


def test_cycle_key_stores_what_was_changed_before(manager: Manager) -> None:
    store = stored(a=1)
    store["a"] = 2
    store.cycle_key()
    assert kept(store) == {"a": 2}


def test_cycle_key_of_a_new_session_creates_it(manager: Manager, store: SessionStore) -> None:
    store["a"] = 1
    store.cycle_key()
    assert kept(store) == {"a": 1}


def test_cycle_key_of_a_cleared_session(manager: Manager) -> None:
    store = stored(a=1)
    old = store.session_key
    store.clear()
    store.cycle_key()
    assert not store.exists(old) and kept(store) == {}


def test_V5_cycle_key_does_not_bring_a_deleted_session_back(manager: Manager) -> None:
    store = stored(a=1)
    store.get("a")
    again(store).flush()
    with pytest.raises(SessionInterrupted):
        store.cycle_key()


# -- changes in place ------------------------------------------------------------------------------------


def test_a_change_in_place_is_a_modification(manager: Manager) -> None:
    store = stored(deep={"list": [1, {"set": {1}}]})
    store["deep"]["list"][1]["set"].add(2)
    assert store.modified is True
    store.save()
    assert kept(store) == {"deep": {"list": [1, {"set": {1, 2}}]}}


def test_a_change_in_place_that_was_undone_is_none(manager: Manager) -> None:
    store = stored(list=[1])
    store["list"].append(2)
    store["list"].pop()
    assert store.modified is False


def test_modified_neither_loads_nor_counts_as_access(manager: Manager) -> None:
    store = stored(a=[1])
    assert store.modified is False and store.accessed is False


def test_djangos_ritual_still_works(manager: Manager) -> None:
    store = stored(list=[1])
    store["list"].append(2)
    store.modified = True
    assert store.modified is True
    store.save()
    assert kept(store) == {"list": [1, 2]}


def test_a_list_belongs_to_one_session(manager: Manager) -> None:
    mine: list[int] = [1]
    store = stored(list=mine)
    mine.append(2)
    assert store["list"] == [1]
    again(store)["list"].append(3)
    assert kept(store) == {"list": [1]}


# -- types -----------------------------------------------------------------------------------------------


def test_Z3_what_json_would_have_changed_comes_back_as_it_was(manager: Manager) -> None:
    data = {
        "when": datetime(2026, 1, 2, tzinfo=UTC),
        "tuple": (1, 2),
        "set": {1},
        "ints": {1: "a", 2: "b"},
        "price": Decimal("1.10"),
        "bytes": b"\0",
    }
    assert kept(stored(**data)) == data
    assert type(kept(stored(**data))["tuple"]) is tuple


class Size(models.TextChoices):
    SMALL = "S"


class Grade(models.IntegerChoices):
    GOOD = 1


Point = namedtuple("Point", "x y")


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (mark_safe("<b>"), "<b>"),
        (Size.SMALL, "S"),
        (Grade.GOOD, 1),
        ([Size.SMALL, {"k": Grade.GOOD}], ["S", {"k": 1}]),
        ({Size.SMALL: (Grade.GOOD,)}, {"S": (1,)}),
        (QueryDict("a=1&b=2"), {"a": "1", "b": "2"}),
        (Point(1, Size.SMALL), (1, "S")),
        ({Grade.GOOD}, {1}),
    ],
)
def test_subclasses_of_plain_types_are_stored_as_json_stored_them(
    manager: Manager, value: Any, plain: Any
) -> None:
    (back,) = kept(stored(value=value)).values()
    assert back == plain and type(back) is type(plain)
    store = stored(other=[1])
    store["value"] = value
    store["other"].append(2)
    store.save()
    assert kept(store) == {"other": [1, 2], "value": plain}


def test_safe_keys_are_keys(manager: Manager) -> None:
    store = SessionStore()
    store[mark_safe("a")] = 1
    store.save()
    assert kept(store) == {"a": 1}


def test_Z3_int_keys_are_refused_where_they_are_set(store: SessionStore) -> None:
    """JSON would give 1 back as "1", and lose one of 1 and "1"."""
    with pytest.raises(TypeError, match="session keys are str, not int"):
        store[1] = "a"  # type: ignore[index]


@pytest.mark.parametrize("value", [object(), [object()], gettext_lazy("text"), {"deep": {"er": object()}}])
def test_Z3_other_objects_are_refused_and_the_record_stays(manager: Manager, value: Any) -> None:
    store = stored(a=1)
    store["b"] = value
    with pytest.raises(NotSerializable):
        store.save()
    assert kept(store) == {"a": 1}
    store["b"] = "text"
    store.save()
    assert kept(store) == {"a": 1, "b": "text"}


def test_R40_a_session_beyond_the_limit_is_refused_and_the_record_stays(manager: Manager) -> None:
    store = stored(a=1)
    store["b"] = "x" * 70_000
    with pytest.raises(SessionTooLarge):
        store.save()
    assert kept(store) == {"a": 1}


# -- expiry ----------------------------------------------------------------------------------------------


def test_without_an_expiry_the_cookie_age_counts(store: SessionStore, clock: FakeClock) -> None:
    assert store.get_expiry_age() == settings.SESSION_COOKIE_AGE
    moment = datetime.fromtimestamp(clock(), UTC)
    assert store.get_expiry_date() == moment + timedelta(seconds=settings.SESSION_COOKIE_AGE)


@pytest.mark.parametrize("value", [10, timedelta(seconds=10)])
def test_seconds_and_timedelta(store: SessionStore, clock: FakeClock, value: Any) -> None:
    store.set_expiry(value)
    assert store.get_expiry_age() == 10
    assert store.get_expiry_date() == datetime.fromtimestamp(clock() + 10, UTC)
    assert store.get_expire_at_browser_close() is False


def test_a_datetime(manager: Manager, clock: FakeClock) -> None:
    store = stored()
    moment = datetime.fromtimestamp(clock(), UTC) + timedelta(seconds=10)
    store.set_expiry(moment)
    store.save()
    store = again(store)
    assert store.get_expiry_date() == moment and store.get_expiry_age() == 10
    clock.advance(4)
    assert store.get_expiry_age() == 6


def test_modification_and_expiry_can_be_given(store: SessionStore) -> None:
    moment = timezone.now()
    assert store.get_expiry_age(modification=moment, expiry=moment + timedelta(seconds=7)) == 7
    assert store.get_expiry_date(modification=moment, expiry=7) == moment + timedelta(seconds=7)
    assert store.get_expiry_age(expiry=None) == settings.SESSION_COOKIE_AGE


def test_zero_ends_with_the_browser_and_none_undoes_it(store: SessionStore) -> None:
    assert store.get_expire_at_browser_close() is False
    store.set_expiry(0)
    assert store.get_expire_at_browser_close() is True
    assert store.get_expiry_age() == settings.SESSION_COOKIE_AGE
    store.set_expiry(None)
    store.set_expiry(None)
    assert store.get_expire_at_browser_close() is False
    with override_settings(SESSION_EXPIRE_AT_BROWSER_CLOSE=True):
        assert store.get_expire_at_browser_close() is True


def test_a_session_ends_its_cookie_age_after_the_last_use(timed: Manager, clock: FakeClock) -> None:
    store = stored(a=1)
    clock.advance(settings.SESSION_COOKIE_AGE - 60)
    assert kept(store) == {"a": 1}
    clock.advance(settings.SESSION_COOKIE_AGE - 60)
    assert kept(store) == {"a": 1}
    clock.advance(settings.SESSION_COOKIE_AGE + 60)
    assert kept(store) == {} and not store.exists(store.session_key)


def test_an_expiry_in_seconds_counts_from_the_last_use(timed: Manager, clock: FakeClock) -> None:
    store = stored(a=1)
    store.set_expiry(100)
    store.save()
    for _ in range(3):
        clock.advance(80)
        assert kept(store)["a"] == 1
    clock.advance(101)
    assert kept(store) == {}


def test_an_expiry_can_be_taken_back(timed: Manager, clock: FakeClock) -> None:
    store = stored(a=1)
    store.set_expiry(100)
    store.save()
    store.set_expiry(None)
    store.save()
    clock.advance(1000)
    assert kept(store) == {"a": 1}


@pytest.mark.parametrize("kind", [timedelta, datetime])
def test_a_moment_is_not_put_off_by_use(manager: Manager, clock: FakeClock, kind: type) -> None:
    store = stored(a=1)
    hour = timedelta(hours=1)
    store.set_expiry(hour if kind is timedelta else datetime.fromtimestamp(clock(), UTC) + hour)
    store.save()
    for _ in range(3):
        clock.advance(1100)
        assert kept(store)["a"] == 1
    clock.advance(301)
    assert not store.exists(store.session_key)
    assert kept(store) == {} and again(store).session_key is not None
    late = again(store)
    assert late.get("a") is None and late.session_key is None


@pytest.mark.parametrize("value", [-1, -(10**6), timedelta(seconds=-1), timedelta(days=-400)])
def test_an_expiry_in_the_past_ends_the_session_at_its_save(manager: Manager, value: Any) -> None:
    store = stored(a=1)
    store.set_expiry(value)
    assert store.get_expiry_age() < 0
    store.save()
    assert not store.exists(store.session_key) and kept(store) == {}


def test_a_new_session_that_is_over_is_not_stored(manager: Manager, store: SessionStore) -> None:
    store["a"] = 1
    store.set_expiry(-1)
    store.save()
    assert manager.stats()["created"] == 0 and kept(store) == {}


def test_a_cookie_age_of_a_subclass_counts(timed: Manager, clock: FakeClock) -> None:
    class Short(SessionStore):
        def get_session_cookie_age(self) -> int:
            return 50

    store = Short()
    store["a"] = 1
    store.save()
    clock.advance(51)
    assert kept(store) == {}


def test_a_changed_cookie_age_counts_from_the_next_save(timed: Manager, clock: FakeClock) -> None:
    store = stored(a=1)
    with override_settings(SESSION_COOKIE_AGE=50):
        store["a"] = 2
        store.save()
    clock.advance(51)
    assert kept(store) == {}


def held(manager: Manager, path: Path) -> int:
    """How many records there are, expired or not."""
    if isinstance(manager.storage, FileStorage):
        return len(list((path / "sessions").glob("[0-9a-f]/[0-9a-f]/*")))
    return len(manager.storage)  # type: ignore[arg-type]


def test_clearsessions_removes_what_has_expired(timed: Manager, clock: FakeClock, tmp_path: Path) -> None:
    gone = [stored(a=1) for _ in range(3)]
    for store in gone:
        store.set_expiry(60)
        store.save()
    alive = stored(a=1)
    assert held(timed, tmp_path) == 4
    clock.advance(61)
    call_command("clearsessions")
    assert held(timed, tmp_path) == 1 and kept(alive) == {"a": 1}


def test_clearsessions_leaves_storages_alone_that_keep_house_themselves(manager: Manager) -> None:
    store = stored(a=1)
    call_command("clearsessions")
    assert kept(store) == {"a": 1}


# -- failures --------------------------------------------------------------------------------------------


def test_R20_a_storage_that_fails_is_no_empty_session() -> None:
    storage = DictStorage()
    with Manager(storage=storage) as manager, override_settings(CYSESSION={"MANAGER": manager}):
        store = stored(a=1)
        storage.broken = True
        with pytest.raises(StorageUnavailable):
            store.get("a")
        with pytest.raises(StorageUnavailable):
            store.exists(store.session_key)
        with pytest.raises(StorageUnavailable):
            store.delete()
        storage.broken = False
        assert kept(store) == {"a": 1}


def test_a_failed_save_can_be_repeated() -> None:
    storage = DictStorage()
    with Manager(storage=storage) as manager, override_settings(CYSESSION={"MANAGER": manager}):
        store = stored(a=[1])
        store["b"] = 2
        store["a"].append(2)
        storage.broken = True
        with pytest.raises(StorageUnavailable):
            store.save()
        storage.broken = False
        store.save()
        assert kept(store) == {"a": [1, 2], "b": 2}


# -- the compiled session behind it ----------------------------------------------------------------------


def test_the_session_itself_and_the_dict_see_each_other(manager: Manager) -> None:
    store = stored(a=1)
    store["b"] = 2
    core = store.cysession
    assert core["a"] == 1 and core["b"] == 2
    core["c"] = 3
    assert dict(store.items()) == {"a": 1, "b": 2, "c": 3}
    assert store.modified
    store.save()
    assert kept(store) == {"a": 1, "b": 2, "c": 3}


def test_the_session_itself_of_a_new_session(manager: Manager, store: SessionStore) -> None:
    store.cysession["a"] = 1
    assert store.modified and not store.is_empty()
    store.save()
    assert kept(store) == {"a": 1}


def test_modify_counts_without_losing_anything(manager: Manager) -> None:
    store = stored(n=1)
    others = [again(store) for _ in range(3)]
    for other in others:
        other.get("n")
    for other in others:
        other.cysession.modify("n", lambda n: n + 1, 0)
    assert kept(store) == {"n": 4}


def test_encode_and_decode_are_there_for_third_parties(store: SessionStore) -> None:
    assert store.decode(store.encode({"a": 1})) == {"a": 1}
