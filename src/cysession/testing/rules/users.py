"""Log out everywhere: whose sessions they are, the list of them, and their end.

The record says whose a session is (`Session.bind`); the storage's index of a user finds the records. Two more things
a storage offers for that: `peek_record`, which looks without using, and `locator`, which names a session at rest.
"""

from collections.abc import Sized
from functools import partial

import pytest

from ...errors import SessionGone, StorageUnavailable
from ...manager import Manager
from ...session import Session
from ...storage import Storage, users
from ..kit import TTL, Kit

__all__ = ["UserRules"]

IDLE = TTL * 1_000_000_000


class UserRules(Kit):
    def log_in(self, user: str = "anna", manager: Manager | None = None, **data: object) -> str:
        """The id of a new session that is bound to the user."""
        session = self.open(manager=manager)
        session.bind(user)
        session.set_map(data)
        self.save(session)
        return session.id

    def devices(self, user: str = "anna") -> list[object]:
        return [info.data.get("device") for info in self.run(self.steps.sessions_of(self.manager, user))]

    def revoke(self, user: str = "anna", *handles: str, keep: Session | None = None) -> int:
        return self.run(self.steps.revoke(self.manager, user, handles, keep))

    def needs_peek(self) -> None:
        kind = type(self.storage)
        if kind.load_record is not Storage.load_record and kind.peek_record is Storage.peek_record:
            pytest.skip("there is no peek_record(): a look is a use")

    # ---- whose sessions they are -------------------------------------------------------------------------

    def test_the_sessions_of_a_user_are_listed_oldest_first(self) -> None:
        """S8"""
        for device in "phone", "laptop", "tablet":
            self.log_in(device=device)
            self.clock.advance(1)
        self.log_in("bert", device="desk")
        self.stored(device="nobody's")
        assert self.devices() == ["phone", "laptop", "tablet"]
        assert self.devices("bert") == ["desk"]
        assert self.devices("nobody") == []

    def test_a_list_names_sessions_by_handles_that_stay(self) -> None:
        """S8, S20"""
        session = self.open(self.log_in())
        (info,) = self.run(self.steps.sessions_of(self.manager, "anna"))
        assert info.created_at == pytest.approx(self.storage.wall(self.record(session.id).created))
        assert session.id not in repr(info) and info.handle != session.id
        self.rotate(session)
        assert [info.handle] == [
            again.handle for again in self.run(self.steps.sessions_of(self.manager, "anna"))
        ]

    def test_a_session_bound_to_another_user_leaves_the_first_ones_list(self) -> None:
        session_id = self.log_in(device="phone")
        session = self.open(session_id)
        session.bind("bert")
        self.save(session)
        assert (self.devices(), self.devices("bert")) == ([], ["phone"])
        assert self.revoke() == 0
        session.bind(None)
        self.save(session)
        assert self.devices("bert") == []
        assert self.read(session_id) == {"device": "phone"}

    def test_an_existing_session_that_is_bound_is_listed(self) -> None:
        """S8: login in a session that had begun before."""
        session_id = self.stored(device="phone")
        session = self.open(session_id)
        session.bind("anna")
        self.save(session)
        assert self.devices() == ["phone"]

    def test_destroyed_and_emptied_sessions_are_not_listed(self) -> None:
        self.destroy(self.open(self.log_in(device="destroyed")))
        session = self.open(self.log_in(device="emptied"))
        session.remove_all()
        self.save(session)
        self.log_in(device="there")
        assert self.devices() == ["there"]

    def test_expired_sessions_are_not_listed(self) -> None:
        """S6"""
        self.needs_clock()
        self.log_in(device="old")
        self.clock.advance(TTL / 2)
        self.log_in(device="new")
        self.wait_out(TTL / 2)
        assert self.devices() == ["new"]

    # ---- the index loses nobody --------------------------------------------------------------------------

    def test_a_session_whose_create_was_not_answered_is_listed(self) -> None:
        """The index is told first: a session that nobody can log out must not come into being."""
        spy = self.spy()
        spy.fail("create", after=True)
        with pytest.raises(StorageUnavailable):
            self.log_in(manager=self.new_manager(storage=spy), device="phone")
        assert self.devices() == ["phone"]

    def test_a_binding_whose_commit_was_not_answered_is_listed(self) -> None:
        spy = self.spy()
        session = self.open(self.stored(device="phone"), self.new_manager(storage=spy))
        session.bind("anna")
        spy.fail("commit", after=True)
        with pytest.raises(StorageUnavailable):
            self.save(session)
        assert self.devices() == ["phone"]

    def test_a_session_whose_rotation_was_not_answered_is_listed(self) -> None:
        spy = self.spy()
        session = self.open(self.log_in(device="phone"), self.new_manager(storage=spy))
        spy.fail("rename", after=True)
        with pytest.raises(StorageUnavailable):
            self.rotate(session)
        assert self.devices() == ["phone"]
        assert self.revoke() == 1

    def test_a_bound_session_in_use_stays_listed(self) -> None:
        """The index lives as long as the sessions in it, however old the login."""
        self.needs_sliding()
        session_id = self.log_in(device="phone")
        for _ in range(10):
            self.clock.advance(TTL * 0.9)
            assert self.exists(session_id)
        assert self.devices() == ["phone"]

    def test_a_session_with_a_long_ttl_of_its_own_stays_listed(self) -> None:
        self.needs_clock()
        session = self.open()
        session.bind("anna")
        session["device"] = "phone"
        session.ttl = 4 * TTL
        self.save(session)
        self.clock.advance(3.9 * TTL)
        assert self.devices() == ["phone"]

    def test_of_logins_in_threads_none_is_lost(self) -> None:
        """Rule 11"""
        self.in_threads(*(partial(self.log_in, device=number) for number in range(8)))
        assert sorted(self.devices(), key=repr) == list(range(8))

    def test_of_logins_in_processes_none_is_lost(self) -> None:
        """R31"""
        if not self.shared_between_processes:
            pytest.skip("shared_between_processes = False")
        self.in_processes(*(partial(self.log_in, device=number) for number in range(4)))
        assert sorted(self.devices(), key=repr) == list(range(4))

    # ---- log out everywhere ------------------------------------------------------------------------------

    def test_revoke_ends_all_sessions_of_a_user_but_the_one_to_keep(self) -> None:
        """S8"""
        ids = [self.log_in(device=number) for number in range(4)]
        other = self.log_in("bert", device="desk")
        assert self.revoke(keep=self.open(ids[2])) == 3
        assert [self.exists(session_id) for session_id in ids] == [False, False, True, False]
        assert self.exists(other)
        assert (self.revoke(), self.revoke()) == (1, 0)

    def test_one_session_is_revoked_by_its_handle(self) -> None:
        """S8: and only by its own user's name."""
        ids = [self.log_in(device=number) for number in range(2)]
        handle = self.record(ids[0]).handle
        assert self.revoke("bert", handle) == 0
        assert self.revoke("anna", handle, "0" * 16) == 1
        assert [self.exists(session_id) for session_id in ids] == [False, True]

    def test_a_revoked_session_is_not_written_back(self) -> None:
        """R1, V5: by a request that was just using it."""
        session = self.open(self.log_in(device="phone"))
        idle = self.open(session.id)
        session["device"] = "watch"
        assert self.revoke() == 1
        with pytest.raises(SessionGone):
            self.save(session)
        self.clock.advance(TTL / 2)
        self.save(idle)
        assert not self.exists(session.id) and self.devices() == []

    @pytest.mark.parametrize("delete_old", [True, False])
    def test_a_rotated_session_is_listed_once_and_revoked(self, delete_old: bool) -> None:
        """S5, S8"""
        session_id = self.log_in(device="phone")
        session = self.open(session_id)
        ids = [session_id, *(self.rotate(session, delete_old=delete_old) for _ in range(3))]
        assert self.devices() == ["phone"]
        assert self.revoke() == 1
        assert [self.exists(each) for each in ids] == [False] * 4

    @pytest.mark.parametrize("delete_old", [True, False])
    def test_a_session_that_is_rotated_while_it_is_revoked_ends_too(self, delete_old: bool) -> None:
        """R1: between the list and the delete."""
        spy = self.spy()
        session = self.open(self.log_in(device="phone"))
        rotations = [session.regenerate_id]  # on an event loop too: another process may be a synchronous one

        def rotate_first(step: str, _: str) -> None:
            if step == "delete" and rotations:
                rotations.pop()(delete_old)

        spy.on_step = rotate_first
        self.run(self.steps.revoke(self.new_manager(storage=spy), "anna", (), None))
        assert not rotations
        assert not self.exists(session.id) and self.devices() == []

    def test_a_limit_of_sessions_a_user_revokes_the_oldest(self) -> None:
        manager = self.new_manager(max_per_user=2)
        for device in "phone", "laptop", "tablet":
            self.log_in(manager=manager, device=device)
            self.clock.advance(1)
        assert self.devices() == ["laptop", "tablet"]

    # ---- a look is no use --------------------------------------------------------------------------------

    def test_a_list_of_sessions_keeps_none_of_them_alive(self) -> None:
        """S6"""
        self.needs_sliding()
        self.needs_peek()
        session_id = self.log_in(device="phone")
        self.clock.advance(TTL / 2)
        assert self.devices() == ["phone"]
        self.wait_out(TTL / 2)
        assert not self.exists(session_id)

    def test_a_peek_shows_what_a_load_would(self) -> None:
        session_id = self.stored(user="anna")
        peek = partial(self.steps.peek_record, self.storage)
        found = self.run(peek(session_id, IDLE))
        assert found is not None and found.to_dict() == {"user": "anna"}
        assert found.birth == self.record(session_id).birth
        assert self.run(peek(self.unknown_id(), IDLE)) is None
        self.destroy(self.open(session_id))
        assert self.run(peek(session_id, IDLE)) is None

    def test_a_peek_follows_an_old_id_for_its_grace_time(self) -> None:
        self.needs_grace()
        session_id = self.stored(user="anna")
        self.rotate(self.open(session_id), delete_old=False)
        found = self.run(self.steps.peek_record(self.storage, session_id, IDLE))
        assert found is not None and found.to_dict() == {"user": "anna"}

    def test_a_peek_does_not_see_the_expired(self) -> None:
        """S6"""
        self.needs_clock()
        session_id = self.stored(user="anna")
        self.wait_out(TTL)
        assert self.run(self.steps.peek_record(self.storage, session_id, IDLE)) is None

    # ---- names -------------------------------------------------------------------------------------------

    def test_a_locator_names_the_session_in_every_step(self) -> None:
        session_id = self.stored(user="anna")
        name = self.storage.locator(session_id)
        steps, storage = self.steps, self.storage
        found = self.run(steps.load_record(storage, name, IDLE))
        assert found is not None and found.birth == self.record(session_id).birth
        peeked = self.run(steps.peek_record(storage, name, IDLE))
        assert peeked is not None and peeked.birth == found.birth
        assert self.run(steps.touch_record(storage, name, found, IDLE))
        assert self.storage.locator(session_id) == name
        assert self.storage.fingerprint(name) == self.storage.fingerprint(session_id)
        assert self.run(steps.delete_record(storage, name))
        assert not self.exists(session_id)

    def test_no_client_can_present_what_names_a_session_or_a_user_at_rest(self) -> None:
        """V3, S21"""
        session_id = self.log_in(device="phone")
        name = self.storage.locator(session_id)
        assert name == session_id or self.read(name) is None
        assert self.read(users.index_name("anna")) is None

    def test_the_index_of_a_user_holds_no_id(self) -> None:
        """S21"""
        if self.raw_dump(self.storage) is None:
            pytest.skip("there is no raw_dump() to look at")
        session = self.open(self.log_in())
        ids = [session.id, self.rotate(session)]
        dump = self.raw_dump(self.storage)
        assert dump
        assert [session_id for session_id in ids if session_id.encode() in dump] == []

    def test_the_index_of_a_user_is_no_session(self) -> None:
        if not isinstance(self.storage, Sized):
            pytest.skip("this storage does not count its sessions")
        self.log_in()
        self.log_in()
        assert len(self.storage) == 2
