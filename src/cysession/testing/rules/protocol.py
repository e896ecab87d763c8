"""The record protocol, called directly: each of its six steps is atomic and keeps the rules by itself.

A Session relies on these answers (rules 4 to 7). A step that gives another one is found here by name; the
rules about sessions show what users would notice of it.
"""

from typing import Any, Final

import pytest

from ...errors import SessionGone, SessionTooLarge
from ...session import Delta, Record
from ..kit import TTL, Kit

__all__ = ["ProtocolRules"]

IDLE: Final = TTL * 1_000_000_000
GRACE: Final = 30_000_000_000
ID: Final = "the-id-of-a-session"
NEW_ID: Final = "the-id-after-rotation"


class ProtocolRules(Kit):
    def built(self, **data: Any) -> Record:
        return Record.build(data, self.storage.now_ns())

    def created(self, **data: Any) -> Record:
        """A stored record, as the storage gives it back."""
        assert self.create(self.built(**data))
        record = self.fetch()
        assert record is not None
        return record

    def create(self, record: Record, session_id: str = ID) -> bool:
        return self.run(self.steps.create_record(self.storage, session_id, record, IDLE))

    def fetch(self, session_id: str = ID, ttl: int = IDLE) -> Record | None:
        return self.run(self.steps.load_record(self.storage, session_id, ttl))

    def touch(self, record: Record, session_id: str = ID) -> bool:
        return self.run(self.steps.touch_record(self.storage, session_id, record, IDLE))

    def commit(self, base: Record, delta: Delta, session_id: str = ID) -> Record | None:
        return self.run(self.steps.commit_record(self.storage, session_id, base, delta, IDLE))

    def delete(self, session_id: str = ID) -> bool:
        return self.run(self.steps.delete_record(self.storage, session_id))

    def rename(self, base: Record, grace: int = 0, old_id: str = ID, new_id: str = NEW_ID) -> Record | None:
        return self.run(self.steps.rename_record(self.storage, old_id, new_id, base, IDLE, grace))

    def data(self, session_id: str = ID) -> dict[str, Any] | None:
        record = self.fetch(session_id)
        return None if record is None else record.to_dict()

    # ---- load --------------------------------------------------------------------------------------------

    def test_load_of_an_unknown_id_answers_none(self) -> None:
        assert self.fetch() is None

    def test_a_record_comes_back_as_it_was_created(self) -> None:
        made = Record.build(
            {"user": "anna"}, self.storage.now_ns(), self.storage.now_ns() + 5 * IDLE, IDLE // 2
        )
        assert self.create(made)
        found = self.fetch()
        assert found is not None
        assert found.to_dict() == {"user": "anna"}
        assert (found.created, found.cap, found.ttl, found.birth) == (
            made.created,
            made.cap,
            made.ttl,
            made.birth,
        )

    def test_load_answers_with_copies(self) -> None:
        """Z10"""
        self.created(cart=["apple"])
        record = self.fetch()
        assert record is not None
        record["cart"].append("pear")
        assert record["cart"] == ["apple"]
        assert self.data() == {"cart": ["apple"]}

    # ---- create ------------------------------------------------------------------------------------------

    def test_create_answers_false_for_an_id_in_use(self) -> None:
        """R1"""
        self.created(user="anna")
        assert not self.create(self.built(user="bert"))
        assert self.data() == {"user": "anna"}

    def test_create_takes_an_id_that_has_expired(self) -> None:
        self.needs_clock()
        self.created(user="anna")
        self.wait_out(TTL)
        assert self.create(self.built(user="bert"))
        assert self.data() == {"user": "bert"}

    def test_create_takes_an_id_that_was_deleted(self) -> None:
        self.created(user="anna")
        self.delete()
        assert self.create(self.built(user="bert"))
        assert self.data() == {"user": "bert"}

    # ---- touch -------------------------------------------------------------------------------------------

    def test_touch_answers_true_for_a_live_record(self) -> None:
        assert self.touch(self.created(user="anna"))

    def test_touch_answers_false_for_a_missing_record_and_makes_none(self) -> None:
        """R7"""
        record = self.created(user="anna")
        self.delete()
        assert not self.touch(record)
        assert self.fetch() is None

    def test_touch_answers_false_for_a_reborn_record(self) -> None:
        """V5, R7"""
        old = self.created(user="anna")
        self.delete()
        self.created(user="bert")
        assert not self.touch(old)

    def test_touch_leaves_the_data_alone(self) -> None:
        """R7: also what was committed since the record was loaded."""
        old = self.created(user="anna")
        self.commit(old, Delta({"user": "bert"}))
        self.clock.advance(TTL / 2)
        assert self.touch(old)
        assert self.data() == {"user": "bert"}

    def test_touch_begins_the_idle_time_anew(self) -> None:
        """S6"""
        self.needs_sliding()
        record = self.created(user="anna")
        self.clock.advance(TTL / 2)
        assert self.touch(record)
        self.wait_almost(TTL)
        assert self.fetch() is not None

    # ---- commit ------------------------------------------------------------------------------------------

    def test_commit_answers_with_what_is_stored_now(self) -> None:
        merged = self.commit(self.created(user="anna"), Delta({"page": 1}))
        assert merged is not None
        assert merged.to_dict() == {"user": "anna", "page": 1} == self.data()

    def test_commit_applies_the_changes_to_what_is_stored_by_then(self) -> None:
        """R2"""
        base = self.created(user="anna", page=1)
        self.commit(base, Delta({"theme": "dark"}, removed=["page"]))
        merged = self.commit(base, Delta({"lang": "en"}))
        assert merged is not None
        assert merged.to_dict() == {"user": "anna", "theme": "dark", "lang": "en"} == self.data()

    def test_commit_keeps_birth_and_times(self) -> None:
        """S7"""
        made = Record.build({"user": "anna"}, self.storage.now_ns(), self.storage.now_ns() + 5 * IDLE, IDLE)
        self.create(made)
        self.clock.advance(TTL / 2)
        self.commit(made, Delta({"page": 1}))
        found = self.fetch()
        assert found is not None
        assert (found.created, found.cap, found.ttl, found.birth) == (
            made.created,
            made.cap,
            made.ttl,
            made.birth,
        )

    def test_commit_that_leaves_no_data_answers_none_and_deletes(self) -> None:
        """Rule 4"""
        base = self.created(user="anna")
        assert self.commit(base, Delta(removed=["user"])) is None
        assert self.fetch() is None

    def test_commit_that_clears_answers_none_and_deletes(self) -> None:
        """Rule 4"""
        base = self.created(user="anna")
        self.commit(base, Delta({"page": 1}))
        assert self.commit(base, Delta(cleared=True)) is None
        assert self.fetch() is None

    def test_commit_to_a_missing_record_raises_session_gone(self) -> None:
        """V5"""
        base = self.created(user="anna")
        self.delete()
        with pytest.raises(SessionGone):
            self.commit(base, Delta({"page": 1}))
        assert self.fetch() is None

    def test_commit_to_a_reborn_record_raises_session_gone(self) -> None:
        """V5"""
        old = self.created(user="anna")
        self.delete()
        self.created(user="bert")
        with pytest.raises(SessionGone):
            self.commit(old, Delta({"page": 1}))
        assert self.data() == {"user": "bert"}

    def test_commit_beyond_the_limit_stores_nothing(self) -> None:
        """V17"""
        base = self.created(user="anna")
        with pytest.raises(SessionTooLarge):
            self.commit(base, Delta({"page": "x" * 200}, max_bytes=100))
        assert self.data() == {"user": "anna"}

    # ---- delete ------------------------------------------------------------------------------------------

    def test_delete_answers_whether_there_was_a_record(self) -> None:
        self.created(user="anna")
        assert self.delete()
        assert not self.delete()
        assert self.fetch() is None

    # ---- rename ------------------------------------------------------------------------------------------

    def test_rename_moves_the_record(self) -> None:
        """S5, G4"""
        base = self.created(user="anna")
        moved = self.rename(base)
        assert moved is not None
        assert moved.birth == base.birth
        assert self.fetch() is None
        assert self.data(NEW_ID) == {"user": "anna"}

    def test_rename_moves_what_was_committed_since(self) -> None:
        """R2, S5"""
        base = self.created(user="anna")
        self.commit(base, Delta({"page": 1}))
        moved = self.rename(base)
        assert moved is not None
        assert moved.to_dict() == {"user": "anna", "page": 1} == self.data(NEW_ID)

    def test_rename_keeps_birth_and_times(self) -> None:
        """S7"""
        made = Record.build({"user": "anna"}, self.storage.now_ns(), self.storage.now_ns() + 5 * IDLE, IDLE)
        self.create(made)
        self.clock.advance(TTL / 2)
        self.rename(made)
        found = self.fetch(NEW_ID)
        assert found is not None
        assert (found.created, found.cap, found.ttl, found.birth) == (
            made.created,
            made.cap,
            made.ttl,
            made.birth,
        )

    def test_rename_begins_an_idle_time_of_the_callers_ttl(self) -> None:
        """S6: not of some default of the storage."""
        self.needs_clock()
        self.rename(self.created(user="anna"))
        self.wait_out(TTL)
        assert self.fetch(NEW_ID) is None

    def test_rename_of_a_missing_record_answers_none(self) -> None:
        """V5"""
        base = self.created(user="anna")
        self.delete()
        assert self.rename(base) is None
        assert self.fetch(NEW_ID) is None

    def test_rename_of_a_reborn_record_answers_none(self) -> None:
        """V5, S5"""
        old = self.created(user="anna")
        self.delete()
        self.created(user="bert")
        assert self.rename(old) is None
        assert self.data() == {"user": "bert"}
        assert self.fetch(NEW_ID) is None

    # ---- through an old id, in its grace time ------------------------------------------------------------

    def with_an_old_id(self, **data: Any) -> Record:
        self.needs_grace()
        base = self.created(**data)
        assert self.rename(base, GRACE) is not None
        return base

    def test_load_through_an_old_id_answers_the_new_record(self) -> None:
        """S23"""
        base = self.with_an_old_id(user="anna")
        self.commit(base, Delta({"page": 1}), NEW_ID)
        assert self.data() == {"user": "anna", "page": 1}

    def test_touch_through_an_old_id_reaches_the_new_record(self) -> None:
        """S23"""
        base = self.with_an_old_id(user="anna")
        self.clock.advance(1)
        assert self.touch(base)

    def test_commit_through_an_old_id_lands_in_the_new_record(self) -> None:
        """S23"""
        base = self.with_an_old_id(user="anna")
        merged = self.commit(base, Delta({"page": 1}))
        assert merged is not None
        assert self.data(NEW_ID) == {"user": "anna", "page": 1}

    def test_commit_through_an_old_id_that_leaves_no_data_deletes(self) -> None:
        """S23, rule 4"""
        base = self.with_an_old_id(user="anna")
        assert self.commit(base, Delta(removed=["user"])) is None
        assert self.fetch(NEW_ID) is None
        assert self.fetch() is None

    def test_delete_through_an_old_id_deletes_the_new_record(self) -> None:
        """S23, V14"""
        self.with_an_old_id(user="anna")
        assert self.delete()
        assert self.fetch(NEW_ID) is None
        assert self.fetch() is None

    def test_rename_through_an_old_id_moves_the_new_record(self) -> None:
        """S23, S5"""
        base = self.with_an_old_id(user="anna")
        assert self.rename(base, new_id="a-third-id") is not None
        assert self.data("a-third-id") == {"user": "anna"}
        assert self.fetch(NEW_ID) is None
        assert self.fetch() is None

    def test_create_answers_false_for_an_old_id_in_its_grace_time(self) -> None:
        """R1, S23"""
        self.with_an_old_id(user="anna")
        assert not self.create(self.built(user="bert"))
        assert self.data(NEW_ID) == {"user": "anna"}

    # ---- GoFrame's names, without a Session --------------------------------------------------------------

    def test_direct_calls_and_sessions_see_the_same_data(self) -> None:
        session_id = self.stored(user="anna")
        self.storage.set(session_id, "page", 1, TTL)
        self.storage.set_map(session_id, {"lang": "en", "theme": "dark"}, TTL)
        self.storage.remove(session_id, "theme", "never-there")
        assert self.read(session_id) == {"user": "anna", "page": 1, "lang": "en"}
        assert self.storage.get(session_id, "user") == "anna"
        assert self.storage.get(session_id, "theme", "light") == "light"

    def test_direct_reads_show_the_sessions_data_and_nothing_else(self) -> None:
        self.needs_made_reads()
        session_id = self.stored(user="anna", page=1)
        assert self.storage.get_map(session_id) == {"user": "anna", "page": 1}
        assert self.storage.get_size(session_id) == 2

    def test_remove_all_destroys_the_session(self) -> None:
        session_id = self.stored(user="anna")
        self.storage.remove_all(session_id)
        assert self.read(session_id) is None
        assert self.storage.get_map(session_id) == {}

    def test_set_session_stores_a_record_that_get_session_gives_back(self) -> None:
        self.storage.set_session(ID, self.built(user="anna", cart=("apple", 2)), TTL)
        record = self.storage.get_session(ID, TTL)
        assert record is not None
        assert record.to_dict() == {"user": "anna", "cart": ("apple", 2)}

    def test_set_session_replaces_the_data(self) -> None:
        session_id = self.stored(user="anna", page=1)
        self.storage.set_session(session_id, self.built(user="bert"), TTL)
        assert self.read(session_id) == {"user": "bert"}

    def test_update_ttl_begins_the_idle_time_anew(self) -> None:
        self.needs_sliding()
        session_id = self.stored(user="anna")
        self.clock.advance(TTL / 2)
        assert self.storage.update_ttl(session_id, TTL)
        self.wait_almost(TTL)
        assert self.exists(session_id)

    def test_update_ttl_of_an_unknown_id_answers_false_and_stores_nothing(self) -> None:
        """R7"""
        unknown = self.unknown_id()
        assert not self.storage.update_ttl(unknown, TTL)
        assert not self.exists(unknown)
