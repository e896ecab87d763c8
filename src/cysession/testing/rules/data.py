"""Rules 3 and 4: a session sees a snapshot and its own changes; a commit writes those alone, by key."""

from collections.abc import Callable
from typing import Any

import pytest

from ...errors import SessionClosed, SessionTooLarge
from ...session import Session
from ..kit import TTL, Kit
from .types import difference

__all__ = ["CommitRules", "LimitRules", "SnapshotRules"]


class SnapshotRules(Kit):
    # ---- what a session sees -----------------------------------------------------------------------------

    def test_a_stored_session_is_read_back(self) -> None:
        session = self.open(self.stored(user="anna", page=1))
        assert not session.is_new
        assert session.get_map() == {"user": "anna", "page": 1}
        assert len(session) == 2
        assert "user" in session
        assert "cart" not in session

    def test_keys_keep_their_order(self) -> None:
        session_id = self.stored(dict.fromkeys("zebra", 1))
        self.write(session_id, a=2, new=3)
        assert list(self.read(session_id) or ()) == ["z", "e", "b", "r", "a", "new"]

    def test_a_session_sees_its_own_changes_before_the_commit(self) -> None:
        session = self.open(self.stored(user="anna", page=1))
        session["user"] = "bert"
        del session["page"]
        session["lang"] = "en"
        assert session.get_map() == {"user": "bert", "lang": "en"}

    def test_nobody_else_sees_changes_before_the_commit(self) -> None:
        """G14"""
        session_id = self.stored(user="anna")
        session = self.open(session_id)
        session["user"] = "bert"
        session["page"] = 1
        assert self.read(session_id) == {"user": "anna"}

    def test_nobody_sees_a_new_session_before_the_commit(self) -> None:
        session = self.open()
        session["user"] = "anna"
        assert self.read(session.id) is None

    def test_everybody_sees_changes_after_the_commit(self) -> None:
        session_id = self.stored(user="anna")
        self.write(session_id, user="bert")
        assert self.read(session_id) == {"user": "bert"}

    def test_a_started_session_keeps_what_it_started_with(self) -> None:
        """Rule 3: no half of another request's changes appears in the middle of this one."""
        session_id = self.stored(user="anna", page=1)
        session = self.open(session_id)
        self.write(session_id, user="bert", lang="en")
        assert session.get_map() == {"user": "anna", "page": 1}

    def test_a_started_session_keeps_its_data_when_another_destroys_it(self) -> None:
        session_id = self.stored(user="anna")
        session = self.open(session_id)
        self.destroy(self.open(session_id))
        assert session.get_map() == {"user": "anna"}

    def test_after_a_save_a_session_stands_on_what_was_stored_by_it(self) -> None:
        """Rule 3: its own changes, merged with those of others."""
        session_id = self.stored(user="anna")
        session = self.open(session_id)
        session["page"] = 1
        self.write(session_id, user="bert")
        self.save(session)
        assert session.get_map() == {"user": "bert", "page": 1}

    def test_a_new_session_is_no_longer_new_after_its_first_save(self) -> None:
        session = self.open()
        session["user"] = "anna"
        assert session.is_new
        self.save(session)
        assert not session.is_new

    # ---- values are the session's own --------------------------------------------------------------------

    def test_a_value_that_was_read_is_a_private_copy(self) -> None:
        """Z10, G14"""
        session_id = self.stored(cart=["apple", ["pear"]])
        mine, theirs = self.open(session_id), self.open(session_id)
        mine["cart"][1].append("plum")
        assert theirs["cart"] == ["apple", ["pear"]]
        assert self.read(session_id) == {"cart": ["apple", ["pear"]]}

    def test_a_value_that_was_set_is_copied_by_the_commit(self) -> None:
        """Z10"""
        cart = ["apple"]
        session_id = self.stored(cart=cart)
        cart.append("pear")
        assert self.read(session_id) == {"cart": ["apple"]}

    def test_one_list_under_two_keys_becomes_two(self) -> None:
        """Z10"""
        cart = ["apple"]
        session = self.open(self.stored(first=cart, second=cart))
        session["first"].append("pear")
        self.save(session)
        assert self.read(session.id) == {"first": ["apple", "pear"], "second": ["apple"]}

    def test_a_default_is_not_stored(self) -> None:
        session = self.open(self.stored(user="anna"))
        cart: list[str] = session.get("cart", [])
        cart.append("apple")
        self.save(session)
        assert self.read(session.id) == {"user": "anna"}

    # ---- changes in place --------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("before", "change", "after"),
        [
            (["apple"], lambda cart: cart.append("pear"), ["apple", "pear"]),
            ({"apple": 1}, lambda cart: cart.update(apple=2), {"apple": 2}),
            ({"apple"}, lambda cart: cart.add("pear"), {"apple", "pear"}),
            ([["apple"]], lambda cart: cart[0].append("pear"), [["apple", "pear"]]),
            ({"a": {"b": {1}}}, lambda cart: cart["a"]["b"].clear(), {"a": {"b": set()}}),
            ((["apple"], 1), lambda cart: cart[0].append("pear"), (["apple", "pear"], 1)),
            ([1], lambda cart: cart.__setitem__(0, True), [True]),
            ([1, 2], lambda cart: cart.reverse(), [2, 1]),
        ],
        ids=[
            "list",
            "dict",
            "set",
            "list in list",
            "set in dicts",
            "list in tuple",
            "type only",
            "order only",
        ],
    )
    def test_a_change_in_place_is_committed(self, before: Any, change: Any, after: Any) -> None:
        """R2: no `modified = True` ritual."""
        session = self.open(self.stored(cart=before))
        change(session["cart"])
        assert session.is_dirty
        self.save(session)
        assert difference({"cart": after}, self.read(session.id)) is None

    def test_a_change_in_place_after_a_save_is_committed_by_the_next(self) -> None:
        session = self.open()
        cart = ["apple"]
        session["cart"] = cart
        self.save(session)
        cart.append("pear")
        self.save(session)
        assert self.read(session.id) == {"cart": ["apple", "pear"]}

    def test_a_change_in_place_that_is_undone_is_no_change(self) -> None:
        spy = self.spy()
        session = self.open(self.stored(cart=["apple"]), self.new_manager(storage=spy))
        session["cart"].append("pear")
        session["cart"].pop()
        self.save(session)
        assert spy.writes == []


