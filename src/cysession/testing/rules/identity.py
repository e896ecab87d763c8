"""Rules 1, 2 and 5: ids are the server's, nothing is stored for nobody, and destroyed is destroyed."""

import re
from collections.abc import Callable, Iterator

import pytest

from ...errors import SessionGone, SessionStarted
from ...session import Session
from ..kit import TTL, Kit

__all__ = ["MALFORMED_IDS", "DestroyRules", "IdRules"]

MALFORMED_IDS = {
    "empty": "",
    "path": "../x",
    "windows path": "..\\x",
    "absolute path": "/etc/passwd",
    "percent-encoded path": "%2e%2e%2fx",
    "dot": ".",
    "trailing dot": "x.",
    "NUL": "x\0y",
    "star": "*",
    "colon": "a:b",
    "CRLF": "x\r\ny",
    "trailing newline": "x\n",
    "space": "a b",
    "umlaut": "\u00e4" * 43,
    "unicode digits": "\u0661" * 43,
    "wide letters": "\uff41" * 43,
    "lone surrogate": "\ud800" * 43,
    "129 characters": "x" * 129,
    "a megabyte": "x" * 1_000_000,
}


def taken_then_free(taken: str, free: str) -> Callable[[], str]:
    """An id function that hands out an id in use first."""
    ids: Iterator[str] = iter([taken, free])
    return lambda: next(ids)


