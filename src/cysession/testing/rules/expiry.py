"""Rule 7: idle time slides, absolute age does not, and what has expired is gone before any sweeper came."""

import pytest

from ...errors import SessionGone
from ..kit import TTL, Kit

__all__ = ["ExpiryRules"]

HOUR = 3600


class ExpiryRules(Kit):
    # ---- idle time ---------------------------------------------------------------------------------------

    def test_a_session_lives_until_one_tick_before_its_ttl(self) -> None:
        """S6, R17"""
        self.needs_clock()
        session_id = self.stored(user="anna")
        self.wait_almost(TTL)
        assert self.read(session_id) == {"user": "anna"}

    def test_a_session_is_gone_at_its_ttl(self) -> None:
        """S6, R17: an idle time of 1000 s is over when 1000 s are over."""
        self.needs_clock()
        session_id = self.stored(user="anna")
        self.wait_out(TTL)
        assert self.read(session_id) is None

    def test_a_session_is_gone_one_tick_after_its_ttl(self) -> None:
        """S6, R17"""
        self.needs_clock()
        session_id = self.stored(user="anna")
        self.clock.advance(TTL, ms=self.tick)
        assert self.read(session_id) is None

    def test_a_session_is_gone_long_after_its_ttl(self) -> None:
        """R17: a timer wheel that has gone round meets it again."""
        self.needs_clock()
        session_id = self.stored(user="anna")
        self.wait_out(1000 * TTL)
        assert self.read(session_id) is None

    def test_a_read_begins_the_idle_time_anew(self) -> None:
        """S6"""
        self.needs_sliding()
        session_id = self.stored(user="anna")
        self.clock.advance(TTL / 2)
        assert self.exists(session_id)
        self.wait_almost(TTL)
        assert self.exists(session_id)

    def test_idle_time_counts_from_the_last_read(self) -> None:
        """S6"""
        self.needs_sliding()
        session_id = self.stored(user="anna")
        self.clock.advance(TTL / 2)
        assert self.exists(session_id)
        self.wait_out(TTL)
        assert not self.exists(session_id)

    def test_a_commit_begins_the_idle_time_anew(self) -> None:
        """S6"""
        self.needs_clock()
        session = self.open(self.stored(user="anna"))
        self.clock.advance(TTL / 2)
        session["page"] = 1
        self.save(session)
        self.wait_almost(TTL)
        assert self.exists(session.id)

    def test_idle_time_counts_from_the_last_commit(self) -> None:
        """S6"""
        self.needs_clock()
        session = self.open(self.stored(user="anna"))
        self.clock.advance(TTL / 2)
        session["page"] = 1
        self.save(session)
        self.wait_out(TTL)
        assert not self.exists(session.id)

    def test_saving_an_unchanged_session_begins_the_idle_time_anew(self) -> None:
        """S6: a long-lived handler that calls save() now and then keeps its session."""
        self.needs_sliding()
        session = self.open(self.stored(user="anna"))
        for _ in range(3):
            self.clock.advance(TTL / 2)
            self.save(session)
        self.clock.advance(TTL / 2)
        assert self.exists(session.id)

    def test_use_slides_as_long_as_it_goes_on(self) -> None:
        """S6"""
        self.needs_sliding()
        session_id = self.stored(user="anna")
        for _ in range(20):
            self.clock.advance(TTL * 0.9)
            assert self.read(session_id) == {"user": "anna"}

    def test_one_use_does_not_keep_another_session_alive(self) -> None:
        self.needs_sliding()
        used, idle = self.stored(user="anna"), self.stored(user="bert")
        for _ in range(3):
            self.clock.advance(TTL / 2)
            assert self.exists(used)
        assert not self.exists(idle)

    def test_a_clock_that_is_turned_back_ends_no_session(self) -> None:
        """R15: negative age counts as none."""
        session_id = self.stored(user="anna")
        self.clock.advance(-HOUR)
        assert self.read(session_id) == {"user": "anna"}

    # ---- a session's own ttl -----------------------------------------------------------------------------

    def with_ttl(self, seconds: float) -> str:
        session = self.open()
        session["user"] = "anna"
        session.ttl = seconds
        self.save(session)
        return session.id

    @pytest.mark.parametrize("ttl", [10, TTL * 100], ids=["shorter", "longer"])
    def test_a_sessions_own_ttl_overrides_the_managers(self, ttl: int) -> None:
        self.needs_clock()
        session_id = self.with_ttl(ttl)
        self.wait_almost(ttl)
        assert self.read(session_id) == {"user": "anna"}

    @pytest.mark.parametrize("ttl", [10, TTL * 100], ids=["shorter", "longer"])
    def test_a_session_is_gone_at_its_own_ttl(self, ttl: int) -> None:
        self.needs_clock()
        session_id = self.with_ttl(ttl)
        self.wait_out(ttl)
        assert self.read(session_id) is None

    def test_a_sessions_own_ttl_slides(self) -> None:
        self.needs_sliding()
        session_id = self.with_ttl(10)
        for _ in range(5):
            self.clock.advance(9)
            assert self.exists(session_id)

    def test_a_sessions_own_ttl_is_read_back(self) -> None:
        assert self.open(self.with_ttl(10)).ttl == 10

    def test_a_session_without_its_own_ttl_has_the_managers(self) -> None:
        assert self.open(self.stored(user="anna")).ttl == TTL

    def test_a_ttl_can_be_changed_alone(self) -> None:
        """ "Remember me" on a session whose data stay as they are."""
        self.needs_clock()
        session = self.open(self.stored(user="anna"))
        session.ttl = TTL * 100
        self.save(session)
        self.clock.advance(TTL * 50)
        assert self.read(session.id) == {"user": "anna"}

    def test_a_commit_of_another_request_keeps_a_sessions_own_ttl(self) -> None:
        self.needs_clock()
        session_id = self.with_ttl(10)
        self.write(session_id, page=1)
        assert self.open(session_id).ttl == 10
        self.wait_out(10)
        assert not self.exists(session_id)

    # ---- absolute age ------------------------------------------------------------------------------------

    def test_no_use_passes_the_absolute_age(self) -> None:
        """S7"""
        self.needs_sliding()
        manager = self.new_manager(max_age=3 * TTL)
        session_id = self.stored({"user": "anna"}, manager)
        for _ in range(5):
            self.clock.advance(TTL / 2)
            assert self.read(session_id, manager) == {"user": "anna"}
        self.wait_almost(TTL / 2)
        assert self.read(session_id, manager) == {"user": "anna"}
        self.clock.advance(ms=2 * self.tick)
        assert self.read(session_id, manager) is None

    def test_no_commit_passes_the_absolute_age(self) -> None:
        """S7"""
        manager = self.new_manager(max_age=2 * TTL)
        session = self.open(self.stored({"user": "anna"}, manager), manager)
        for page in range(3):
            self.clock.advance(TTL / 2)
            session["page"] = page
            self.save(session)
        self.wait_out(TTL / 2)
        session["page"] = 4
        with pytest.raises(SessionGone):
            self.save(session)
        assert self.read(session.id, manager) is None

    def test_no_touch_of_an_open_session_passes_the_absolute_age(self) -> None:
        """S7"""
        manager = self.new_manager(max_age=2 * TTL)
        session = self.open(self.stored({"user": "anna"}, manager), manager)
        for _ in range(6):
            self.clock.advance(TTL / 2)
            self.save(session)
        assert self.read(session.id, manager) is None

    def test_no_ttl_of_its_own_passes_the_absolute_age(self) -> None:
        """S7"""
        manager = self.new_manager(max_age=2 * TTL)
        session = self.open(manager=manager)
        session["user"] = "anna"
        session.ttl = 100 * TTL
        self.save(session)
        self.wait_out(2 * TTL)
        assert self.read(session.id, manager) is None

    def test_the_absolute_age_stays_with_the_session(self) -> None:
        """S7: it was promised when the session began, so a manager without one keeps it."""
        session_id = self.stored({"user": "anna"}, self.new_manager(max_age=TTL // 2))
        assert self.exists(session_id)
        self.wait_out(TTL / 2)
        assert not self.exists(session_id)

    def test_emptying_and_filling_in_one_commit_keeps_the_absolute_age(self) -> None:
        """S7: `clear()` before a commit changes the data, not the session."""
        manager = self.new_manager(max_age=TTL)
        session = self.open(self.stored({"user": "anna"}, manager), manager)
        self.clock.advance(TTL / 2)
        session.clear()
        session["user"] = "bert"
        self.save(session)
        self.wait_out(TTL / 2)
        assert self.read(session.id, manager) is None

    # ---- what a session says about its times -------------------------------------------------------------

    def test_created_at_is_the_moment_of_the_first_commit(self) -> None:
        session_id, began = self.stored(user="anna"), self.clock()
        self.clock.advance(TTL / 2)
        self.write(session_id, page=1)
        assert self.open(session_id).created_at == began

    def test_expires_at_is_the_last_use_plus_the_ttl(self) -> None:
        self.needs_sliding()
        session_id = self.stored(user="anna")
        self.clock.advance(TTL / 2)
        assert self.open(session_id).expires_at == self.clock() + TTL

    def test_expires_at_is_never_later_than_the_absolute_age(self) -> None:
        manager = self.new_manager(max_age=TTL // 2)
        session_id = self.stored({"user": "anna"}, manager)
        assert self.open(session_id, manager).expires_at == self.clock() + TTL // 2

    def test_a_new_session_has_no_times(self) -> None:
        session = self.open()
        assert session.created_at is None
        assert session.expires_at is None

    # ---- expired, and not yet swept ----------------------------------------------------------------------

    def test_a_commit_to_an_expired_session_raises_session_gone(self) -> None:
        """R6, R8"""
        self.needs_clock()
        session = self.open(self.stored(user="anna"))
        session["page"] = 1
        self.wait_out(TTL)
        with pytest.raises(SessionGone):
            self.save(session)
        assert not self.exists(session.id)

    def test_a_touch_does_not_revive_an_expired_session(self) -> None:
        """R8"""
        self.needs_clock()
        session = self.open(self.stored(user="anna"))
        self.wait_out(TTL)
        self.save(session)
        assert not self.exists(session.id)

    def test_rotation_does_not_revive_an_expired_session(self) -> None:
        """R8, S5"""
        self.needs_clock()
        session = self.open(self.stored(user="anna"))
        old_id = session.id
        self.wait_out(TTL)
        with pytest.raises(SessionGone):
            self.rotate(session)
        assert not self.exists(old_id)

    def test_destroying_an_expired_session_is_quiet(self) -> None:
        """V14"""
        self.needs_clock()
        session = self.open(self.stored(user="anna"))
        self.wait_out(TTL)
        self.destroy(session)

    def test_an_expired_session_is_invisible_to_direct_calls(self) -> None:
        """R8"""
        self.needs_clock()
        session_id = self.stored(user="anna")
        self.wait_out(TTL)
        assert self.storage.get_session(session_id, TTL) is None
        assert self.storage.get_map(session_id) == {}
        assert self.storage.get_size(session_id) == 0
        assert self.storage.get(session_id, "user", "nobody") == "nobody"
        assert not self.storage.update_ttl(session_id, TTL)
        assert self.storage.get_session(session_id, TTL) is None

    def test_an_id_used_again_after_expiry_begins_empty(self) -> None:
        """R8: neither data nor age of the session before it."""
        self.needs_clock()
        self.stored_as("a-chosen-id", user="anna")
        self.wait_out(TTL)
        self.stored_as("a-chosen-id", page=1)
        session = self.open("a-chosen-id")
        assert session.get_map() == {"page": 1}
        assert session.created_at == self.clock()

    def test_an_old_handle_does_not_write_into_a_session_reborn_after_expiry(self) -> None:
        """R1, R8: the record of that id is another one by now."""
        self.needs_clock()
        self.stored_as("a-chosen-id", user="anna")
        old = self.open("a-chosen-id")
        old["page"] = "anna's"
        self.wait_out(TTL)
        self.stored_as("a-chosen-id", user="bert")
        with pytest.raises(SessionGone):
            self.save(old)
        assert self.read("a-chosen-id") == {"user": "bert"}