class CommitRules(Kit):
    # ---- merge by key ------------------------------------------------------------------------------------

    @pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["first saves first", "second saves first"])
    def test_changes_of_different_keys_both_survive(self, order: tuple[int, int]) -> None:
        """R2"""
        session_id = self.stored(user="anna")
        sessions = self.open(session_id), self.open(session_id)
        sessions[0]["first"] = 1
        sessions[1]["second"] = 2
        for number in order:
            self.save(sessions[number])
        assert self.read(session_id) == {"user": "anna", "first": 1, "second": 2}

    @pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["first saves first", "second saves first"])
    def test_of_changes_of_one_key_the_later_commit_wins(self, order: tuple[int, int]) -> None:
        """R2"""
        session_id = self.stored(user="anna")
        sessions = self.open(session_id), self.open(session_id)
        sessions[0]["user"] = 0
        sessions[1]["user"] = 1
        for number in order:
            self.save(sessions[number])
        assert self.read(session_id) == {"user": order[1]}

    @pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["set saves first", "removal saves first"])
    def test_a_change_and_a_removal_of_different_keys_both_survive(self, order: tuple[int, int]) -> None:
        """R2"""
        session_id = self.stored(user="anna", page=1)
        sessions = self.open(session_id), self.open(session_id)
        sessions[0]["user"] = "bert"
        del sessions[1]["page"]
        for number in order:
            self.save(sessions[number])
        assert self.read(session_id) == {"user": "bert"}

    @pytest.mark.parametrize(
        ("order", "left"),
        [((0, 1), {"user": "anna"}), ((1, 0), {"user": "anna", "page": 2})],
        ids=["set saves first", "removal saves first"],
    )
    def test_of_a_change_and_a_removal_of_one_key_the_later_wins(
        self, order: tuple[int, int], left: dict[str, Any]
    ) -> None:
        """R2"""
        session_id = self.stored(user="anna", page=1)
        sessions = self.open(session_id), self.open(session_id)
        sessions[0]["page"] = 2
        del sessions[1]["page"]
        for number in order:
            self.save(sessions[number])
        assert self.read(session_id) == left

    def test_a_key_that_was_only_read_keeps_what_others_wrote(self) -> None:
        """R2: also a container, which is compared with what it was."""
        session_id = self.stored(cart=["apple"], page=1)
        session = self.open(session_id)
        assert session["cart"] == ["apple"]
        self.write(session_id, cart=["pear"])
        session["page"] = 2
        self.save(session)
        assert self.read(session_id) == {"cart": ["pear"], "page": 2}

    def test_changes_in_place_of_different_keys_both_survive(self) -> None:
        """R2"""
        session_id = self.stored(first=[], second=[])
        sessions = self.open(session_id), self.open(session_id)
        sessions[0]["first"].append(1)
        sessions[1]["second"].append(2)
        for session in sessions:
            self.save(session)
        assert self.read(session_id) == {"first": [1], "second": [2]}

    def test_a_removed_key_is_gone(self) -> None:
        session = self.open(self.stored(user="anna", page=1))
        session.remove("page", "never-there")
        self.save(session)
        assert self.read(session.id) == {"user": "anna"}

    def test_a_key_removed_by_another_request_does_not_come_back(self) -> None:
        session_id = self.stored(user="anna", page=1)
        session, other = self.open(session_id), self.open(session_id)
        del other["page"]
        self.save(other)
        session["user"] = "bert"
        self.save(session)
        assert self.read(session_id) == {"user": "bert"}

    def test_save_goes_on_where_it_stands(self) -> None:
        session = self.open()
        for page in range(3):
            session["page"] = page
            self.save(session)
            assert self.read(session.id) == {"page": page}

    # ---- while a save is under way ------------------------------------------------------------------------

    def during(self, step: str, change: Callable[[Session], object], session_id: str = "") -> Session:
        """A session that another thread or task changes in the middle of its save."""
        spy = self.spy()
        session = self.open(session_id, self.new_manager(storage=spy))
        session["first"] = 1
        met: list[str] = []

        def meanwhile(name: str, _: str) -> None:
            if name == step and not met:
                met.append(name)
                change(session)

        spy.on_step = meanwhile
        self.save(session)
        assert met == [step]
        return session

    @pytest.mark.parametrize("step", ["create", "commit"])
    def test_a_change_during_a_save_is_saved_by_the_next(self, step: str) -> None:
        """Rule 11: one session object may be shared; nothing is lost without a word."""
        session_id = self.stored(user="anna") if step == "commit" else ""
        session = self.during(step, lambda session: session.set("second", 2), session_id)
        assert session.get("second") == 2
        self.save(session)
        found = self.read(session.id) or {}
        assert (found.get("first"), found.get("second")) == (1, 2)

    def test_a_removal_during_a_save_is_saved_by_the_next(self) -> None:
        """Rule 11"""
        session = self.during("commit", lambda session: session.remove("user"), self.stored(user="anna"))
        self.save(session)
        assert self.read(session.id) == {"first": 1}

    def test_a_later_value_during_a_save_is_saved_by_the_next(self) -> None:
        """Rule 11"""
        session = self.during("commit", lambda session: session.set("first", 2), self.stored(user="anna"))
        assert session["first"] == 2
        self.save(session)
        assert self.read(session.id) == {"user": "anna", "first": 2}

    def test_a_change_in_place_during_a_save_is_saved_by_the_next(self) -> None:
        """Rule 11"""
        session_id = self.stored(cart=["apple"])
        session = self.during("commit", lambda session: session["cart"].append("pear"), session_id)
        self.save(session)
        assert self.read(session_id) == {"cart": ["apple", "pear"], "first": 1}

    # ---- emptied -----------------------------------------------------------------------------------------

    def test_a_session_whose_last_key_is_removed_is_deleted(self) -> None:
        """Rule 4, V2"""
        session = self.open(self.stored(user="anna"))
        session_id = session.id
        del session["user"]
        self.save(session)
        assert self.read(session_id) is None

    def test_a_session_that_two_requests_emptied_together_is_deleted(self) -> None:
        """Rule 4: neither removed the last key of what it saw."""
        session_id = self.stored(user="anna", page=1)
        first, second = self.open(session_id), self.open(session_id)
        del first["user"]
        del second["page"]
        self.save(first)
        self.save(second)
        assert self.read(session_id) is None

    def test_a_cleared_session_is_deleted(self) -> None:
        session = self.open(self.stored(user="anna", page=1))
        session_id = session.id
        session.clear()
        assert session.get_map() == {}
        self.save(session)
        assert self.read(session_id) is None

    def test_clearing_also_removes_what_others_wrote_meanwhile(self) -> None:
        """RemoveAll means all: a reset that leaves a key behind is none."""
        session_id = self.stored(user="anna")
        session = self.open(session_id)
        session.clear()
        self.write(session_id, page=1)
        self.save(session)
        assert self.read(session_id) is None

    def test_a_session_cleared_and_filled_again_holds_only_the_new(self) -> None:
        session_id = self.stored(user="anna", page=1)
        session = self.open(session_id)
        session.clear()
        session["user"] = "bert"
        self.write(session_id, lang="en")
        self.save(session)
        assert self.read(session_id) == {"user": "bert"}

    def test_a_session_emptied_and_filled_again_begins_anew(self) -> None:
        """Rule 4: the emptied record was deleted, so this is another session with another id."""
        session = self.open(self.stored(user="anna"))
        old_id = session.id
        session.clear()
        self.save(session)
        session["user"] = "bert"
        self.save(session)
        assert self.read(old_id) is None
        assert self.read(session.id) == {"user": "bert"}

    # ---- nothing changed, nothing written ----------------------------------------------------------------

    def test_reading_writes_nothing(self) -> None:
        """R2, R7"""
        spy = self.spy()
        session = self.open(self.stored(user="anna", cart=["apple"]), self.new_manager(storage=spy))
        assert session.get_map() == {"user": "anna", "cart": ["apple"]}
        assert "user" in session
        self.close(session)
        assert spy.writes == []

    def test_reading_keeps_the_record(self) -> None:
        """R7: the same session, made at the same time."""
        session_id = self.stored(user="anna")
        before = self.record(session_id)
        self.clock.advance(TTL / 2)
        session = self.open(session_id)
        self.close(session)
        after = self.record(session_id)
        assert (after.birth, after.created, after.cap) == (before.birth, before.created, before.cap)

    def test_a_touch_leaves_another_requests_commit_alone(self) -> None:
        """R7"""
        session_id = self.stored(user="anna")
        reader = self.open(session_id)
        self.write(session_id, user="bert")
        self.clock.advance(TTL / 2)
        self.save(reader)
        assert self.read(session_id) == {"user": "bert"}

    def test_a_second_save_writes_nothing(self) -> None:
        spy = self.spy()
        session = self.open(self.stored(user="anna"), self.new_manager(storage=spy))
        session["page"] = 1
        self.save(session)
        assert [step.name for step in spy.writes] == ["commit"]
        self.save(session)
        self.close(session)
        assert [step.name for step in spy.writes] == ["commit"]

    def test_a_first_commit_is_one_write(self) -> None:
        spy = self.spy()
        session = self.open(manager=self.new_manager(storage=spy))
        session.set_map({"user": "anna", "page": 1})
        self.close(session)
        assert [step.name for step in spy.steps] == ["create"]

    # ---- the end of a handle -----------------------------------------------------------------------------

    def test_close_commits(self) -> None:
        session = self.open(self.stored(user="anna"))
        session["page"] = 1
        self.close(session)
        assert self.read(session.id) == {"user": "anna", "page": 1}

    def test_a_write_after_close_raises_session_closed(self) -> None:
        """R3: never silently lost."""
        session = self.open(self.stored(user="anna"))
        assert session["user"] == "anna"
        self.close(session)
        with pytest.raises(SessionClosed):
            session["page"] = 1
        assert session.get_map() == {"user": "anna"}

    def test_discarded_changes_are_not_committed(self) -> None:
        """R4"""
        session = self.open(self.stored(user="anna"))
        session["user"] = "bert"
        session.discard()
        self.close(session)
        assert self.read(session.id) == {"user": "anna"}

    def test_an_exception_discards_the_changes(self) -> None:
        """R4"""
        session_id = self.stored(user="anna")
        with pytest.raises(ZeroDivisionError), self.manager.new(session_id) as session:
            self.load(session)
            session["user"] = "bert"
            raise ZeroDivisionError
        assert self.read(session_id) == {"user": "anna"}

    def test_an_exception_does_not_undo_a_destroy(self) -> None:
        """R4, V14"""
        session_id = self.stored(user="anna")
        with pytest.raises(ZeroDivisionError), self.manager.new(session_id) as session:
            self.load(session)
            self.destroy(session)
            raise ZeroDivisionError
        assert self.read(session_id) is None