class IdRules(Kit):
    # ---- ids that nobody issued --------------------------------------------------------------------------

    def test_an_unknown_id_opens_a_new_session(self) -> None:
        """S3"""
        session = self.open(self.unknown_id())
        assert session.is_new
        assert session.get_map() == {}

    def test_an_unknown_id_is_not_adopted(self) -> None:
        """S3, V2: the attacker's id is dropped, the session gets a fresh one."""
        planted = self.unknown_id()
        session = self.open(planted)
        session["user"] = "anna"
        self.save(session)
        assert session.id != planted
        assert self.read(session.id) == {"user": "anna"}
        assert self.read(planted) is None

    def test_a_destroyed_id_is_not_adopted(self) -> None:
        """S3, V2: a destroyed id is an unknown id."""
        session_id = self.stored(user="anna")
        self.destroy(self.open(session_id))
        session = self.open(session_id)
        session["user"] = "bert"
        self.save(session)
        assert session.id != session_id
        assert self.read(session_id) is None

    def test_an_expired_id_is_not_adopted(self) -> None:
        """S3, V2: an expired id is an unknown id."""
        self.needs_clock()
        session_id = self.stored(user="anna")
        self.wait_out(TTL)
        session = self.open(session_id)
        session["user"] = "bert"
        self.save(session)
        assert session.id != session_id
        assert self.read(session_id) is None

    def test_an_emptied_id_is_not_adopted(self) -> None:
        """V2: "the record exists but is empty" would be a way in."""
        session = self.open(self.stored(user="anna"))
        session_id = session.id
        session.clear()
        self.save(session)
        again = self.open(session_id)
        again["user"] = "bert"
        self.save(again)
        assert again.id != session_id
        assert self.read(session_id) is None

    def test_a_malformed_id_opens_a_new_session(self) -> None:
        """S4, V3"""
        for kind, session_id in MALFORMED_IDS.items():
            session = self.open(session_id)
            session["user"] = kind
            self.save(session)
            assert session.id != session_id
            assert self.read(session.id) == {"user": kind}
            assert self.read(session_id) is None, kind

    def test_no_storage_ever_sees_a_malformed_id(self) -> None:
        """S4, V3: on any path that takes an id."""
        spy = self.spy()
        for manager in self.new_manager(storage=spy), self.new_manager(storage=spy, strict=False):
            for session_id in MALFORMED_IDS.values():
                self.save(self.open(session_id, manager))
                self.destroy(manager.new(session_id))
                self.destroy(self.open(session_id, manager))
                self.rotate(manager.new(session_id))
                self.close(manager.new(session_id))
        seen = {step.session_id for step in spy.steps}
        assert [kind for kind, session_id in MALFORMED_IDS.items() if session_id in seen] == []

    def test_a_malformed_id_finds_nothing_in_direct_reads(self) -> None:
        """V3"""
        for kind, session_id in MALFORMED_IDS.items():
            assert self.storage.get_map(session_id) == {}, kind
            assert self.storage.get_session(session_id, TTL) is None, kind

    # ---- nothing stored for nobody -----------------------------------------------------------------------

    def test_a_handle_costs_no_storage_step(self) -> None:
        """Rule 1"""
        spy = self.spy()
        manager = self.new_manager(storage=spy)
        handle = manager.new(self.stored(user="anna"))
        self.save(handle)
        self.close(handle)
        assert spy.steps == []

    def test_the_first_access_is_one_read(self) -> None:
        """Rule 1"""
        spy = self.spy()
        session = self.open(self.stored(user="anna"), self.new_manager(storage=spy))
        session.get_map()
        assert [step.name for step in spy.steps] == ["load"]

    def test_anonymous_noise_stores_nothing(self) -> None:
        """V8: neither unknown ids nor reads make a record."""
        spy = self.spy()
        manager = self.new_manager(storage=spy)
        noise = [self.unknown_id() for _ in range(50)]
        for session_id in noise:
            session = self.open(session_id, manager)
            assert session.get("user") is None
            assert session.id != session_id
            self.close(session)
        assert spy.writes == []
        assert [session_id for session_id in noise if self.exists(session_id)] == []

    def test_a_logout_of_nobody_stores_nothing(self) -> None:
        """V8, V14: and fails for nobody."""
        spy = self.spy()
        manager = self.new_manager(storage=spy)
        unknown = self.unknown_id()
        self.destroy(manager.new())
        self.destroy(manager.new(unknown))
        session = self.open(unknown, manager)
        self.destroy(session)
        self.close(session)
        assert {step.name for step in spy.writes} <= {"delete"}
        assert not self.exists(unknown)

    def test_a_new_session_without_data_is_not_stored(self) -> None:
        """V8"""
        spy = self.spy()
        session = self.open(manager=self.new_manager(storage=spy))
        session["user"] = "anna"
        del session["user"]
        self.save(session)
        assert spy.writes == []
        assert not self.exists(session.id)

    def test_a_rotated_session_without_data_is_not_stored(self) -> None:
        """V8"""
        spy = self.spy()
        session = self.open(manager=self.new_manager(storage=spy))
        fresh = self.rotate(session)
        self.close(session)
        assert spy.writes == []
        assert not self.exists(fresh)

    # ---- fresh ids ---------------------------------------------------------------------------------------

    def test_a_fresh_id_has_43_url_safe_characters(self) -> None:
        """S1"""
        assert re.fullmatch(r"[A-Za-z0-9_-]{43}", self.stored(user="anna"))

    def test_fresh_ids_differ(self) -> None:
        """S1"""
        assert len({self.stored(user=number) for number in range(50)}) == 50

    def test_a_storage_draws_fresh_ids_and_stores_nothing(self) -> None:
        """S1"""
        first, second = self.storage.new(TTL), self.storage.new(TTL)
        assert re.fullmatch(r"[A-Za-z0-9_-]{43}", first)
        assert first != second
        assert not self.exists(first)

    def test_the_managers_id_function_draws_fresh_ids(self) -> None:
        manager = self.new_manager(id_func=lambda: "drawn-by-the-manager")
        assert self.stored({"user": "anna"}, manager) == "drawn-by-the-manager"
        assert self.read("drawn-by-the-manager") == {"user": "anna"}

    def test_the_sessions_id_function_draws_its_fresh_ids(self) -> None:
        session = self.manager.new()
        session.set_id_func(lambda: "drawn-by-the-session")
        self.load(session)
        session["user"] = "anna"
        self.save(session)
        assert self.read("drawn-by-the-session") == {"user": "anna"}

    def test_a_fresh_id_in_use_is_drawn_again(self) -> None:
        """R1: create = must not exist."""
        taken = self.stored(user="anna")
        session = self.manager.new()
        session.set_id_func(taken_then_free(taken, "a-free-id"))
        self.load(session)
        session["user"] = "bert"
        self.save(session)
        assert self.read(taken) == {"user": "anna"}
        assert self.read("a-free-id") == {"user": "bert"}

    # ---- ids the server chose ----------------------------------------------------------------------------

    def test_an_id_chosen_by_the_server_is_kept(self) -> None:
        """Rule 2"""
        self.stored_as("a-chosen-id", user="anna")
        assert self.read("a-chosen-id") == {"user": "anna"}

    def test_an_id_chosen_by_the_server_finds_its_session(self) -> None:
        self.stored_as("a-chosen-id", user="anna")
        self.stored_as("a-chosen-id", page=1)
        assert self.read("a-chosen-id") == {"user": "anna", "page": 1}

    def test_two_that_begin_the_same_chosen_session_both_keep_their_data(self) -> None:
        """R1, R2: the second create meets a record and becomes a commit."""
        sessions = [self.manager.new(), self.manager.new()]
        for session, key in zip(sessions, "ab", strict=True):
            session.set_id("a-chosen-id")
            self.load(session)
            session[key] = key
        for session in sessions:
            self.save(session)
        assert self.read("a-chosen-id") == {"a": "a", "b": "b"}

    def test_no_id_can_be_chosen_after_the_start(self) -> None:
        session = self.open()
        with pytest.raises(SessionStarted):
            session.set_id("a-chosen-id")
        with pytest.raises(SessionStarted):
            session.set_id_func(lambda: "a-chosen-id")

    def test_a_malformed_id_cannot_be_chosen(self) -> None:
        """S4"""
        for session_id in MALFORMED_IDS.values():
            with pytest.raises(ValueError):
                self.manager.new().set_id(session_id)

    def test_a_manager_that_is_not_strict_adopts_an_unknown_id(self) -> None:
        """Rule 2: as GoFrame does, for clients that are trusted."""
        presented = self.unknown_id()
        session = self.open(presented, self.new_manager(strict=False))
        session["user"] = "anna"
        self.save(session)
        assert session.id == presented
        assert self.read(presented) == {"user": "anna"}


