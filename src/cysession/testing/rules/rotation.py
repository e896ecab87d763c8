"""Rule 6: a rotated session has a fresh id and the same data; the old id is dead, or follows for a while."""

import pytest

from ...errors import SessionGone
from ..kit import TTL, Kit

__all__ = ["GraceRules", "RotationRules"]

GRACE = 30  # seconds, the kit's managers'


class RotationRules(Kit):
    def test_rotation_moves_all_data_to_a_fresh_id(self) -> None:
        """S5, G4"""
        data = {"user": "anna", "cart": ["apple", {"pear": 2}]}
        session = self.open(self.stored(data))
        old_id = session.id
        fresh = self.rotate(session)
        assert fresh == session.id != old_id
        assert self.read(fresh) == data

    def test_the_old_id_is_dead_at_once(self) -> None:
        """S5: before anything is saved."""
        session_id = self.stored(user="anna")
        self.rotate(self.open(session_id))
        assert self.read(session_id) is None

    def test_a_rotated_session_is_not_new(self) -> None:
        session = self.open(self.stored(user="anna"))
        self.rotate(session)
        assert not session.is_new
        assert session.get_map() == {"user": "anna"}

    def test_uncommitted_changes_stay_uncommitted(self) -> None:
        session = self.open(self.stored(user="anna"))
        session["page"] = 1
        fresh = self.rotate(session)
        assert self.read(fresh) == {"user": "anna"}

    def test_uncommitted_changes_are_saved_under_the_fresh_id(self) -> None:
        session = self.open(self.stored(user="anna"))
        session["page"] = 1
        fresh = self.rotate(session)
        self.save(session)
        assert self.read(fresh) == {"user": "anna", "page": 1}

    def test_rotation_takes_along_what_others_committed_meanwhile(self) -> None:
        """R2"""
        session_id = self.stored(user="anna")
        session = self.open(session_id)
        self.write(session_id, page=1)
        assert self.read(self.rotate(session)) == {"user": "anna", "page": 1}

    def test_a_session_rotates_again_and_again(self) -> None:
        session = self.open(self.stored(user="anna"))
        ids = [session.id, *(self.rotate(session) for _ in range(3))]
        assert len(set(ids)) == 4
        assert [self.read(session_id) for session_id in ids] == [None, None, None, {"user": "anna"}]

    def test_a_handle_that_was_not_loaded_rotates(self) -> None:
        session = self.manager.new(self.stored(user="anna"))
        assert self.read(self.rotate(session)) == {"user": "anna"}

    def test_a_new_session_rotates_to_an_id_that_its_first_commit_uses(self) -> None:
        """S5: login in the first request."""
        session = self.open()
        session["user"] = "anna"
        fresh = self.rotate(session)
        assert self.read(fresh) is None
        self.save(session)
        assert session.id == fresh
        assert self.read(fresh) == {"user": "anna"}

    def test_rotation_leaves_other_sessions_alone(self) -> None:
        other = self.stored(user="bert")
        self.rotate(self.open(self.stored(user="anna")))
        assert self.read(other) == {"user": "bert"}

    def test_a_rotated_session_is_destroyed_for_good(self) -> None:
        """V14"""
        session_id = self.stored(user="anna")
        session = self.open(session_id)
        fresh = self.rotate(session)
        self.destroy(session)
        assert self.read(fresh) is None
        assert self.read(session_id) is None

    # ---- who still holds the old id ----------------------------------------------------------------------

    def test_a_commit_under_a_dead_id_raises_session_gone(self) -> None:
        """S5: a request that holds the old id cannot write."""
        session_id = self.stored(user="anna")
        late = self.open(session_id)
        late["page"] = "attacker"
        fresh = self.rotate(self.open(session_id))
        with pytest.raises(SessionGone):
            self.save(late)
        assert self.read(fresh) == {"user": "anna"}
        assert self.read(session_id) is None

    def test_a_touch_under_a_dead_id_creates_nothing(self) -> None:
        """S5, R7"""
        session_id = self.stored(user="anna")
        late = self.open(session_id)
        self.rotate(self.open(session_id))
        self.clock.advance(TTL / 2)
        self.save(late)
        assert self.read(session_id) is None

    def test_of_two_rotations_the_second_raises_session_gone(self) -> None:
        """S5: one session never becomes two."""
        session_id = self.stored(user="anna")
        first, second = self.open(session_id), self.open(session_id)
        fresh = self.rotate(first)
        with pytest.raises(SessionGone):
            self.rotate(second)
        assert self.read(fresh) == {"user": "anna"}

    def test_a_destroy_under_a_dead_id_is_quiet(self) -> None:
        session_id = self.stored(user="anna")
        late = self.open(session_id)
        self.rotate(self.open(session_id))
        self.destroy(late)
        assert self.read(session_id) is None

    # ---- what rotation keeps -----------------------------------------------------------------------------

    def test_rotation_keeps_created_at(self) -> None:
        """S7"""
        session, began = self.open(self.stored(user="anna")), self.clock()
        self.clock.advance(TTL / 2)
        assert self.open(self.rotate(session)).created_at == began

    def test_rotation_keeps_the_absolute_age(self) -> None:
        """S7: no chain of rotations passes it."""
        manager = self.new_manager(max_age=2 * TTL)
        session = self.open(self.stored({"user": "anna"}, manager), manager)
        for _ in range(3):
            self.clock.advance(TTL / 2)
            self.rotate(session)
        self.wait_almost(TTL / 2)
        assert self.read(session.id, manager) == {"user": "anna"}
        self.clock.advance(ms=2 * self.tick)
        assert self.read(session.id, manager) is None

    def test_rotation_keeps_a_sessions_own_ttl(self) -> None:
        self.needs_clock()
        session = self.open()
        session["user"] = "anna"
        session.ttl = 10
        self.save(session)
        fresh = self.rotate(session)
        assert self.open(fresh).ttl == 10
        self.wait_out(10)
        assert self.read(fresh) is None

    def test_rotation_keeps_the_birth_of_the_record(self) -> None:
        """R1: it is the same session, so its own late commits still find it."""
        session = self.open(self.stored(user="anna"))
        before = self.record(session.id).birth
        assert self.record(self.rotate(session)).birth == before

    def test_a_rotated_session_is_gone_at_its_ttl(self) -> None:
        """S6"""
        self.needs_clock()
        fresh = self.rotate(self.open(self.stored(user="anna")))
        self.wait_out(TTL)
        assert self.read(fresh) is None

    def test_only_the_id_of_a_live_session_is_current(self) -> None:
        session = self.open(self.stored(user="anna"))
        old_id = session.id
        assert self.is_current(old_id)
        fresh = self.rotate(session)
        assert (self.is_current(fresh), self.is_current(old_id)) == (True, False)
        self.destroy(session)
        assert not self.is_current(fresh)


