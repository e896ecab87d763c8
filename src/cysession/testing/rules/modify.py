"""`Session.modify`: one key is read, computed and written as one step, whoever else is at it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from ...errors import NotSerializable, SessionGone, SessionTooLarge, StorageUnavailable
from ...session import Delta, Record, Session
from ..kit import TTL, Kit

__all__ = ["ModifyRules"]


def add_one(value: int) -> int:
    return value + 1


class ModifyRules(Kit):
    def modify(
        self, session: Session, key: str = "hits", change: Callable[[Any], Any] = add_one, default: Any = None
    ) -> Any:
        return self.run(self.steps.modify(session, key, change, default))

    def count(self, session_id: str, times: int = 1) -> None:
        """Requests that add one each."""
        for _ in range(times):
            self.modify(self.open(session_id))

    # ---- one client --------------------------------------------------------------------------------------

    def test_modify_stores_and_answers_what_was_computed(self) -> None:
        session = self.open(self.stored(hits=1, user="anna"))
        assert self.modify(session) == 2
        assert session.get_map() == {"hits": 2, "user": "anna"}
        assert self.read(session.id) == {"hits": 2, "user": "anna"}

    def test_modify_of_a_key_that_is_not_set_begins_with_the_default(self) -> None:
        session = self.open(self.stored(user="anna"))
        assert self.modify(session, "hits", add_one, 10) == 11
        assert self.modify(session, "cart", lambda cart: [*cart, "apple"], []) == ["apple"]
        assert self.read(session.id) == {"user": "anna", "hits": 11, "cart": ["apple"]}

    def test_modify_of_a_new_session_creates_it(self) -> None:
        session = self.open()
        assert self.modify(session, default=0) == 1
        assert self.read(session.id) == {"hits": 1}

    def test_modify_saves_other_changes_first(self) -> None:
        session = self.open(self.stored(hits=1))
        session["user"] = "anna"
        session["hits"] = 5
        assert self.modify(session) == 6
        assert self.read(session.id) == {"hits": 6, "user": "anna"}

    def test_modify_keeps_a_sessions_own_ttl_and_end(self) -> None:
        session = self.open(self.stored(hits=1), self.new_manager(max_age=5 * TTL))
        session.ttl = TTL / 2
        self.save(session)
        before = self.record(session.id)
        self.modify(session)
        after = self.record(session.id)
        assert (after.ttl, after.cap, after.created, after.birth) == (
            before.ttl,
            before.cap,
            before.created,
            before.birth,
        )

    # ---- when it fails -----------------------------------------------------------------------------------

    def test_what_a_modify_function_raises_leaves_the_session_as_it_was(self) -> None:
        session = self.open(self.stored(hits=1))
        with pytest.raises(ZeroDivisionError):
            self.modify(session, change=lambda hits: hits // 0)
        assert self.read(session.id) == {"hits": 1}
        assert self.modify(session) == 2

    def test_modify_to_a_refused_value_leaves_the_session_as_it_was(self) -> None:
        session = self.open(self.stored(hits=1), self.new_manager(max_bytes=100))
        with pytest.raises(SessionTooLarge):
            self.modify(session, change=lambda _: "x" * 200)
        if not self.storage.any_object:
            with pytest.raises(NotSerializable):
                self.modify(session, change=lambda _: object())
        assert self.read(session.id) == {"hits": 1}

    def test_a_failed_modify_surfaces_and_can_be_tried_again(self) -> None:
        spy = self.spy()
        session_id = self.stored(hits=1)
        session = self.open(session_id, self.new_manager(storage=spy))
        spy.fail("commit")
        with pytest.raises(StorageUnavailable):
            self.modify(session)
        assert self.read(session_id) == {"hits": 1}
        assert self.modify(session) == 2
        assert self.read(session_id) == {"hits": 2}

    # ---- several clients ---------------------------------------------------------------------------------

    def test_modify_works_on_what_is_stored_by_then(self) -> None:
        """R2"""
        session = self.open(self.stored(hits=0))
        self.count(session.id, 3)
        assert self.modify(session) == 4
        assert self.read(session.id) == {"hits": 4}

    def test_modify_keeps_what_others_wrote_to_other_keys(self) -> None:
        """R2"""
        session = self.open(self.stored(hits=0))
        self.write(session.id, page=1)
        self.modify(session)
        assert self.read(session.id) == {"hits": 1, "page": 1}

    def test_modify_of_a_destroyed_session_raises_session_gone(self) -> None:
        """V5, R1"""
        session = self.open(self.stored(hits=0))
        self.destroy(self.open(session.id))
        with pytest.raises(SessionGone):
            self.modify(session, default=0)
        assert self.read(session.id) is None

    def test_modify_of_an_expired_session_raises_session_gone(self) -> None:
        """S6"""
        self.needs_clock()
        session = self.open(self.stored(hits=0))
        self.wait_out(TTL)
        with pytest.raises(SessionGone):
            self.modify(session, default=0)
        assert self.read(session.id) is None

    def test_modify_through_an_old_id_lands_in_the_new_record(self) -> None:
        """S23"""
        self.needs_grace()
        old, session = self.open(self.stored(hits=0)), self.open()
        session = self.open(old.id)
        self.rotate(session, delete_old=False)
        assert self.modify(old) == 1
        assert self.read(session.id) == {"hits": 1}

    def test_a_computed_change_is_computed_on_the_stored_record(self) -> None:
        """The record protocol: what `Delta.computing` makes is applied like any other change."""
        session_id, idle = self.stored(hits=1), TTL * 1_000_000_000
        base = self.record(session_id)
        self.count(session_id)
        delta = Delta.computing("hits", add_one)
        made = self.run(self.steps.commit_record(self.storage, session_id, base, delta, idle))
        assert isinstance(made, Record) and made["hits"] == 3
        assert self.record(session_id)["hits"] == 3

    def test_no_count_of_threads_is_lost(self) -> None:
        """R2, rule 11"""
        session_id = self.stored(hits=0)
        self.in_threads(*[partial(self.count, session_id, 10)] * 4)
        assert self.read(session_id) == {"hits": 40}

    def test_no_count_of_processes_is_lost(self) -> None:
        """R2, R31"""
        if not self.shared_between_processes:
            pytest.skip("shared_between_processes = False")
        session_id = self.stored(hits=0)
        self.in_processes(*[partial(self.count, session_id, 10)] * 3)
        assert self.read(session_id) == {"hits": 30}