class DestroyRules(Kit):
    # ---- destroy is final --------------------------------------------------------------------------------

    def test_a_destroyed_session_is_gone(self) -> None:
        """V14"""
        session_id = self.stored(user="anna")
        self.destroy(self.open(session_id))
        assert self.read(session_id) is None

    def test_a_session_is_destroyed_without_being_loaded(self) -> None:
        session_id = self.stored(user="anna")
        self.destroy(self.manager.new(session_id))
        assert self.read(session_id) is None

    def test_a_destroyed_session_stays_destroyed_after_close(self) -> None:
        """G8: GoFrame writes an empty record back."""
        session = self.open(self.stored(user="anna"))
        session_id = session.id
        self.destroy(session)
        self.close(session)
        assert self.read(session_id) is None

    def test_destroy_drops_uncommitted_changes(self) -> None:
        session = self.open(self.stored(user="anna"))
        session_id = session.id
        session["page"] = 1
        self.destroy(session)
        self.save(session)
        assert self.read(session_id) is None

    def test_destroy_leaves_other_sessions_alone(self) -> None:
        other = self.stored(user="bert")
        self.destroy(self.open(self.stored(user="anna")))
        assert self.read(other) == {"user": "bert"}

    def test_destroying_twice_is_quiet(self) -> None:
        """V14"""
        session_id = self.stored(user="anna")
        first, second = self.open(session_id), self.open(session_id)
        self.destroy(first)
        self.destroy(second)
        self.destroy(second)
        assert self.read(session_id) is None

    def test_a_write_after_destroy_begins_a_new_session(self) -> None:
        session = self.open(self.stored(user="anna"))
        old_id = session.id
        self.destroy(session)
        session["user"] = "bert"
        self.save(session)
        assert session.id != old_id
        assert self.read(session.id) == {"user": "bert"}
        assert self.read(old_id) is None

    # ---- nothing brings it back --------------------------------------------------------------------------

    def test_a_commit_to_a_destroyed_session_raises_session_gone(self) -> None:
        """V5, R1"""
        late = self.open(self.stored(user="anna"))
        late["page"] = 1
        self.destroy(self.open(late.id))
        with pytest.raises(SessionGone):
            self.save(late)
        assert not self.exists(late.id)

    def test_a_second_try_raises_session_gone_too(self) -> None:
        """V5, R23: a late retry."""
        late = self.open(self.stored(user="anna"))
        late["page"] = 1
        self.destroy(self.open(late.id))
        for _ in range(2):
            with pytest.raises(SessionGone):
                self.save(late)
        assert not self.exists(late.id)

    def test_closing_a_changed_session_that_was_destroyed_raises_session_gone(self) -> None:
        """V5, R3"""
        late = self.open(self.stored(user="anna"))
        session_id = late.id
        late["page"] = 1
        self.destroy(self.open(session_id))
        with pytest.raises(SessionGone):
            self.close(late)
        assert not self.exists(session_id)

    def test_a_change_in_place_does_not_bring_a_destroyed_session_back(self) -> None:
        """V5, R1"""
        late = self.open(self.stored(cart=["apple"]))
        late["cart"].append("pear")
        self.destroy(self.open(late.id))
        with pytest.raises(SessionGone):
            self.save(late)
        assert not self.exists(late.id)

    def test_removing_a_key_of_a_destroyed_session_raises_session_gone(self) -> None:
        """V5, R1"""
        late = self.open(self.stored(user="anna", page=1))
        del late["page"]
        self.destroy(self.open(late.id))
        with pytest.raises(SessionGone):
            self.save(late)
        assert not self.exists(late.id)

    def test_emptying_a_destroyed_session_raises_session_gone(self) -> None:
        """V5, R1"""
        late = self.open(self.stored(user="anna"))
        late.clear()
        self.destroy(self.open(late.id))
        with pytest.raises(SessionGone):
            self.save(late)
        assert not self.exists(late.id)

    def test_a_new_ttl_for_a_destroyed_session_raises_session_gone(self) -> None:
        """V5, R1"""
        late = self.open(self.stored(user="anna"))
        late.ttl = 10
        self.destroy(self.open(late.id))
        with pytest.raises(SessionGone):
            self.save(late)
        assert not self.exists(late.id)

    def test_a_touch_of_a_destroyed_session_creates_nothing(self) -> None:
        """V5, R7: and raises nothing, for nothing was lost."""
        late = self.open(self.stored(user="anna"))
        self.destroy(self.open(late.id))
        self.clock.advance(TTL / 2)
        self.save(late)
        assert not self.exists(late.id)

    def test_a_direct_touch_of_a_destroyed_session_creates_nothing(self) -> None:
        """R7"""
        session_id = self.stored(user="anna")
        self.destroy(self.open(session_id))
        assert not self.storage.update_ttl(session_id, TTL)
        assert not self.exists(session_id)

    def test_rotation_does_not_bring_a_destroyed_session_back(self) -> None:
        """V5, S5"""
        late = self.open(self.stored(user="anna"))
        old_id = late.id
        self.destroy(self.open(old_id))
        with pytest.raises(SessionGone):
            self.rotate(late)
        assert not self.exists(old_id)

    def test_an_emptied_session_takes_no_late_commit(self) -> None:
        """V5: emptied = deleted."""
        session_id = self.stored(user="anna")
        late, clearing = self.open(session_id), self.open(session_id)
        late["page"] = 1
        clearing.clear()
        self.save(clearing)
        with pytest.raises(SessionGone):
            self.save(late)
        assert not self.exists(session_id)

    # ---- an id that is used again is another session -----------------------------------------------------

    def reborn(self) -> tuple[str, Session]:
        """An id in its second life, and a handle from its first one."""
        self.stored_as("a-chosen-id", user="anna")
        old = self.open("a-chosen-id")
        self.destroy(self.open("a-chosen-id"))
        self.stored_as("a-chosen-id", user="bert")
        return "a-chosen-id", old

    def test_a_reborn_session_begins_empty(self) -> None:
        session_id, _ = self.reborn()
        assert self.read(session_id) == {"user": "bert"}

    def test_an_old_handle_does_not_write_into_a_reborn_session(self) -> None:
        """V5, R1: the birth of the record tells the two apart."""
        session_id, old = self.reborn()
        old["page"] = "anna's"
        with pytest.raises(SessionGone):
            self.save(old)
        assert self.read(session_id) == {"user": "bert"}

    def test_an_old_handle_does_not_empty_a_reborn_session(self) -> None:
        """V5, R1"""
        session_id, old = self.reborn()
        old.clear()
        with pytest.raises(SessionGone):
            self.save(old)
        assert self.read(session_id) == {"user": "bert"}

    def test_an_old_handle_does_not_rotate_a_reborn_session(self) -> None:
        """V5, S5: it would take over somebody else's session."""
        session_id, old = self.reborn()
        with pytest.raises(SessionGone):
            self.rotate(old)
        assert self.read(session_id) == {"user": "bert"}