class GraceRules(Kit):
    """S23: requests that were on their way when the session rotated still find it."""

    def rotated(self, session_id: str) -> str:
        """The fresh id; `session_id` follows it for a while."""
        self.needs_grace()
        return self.rotate(self.open(session_id), delete_old=False)

    def test_the_old_id_reads_the_session(self) -> None:
        old_id = self.stored(user="anna")
        fresh = self.rotated(old_id)
        assert self.read(old_id) == {"user": "anna"} == self.read(fresh)

    def test_the_old_id_is_not_current(self) -> None:
        """A response that hands it out again would take the fresh id from the browser that has it by now."""
        old_id = self.stored(user="anna")
        fresh = self.rotated(old_id)
        assert (self.is_current(fresh), self.is_current(old_id)) == (True, False)

    def test_the_old_id_reads_what_was_written_under_the_new_one(self) -> None:
        old_id = self.stored(user="anna")
        self.write(self.rotated(old_id), page=1)
        assert self.read(old_id) == {"user": "anna", "page": 1}

    def test_a_write_under_the_old_id_lands_in_the_session(self) -> None:
        old_id = self.stored(user="anna")
        fresh = self.rotated(old_id)
        self.write(old_id, page=1)
        assert self.read(fresh) == {"user": "anna", "page": 1}

    def test_a_session_opened_before_the_rotation_is_saved_after_it(self) -> None:
        old_id = self.stored(user="anna")
        early = self.open(old_id)
        early["page"] = 1
        fresh = self.rotated(old_id)
        self.save(early)
        assert self.read(fresh) == {"user": "anna", "page": 1}

    def test_a_key_removed_under_the_old_id_is_gone(self) -> None:
        old_id = self.stored(user="anna", page=1)
        fresh = self.rotated(old_id)
        session = self.open(old_id)
        del session["page"]
        self.save(session)
        assert self.read(fresh) == {"user": "anna"}

    def test_a_session_emptied_under_the_old_id_is_deleted(self) -> None:
        old_id = self.stored(user="anna")
        fresh = self.rotated(old_id)
        session = self.open(old_id)
        session.clear()
        self.save(session)
        assert self.read(fresh) is None
        assert self.read(old_id) is None

    def test_destroy_under_the_old_id_ends_the_session(self) -> None:
        """V14: a logout is a logout."""
        old_id = self.stored(user="anna")
        fresh = self.rotated(old_id)
        self.destroy(self.open(old_id))
        assert self.read(fresh) is None
        assert self.read(old_id) is None

    def test_destroy_under_the_new_id_ends_the_old_one(self) -> None:
        """V14"""
        old_id = self.stored(user="anna")
        self.destroy(self.open(self.rotated(old_id)))
        assert self.read(old_id) is None

    def test_a_commit_under_the_old_id_of_a_destroyed_session_raises_session_gone(self) -> None:
        """V5"""
        old_id = self.stored(user="anna")
        late = self.open(old_id)
        late["page"] = 1
        fresh = self.rotated(old_id)
        self.destroy(self.open(fresh))
        with pytest.raises(SessionGone):
            self.save(late)
        assert self.read(old_id) is None
        assert self.read(fresh) is None

    def test_the_old_id_lives_until_one_tick_before_the_end_of_grace(self) -> None:
        self.needs_clock()
        old_id = self.stored(user="anna")
        self.rotated(old_id)
        self.wait_almost(GRACE)
        assert self.read(old_id) == {"user": "anna"}

    def test_the_old_id_is_unknown_after_grace(self) -> None:
        self.needs_clock()
        old_id = self.stored(user="anna")
        fresh = self.rotated(old_id)
        self.wait_out(GRACE)
        assert self.read(old_id) is None
        assert self.read(fresh) == {"user": "anna"}

    def test_use_does_not_prolong_grace(self) -> None:
        self.needs_clock()
        old_id = self.stored(user="anna")
        self.rotated(old_id)
        for number in range(3):
            self.wait_almost(GRACE / 3)
            self.write(old_id, page=number)
        self.clock.advance(ms=4 * self.tick)
        assert self.read(old_id) is None

    def test_a_commit_under_the_old_id_after_grace_raises_session_gone(self) -> None:
        self.needs_clock()
        old_id = self.stored(user="anna")
        late = self.open(old_id)
        late["page"] = 1
        fresh = self.rotated(old_id)
        self.wait_out(GRACE)
        with pytest.raises(SessionGone):
            self.save(late)
        assert self.read(fresh) == {"user": "anna"}

    def test_the_old_id_is_not_adopted_after_grace(self) -> None:
        """S3"""
        self.needs_clock()
        old_id = self.stored(user="anna")
        fresh = self.rotated(old_id)
        self.wait_out(GRACE)
        session = self.open(old_id)
        session["user"] = "bert"
        self.save(session)
        assert session.id not in (old_id, fresh)
        assert self.read(old_id) is None

    def test_the_first_id_follows_two_rotations(self) -> None:
        first = self.stored(user="anna")
        second = self.rotated(first)
        third = self.rotated(second)
        self.write(third, page=1)
        assert self.read(first) == self.read(second) == {"user": "anna", "page": 1}

    def test_a_rotation_under_the_old_id_moves_the_session(self) -> None:
        first = self.stored(user="anna")
        second = self.rotated(first)
        third = self.rotated(first)
        assert third not in (first, second)
        assert self.read(first) == self.read(second) == self.read(third) == {"user": "anna"}

    def test_a_rotation_without_grace_also_ends_earlier_old_ids(self) -> None:
        """S5: login after a periodic renewal; an attacker's pre-login id gets nothing."""
        first = self.stored(user="anna")
        second = self.rotated(first)
        third = self.rotate(self.open(second))
        assert self.read(first) is None
        assert self.read(second) is None
        assert self.read(third) == {"user": "anna"}

    def test_no_grace_configured_means_none(self) -> None:
        manager = self.new_manager(grace=0)
        old_id = self.stored({"user": "anna"}, manager)
        fresh = self.rotate(self.open(old_id, manager), delete_old=False)
        assert self.read(old_id, manager) is None
        assert self.read(fresh, manager) == {"user": "anna"}

    def test_the_old_id_does_not_outlive_the_absolute_age(self) -> None:
        """S7"""
        self.needs_grace()
        manager = self.new_manager(max_age=GRACE / 2)
        old_id = self.stored({"user": "anna"}, manager)
        self.rotate(self.open(old_id, manager), delete_old=False)
        self.wait_out(GRACE / 2)
        assert self.read(old_id, manager) is None

    def test_an_old_id_shows_nothing_but_the_sessions_data(self) -> None:
        """Whatever a storage keeps under an old id is its own affair."""
        self.needs_made_reads()
        old_id = self.stored(user="anna")
        fresh = self.rotated(old_id)
        assert self.storage.get_map(old_id) in ({"user": "anna"}, {})
        assert fresh not in repr(self.storage.get_map(old_id))
