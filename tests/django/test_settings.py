"""The setting CYSESSION: what it makes, and what it refuses in words that help."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from cysession import FileStorage, Manager, MemoryStorage
from cysession.django import SessionStore, get_manager

SHARED = Manager(storage=MemoryStorage())


def test_a_storage_by_url_with_the_cookie_age_as_idle_time(tmp_path: Path) -> None:
    options = {"STORAGE": f"file://{tmp_path}", "MAX_AGE": timedelta(days=30), "MAX_BYTES": 1000}
    with override_settings(CYSESSION=options, SESSION_COOKIE_AGE=77):
        assert isinstance(get_manager().storage, FileStorage)
        assert get_manager().ttl == 77
        get_manager().close()


def test_a_storage_itself() -> None:
    storage = MemoryStorage()
    with override_settings(CYSESSION={"STORAGE": storage}):
        assert get_manager().storage is storage


def test_without_the_setting_files_of_this_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with override_settings(CYSESSION={}, SESSION_COOKIE_AGE=78):
        assert isinstance(get_manager().storage, FileStorage)
        get_manager().close()


@pytest.mark.parametrize("given", [SHARED, "tests.django.test_settings.SHARED"])
def test_a_manager_shared_with_other_parts_of_the_program(given: Any) -> None:
    with override_settings(CYSESSION={"MANAGER": given}):
        assert isinstance(get_manager(), Manager) and get_manager().storage is not None


def test_a_clock_by_path() -> None:
    with override_settings(CYSESSION={"STORAGE": "memory://", "CLOCK": "time.time"}):
        assert get_manager().storage.clock is time.time
        store = SessionStore()
        assert abs(store.get_expiry_date().timestamp() - time.time() - store.get_session_cookie_age()) < 60


def test_an_override_ends_and_the_sessions_of_before_are_there() -> None:
    with override_settings(CYSESSION={"STORAGE": "memory://", "MAX_BYTES": 999}):
        store = SessionStore()
        store["a"] = 1
        store.save()
        with override_settings(CYSESSION={"STORAGE": "memory://", "MAX_BYTES": 998}):
            assert not SessionStore().exists(store.session_key)
        assert SessionStore(store.session_key)["a"] == 1


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"STORGE": "memory://"}, "no option STORGE; it has .*STORAGE"),
        ({"STORAGE": "sql://x"}, "no storage for URLs of scheme 'sql'"),
        ({"STORAGE": "memory://?max=1"}, "memory:// has no option max"),
        ({"STORAGE": 7}, "must be a cysession Storage, not int"),
        ({"MAX_AGE": -1}, "max_age"),
        ({"MAX_BYTES": -1}, "max_bytes must be 0"),
        ({"MAX_PER_USER": -1}, "max_per_user must be 0"),
        ({"CLOCK": "no.such.clock"}, "CLOCK: No module named"),
        ({"CLOCK": 7}, "CLOCK must be a callable"),
        ({"MANAGER": "no.such.manager"}, "MANAGER: No module named"),
        ({"MANAGER": "time.time"}, "MANAGER must be a cysession Manager"),
        ({"MANAGER": SHARED, "STORAGE": "memory://"}, "MANAGER decides STORAGE itself"),
        (["memory://"], "CYSESSION must be a dict, not list"),
    ],
)
def test_a_wrong_setting_says_which_and_why(options: Any, complaint: str) -> None:
    with override_settings(CYSESSION=options), pytest.raises(ImproperlyConfigured, match=complaint):
        SessionStore().create()


@pytest.mark.parametrize("age", [0, -5, "long"])
def test_a_cookie_age_that_is_no_time(age: Any) -> None:
    with override_settings(CYSESSION={"STORAGE": "memory://"}, SESSION_COOKIE_AGE=age):
        with pytest.raises(ImproperlyConfigured, match="SESSION_COOKIE_AGE"):
            SessionStore().create()


def test_S21_no_password_of_a_url_in_the_complaint() -> None:
    with override_settings(CYSESSION={"STORAGE": "sql://user:hunter2@host/db"}):
        with pytest.raises(ImproperlyConfigured) as caught:
            SessionStore().create()
    assert "hunter2" not in str(caught.value)
