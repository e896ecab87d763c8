"""Rule 9: a storage that fails is not an empty session. Nothing is made up, lost or half done."""

from collections.abc import Callable
from contextlib import AbstractContextManager, suppress

import pytest

from ...errors import SessionGone, StorageUnavailable
from ...session import Session
from ..faults import FaultyStorage
from ..kit import TTL, Kit

__all__ = ["FailureRules"]


class FailureRules(Kit):
    """The storage under test stands behind a FaultyStorage; what it holds is looked at past that."""

    faulty: FaultyStorage

    def fresh(self, session_id: str = "") -> Session:
        """A handle whose storage steps can fail."""
        self.faulty = self.spy()
        return self.new_manager(storage=self.faulty).new(session_id)

    def started(self, session_id: str = "") -> Session:
        session = self.fresh(session_id)
        self.load(session)
        return session

    def fails(self, do: Callable[[], object]) -> None:
        with pytest.raises(StorageUnavailable):
            do()

    # ---- load ------------------------------------------------------------------------------------------

    def test_a_failed_load_is_not_an_empty_session(self) -> None:
        """R20"""
        session = self.fresh(self.stored(user="anna"))
        self.faulty.fail("load")
        self.fails(lambda: self.load(session))

    @pytest.mark.parametrize(
        "access",
        [
            lambda s: s.get("user"),
            lambda s: s["user"],
            lambda s: "user" in s,
            lambda s: len(s),
            lambda s: list(s),
            lambda s: s.get_map(),
            lambda s: s.id,
            lambda s: s.is_new,
            lambda s: s.set("user", "bert"),
            lambda s: s.clear(),
            lambda s: s.pop("user", None),
            lambda s: s.regenerate_id(),
        ],
        ids=[
            "get",
            "[]",
            "in",
            "len",
            "iter",
            "get_map",
            "id",
            "is_new",
            "set",
            "clear",
            "pop",
            "regenerate_id",
        ],
    )
    def test_every_first_access_surfaces_a_failed_load(self, access: Callable[[Session], object]) -> None:
        """R20"""
        session = self.fresh(self.stored(user="anna"))
        self.faulty.fail("load")
        self.fails(lambda: access(session))

    def test_a_failed_load_leaves_the_session_as_it_was(self) -> None:
        """R20"""
        session_id = self.stored(user="anna")
        session = self.fresh(session_id)
        self.faulty.fail("load")
        self.fails(lambda: self.load(session))
        assert self.faulty.writes == []
        assert self.read(session_id) == {"user": "anna"}

    def test_closing_after_a_failed_load_writes_nothing(self) -> None:
        """R20: never write back {}"""
        session_id = self.stored(user="anna")
        session = self.fresh(session_id)
        self.faulty.fail("load")
        self.fails(lambda: self.load(session))
        self.close(session)
        assert self.faulty.writes == []
        assert self.read(session_id) == {"user": "anna"}

    def test_a_failed_load_keeps_the_clients_cookie(self) -> None:
        """R20: the session is still there when the storage is back."""
        session = self.fresh(self.stored(user="anna"))
        self.faulty.fail("load")
        self.fails(lambda: self.load(session))
        assert session.cookie_state == "keep"

    def test_a_load_is_tried_again_after_a_failure(self) -> None:
        session_id = self.stored(user="anna")
        session = self.fresh(session_id)
        self.faulty.fail("load")
        self.fails(lambda: self.load(session))
        self.load(session)
        assert session.id == session_id
        assert session.get_map() == {"user": "anna"}

    # ---- create ----------------------------------------------------------------------------------------

    def test_a_failed_create_surfaces_and_stores_nothing(self) -> None:
        session = self.started()
        session["user"] = "anna"
        self.faulty.fail("create")
        self.fails(lambda: self.save(session))
        assert self.read(session.id) is None

    def test_a_create_is_tried_again_after_a_failure(self) -> None:
        session = self.started()
        session["user"] = "anna"
        self.faulty.fail("create")
        self.fails(lambda: self.save(session))
        self.save(session)
        assert self.read(session.id) == {"user": "anna"}

    def test_a_create_whose_answer_was_lost_is_tried_again(self) -> None:
        """R23: whatever became of the first one, the client gets an id that holds its data."""
        session = self.started()
        session["user"] = "anna"
        self.faulty.fail("create", after=True)
        self.fails(lambda: self.save(session))
        self.save(session)
        assert self.read(session.id) == {"user": "anna"}

    # ---- commit ----------------------------------------------------------------------------------------

    def test_a_failed_commit_surfaces_and_leaves_the_stored_session_intact(self) -> None:
        """R10"""
        session = self.started(self.stored(user="anna"))
        session["user"] = "bert"
        self.faulty.fail("commit")
        self.fails(lambda: self.save(session))
        assert self.read(session.id) == {"user": "anna"}

    def test_a_failed_close_surfaces_and_leaves_the_stored_session_intact(self) -> None:
        """R3: an error, not a 200"""
        session_id = self.stored(user="anna")
        session = self.started(session_id)
        session["user"] = "bert"
        self.faulty.fail("commit")
        self.fails(lambda: self.close(session))
        assert self.read(session_id) == {"user": "anna"}

    def test_a_commit_is_tried_again_after_a_failure(self) -> None:
        session = self.started(self.stored(user="anna", cart=["apple"]))
        session["user"] = "bert"
        session["cart"].append("pear")
        self.faulty.fail("commit")
        self.fails(lambda: self.save(session))
        self.save(session)
        assert self.read(session.id) == {"user": "bert", "cart": ["apple", "pear"]}

    def test_a_commit_whose_answer_was_lost_is_tried_again(self) -> None:
        """R22, R23"""
        session = self.started(self.stored(user="anna"))
        session["page"] = 1
        self.faulty.fail("commit", after=True)
        self.fails(lambda: self.save(session))
        self.save(session)
        assert self.read(session.id) == {"user": "anna", "page": 1}

    def test_a_retried_commit_does_not_undo_what_others_wrote(self) -> None:
        """R2, R23"""
        session = self.started(self.stored(user="anna"))
        session["page"] = 1
        self.faulty.fail("commit")
        self.fails(lambda: self.save(session))
        self.write(session.id, lang="en")
        self.save(session)
        assert self.read(session.id) == {"user": "anna", "page": 1, "lang": "en"}

    # ---- touch -----------------------------------------------------------------------------------------

    def test_a_failed_touch_surfaces_and_leaves_the_stored_session_intact(self) -> None:
        """R20"""
        session = self.started(self.stored(user="anna"))
        self.clock.advance(TTL / 2)
        self.faulty.fail("touch")
        self.fails(lambda: self.save(session))
        assert self.read(session.id) == {"user": "anna"}

    # ---- delete ----------------------------------------------------------------------------------------

    def test_a_failed_destroy_surfaces(self) -> None:
        """V14: nobody is told that they are logged out while they are not."""
        session_id = self.stored(user="anna")
        session = self.started(session_id)
        self.faulty.fail("delete")
        self.fails(lambda: self.destroy(session))
        assert self.read(session_id) == {"user": "anna"}

    def test_a_destroy_is_tried_again_after_a_failure(self) -> None:
        """V14"""
        session_id = self.stored(user="anna")
        session = self.started(session_id)
        self.faulty.fail("delete")
        self.fails(lambda: self.destroy(session))
        self.destroy(session)
        assert self.read(session_id) is None

    def test_a_destroy_whose_answer_was_lost_is_tried_again(self) -> None:
        """R23"""
        session_id = self.stored(user="anna")
        session = self.started(session_id)
        self.faulty.fail("delete", after=True)
        self.fails(lambda: self.destroy(session))
        self.destroy(session)
        assert self.read(session_id) is None

    # ---- rename ----------------------------------------------------------------------------------------

    def test_a_failed_rotation_surfaces_and_leaves_the_old_id_alive(self) -> None:
        session_id = self.stored(user="anna")
        session = self.started(session_id)
        self.faulty.fail("rename")
        self.fails(lambda: self.rotate(session))
        assert session.id == session_id
        assert self.read(session_id) == {"user": "anna"}

    def test_a_rotation_is_tried_again_after_a_failure(self) -> None:
        session_id = self.stored(user="anna")
        session = self.started(session_id)
        self.faulty.fail("rename")
        self.fails(lambda: self.rotate(session))
        assert self.read(self.rotate(session)) == {"user": "anna"}
        assert self.read(session_id) is None

    def test_a_rotation_whose_answer_was_lost_makes_no_second_session(self) -> None:
        """R23, S5: trying again moves it, or says that it is gone; the old id is dead either way."""
        session_id = self.stored(user="anna")
        session = self.started(session_id)
        self.faulty.fail("rename", after=True)
        self.fails(lambda: self.rotate(session))
        with suppress(SessionGone):
            assert self.read(self.rotate(session)) == {"user": "anna"}
        assert self.read(session_id) is None

    # ---- the storage itself, out of order --------------------------------------------------------------

    def broken_down(self) -> AbstractContextManager[object]:
        context = self.out_of_order(self.storage)
        if context is None:
            pytest.skip("out_of_order() does not say how this storage can be made to fail")
        return context

    def test_a_read_from_a_storage_out_of_order_is_no_empty_session(self) -> None:
        """R20: whatever class its own error is of."""
        session_id = self.stored(user="anna")
        with self.broken_down():
            self.fails(lambda: self.open(session_id))
        assert self.read(session_id) == {"user": "anna"}

    def test_an_unknown_id_of_a_storage_out_of_order_is_not_new(self) -> None:
        """R20: nobody can tell."""
        with self.broken_down():
            self.fails(lambda: self.open(self.unknown_id()))

    def test_a_commit_to_a_storage_out_of_order_surfaces_and_changes_nothing(self) -> None:
        """R10, R20"""
        session = self.open(self.stored(user="anna"))
        session["user"] = "bert"
        with self.broken_down():
            self.fails(lambda: self.save(session))
        assert self.read(session.id) == {"user": "anna"}
        self.save(session)
        assert self.read(session.id) == {"user": "bert"}

    def test_a_create_in_a_storage_out_of_order_surfaces(self) -> None:
        session = self.open()
        session["user"] = "anna"
        with self.broken_down():
            self.fails(lambda: self.save(session))
        self.save(session)
        assert self.read(session.id) == {"user": "anna"}

    def test_a_destroy_in_a_storage_out_of_order_surfaces(self) -> None:
        """V14"""
        session_id = self.stored(user="anna")
        session = self.open(session_id)
        with self.broken_down():
            self.fails(lambda: self.destroy(session))
        assert self.read(session_id) == {"user": "anna"}
        self.destroy(session)
        assert self.read(session_id) is None

    def test_a_rotation_in_a_storage_out_of_order_surfaces_and_keeps_the_old_id(self) -> None:
        session_id = self.stored(user="anna")
        session = self.open(session_id)
        with self.broken_down():
            self.fails(lambda: self.rotate(session))
        assert self.read(session_id) == {"user": "anna"}
        assert self.read(self.rotate(session)) == {"user": "anna"}