class LimitRules(Kit):
    def test_a_session_beyond_max_bytes_is_refused(self) -> None:
        """R40, V17"""
        session = self.open(manager=self.new_manager(max_bytes=1000))
        session["page"] = "x" * 2000
        with pytest.raises(SessionTooLarge) as refused:
            self.save(session)
        assert refused.value.limit == 1000
        assert refused.value.size > 2000
        assert self.read(session.id) is None

    def test_a_commit_beyond_max_bytes_leaves_the_stored_session_intact(self) -> None:
        """V17: never truncated."""
        session_id = self.stored(user="anna")
        session = self.open(session_id, self.new_manager(max_bytes=1000))
        session["user"] = "bert"
        session["page"] = "x" * 2000
        with pytest.raises(SessionTooLarge):
            self.save(session)
        assert self.read(session_id) == {"user": "anna"}

    def test_a_session_up_to_max_bytes_is_stored(self) -> None:
        manager = self.new_manager(max_bytes=1000)
        session_id = self.stored({"page": "x" * 900}, manager)
        assert self.read(session_id, manager) == {"page": "x" * 900}

    def test_two_requests_together_do_not_pass_max_bytes(self) -> None:
        """V17: the limit holds for the merged session."""
        manager = self.new_manager(max_bytes=1000)
        session_id = self.stored({"user": "anna"}, manager)
        first, second = self.open(session_id, manager), self.open(session_id, manager)
        first["first"] = "x" * 600
        second["second"] = "y" * 600
        self.save(first)
        with pytest.raises(SessionTooLarge):
            self.save(second)
        assert self.read(session_id) == {"user": "anna", "first": "x" * 600}

    def test_a_session_that_was_too_large_can_be_saved_when_it_is_smaller(self) -> None:
        session = self.open(self.stored(user="anna"), self.new_manager(max_bytes=1000))
        session["page"] = "x" * 2000
        with pytest.raises(SessionTooLarge):
            self.save(session)
        session["page"] = "x"
        self.save(session)
        assert self.read(session.id) == {"user": "anna", "page": "x"}

    def test_no_limit_means_none(self) -> None:
        manager = self.new_manager(max_bytes=0)
        session_id = self.stored({"page": "x" * 100_000}, manager)
        assert self.read(session_id, manager) == {"page": "x" * 100_000}

    def test_many_keys_are_held(self) -> None:
        data = {f"key-{number}": number for number in range(500)}
        assert self.read(self.stored(data)) == data

    @pytest.mark.parametrize(
        "key", ["", " ", "k" * 300, "\u00e4\u00f6", "\U0001f36a", "a\0b", "a.b", "a:b", "*"], ids=repr
    )
    def test_any_text_is_a_key(self, key: str) -> None:
        session_id = self.stored({key: 1, "other": 2})
        assert self.read(session_id) == {key: 1, "other": 2}
        session = self.open(session_id)
        del session[key]
        self.save(session)
        assert self.read(session_id) == {"other": 2}
