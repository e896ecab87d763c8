"""A session's id is a password: it is in no log, error or `repr`, and not in stored data."""

import logging
import traceback
import warnings
from collections.abc import Callable

import pytest

from ...errors import (
    NotSerializable,
    SessionClosed,
    SessionError,
    SessionGone,
    SessionTooLarge,
    StorageUnavailable,
)
from ...session import Session
from ..kit import TTL, Kit

__all__ = ["HygieneRules"]


class Listener(logging.Handler):
    """Everything that is logged, as text."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


class HygieneRules(Kit):
    def told(self, error: BaseException) -> str:
        """All that a log of this exception would say."""
        return "".join(traceback.format_exception(error)) + repr(error) + repr(error.args)

    def test_reprs_hold_no_id(self) -> None:
        """S20"""
        session = self.open(self.stored(user="anna"))
        shown = [
            session,
            self.manager,
            self.storage,
            self.record(session.id),
            self.spy(),
            self.storage.stats(),
        ]
        assert session.id not in "".join(map(repr, shown))

    def test_errors_hold_no_id(self) -> None:
        """S20"""
        errors = [
            (SessionGone, self.save_after_destroy),
            (SessionGone, self.rotate_after_destroy),
            (SessionClosed, self.write_after_close),
            (SessionTooLarge, self.save_too_much),
        ]
        if not self.storage.any_object:
            errors.append((NotSerializable, self.save_an_object))
        for kind, do in errors:
            self.says_no_id(kind, do)

    def says_no_id(self, kind: type[SessionError], do: Callable[[Session], None]) -> None:
        session = self.open(self.stored(user="anna"), self.new_manager(max_bytes=100))
        session_id = session.id
        with pytest.raises(kind) as raised:
            do(session)
        assert session_id not in self.told(raised.value)

    def save_after_destroy(self, session: Session) -> None:
        session["page"] = 1
        self.destroy(self.open(session.id))
        self.save(session)

    def rotate_after_destroy(self, session: Session) -> None:
        self.destroy(self.open(session.id))
        self.rotate(session)

    def write_after_close(self, session: Session) -> None:
        self.close(session)
        session["page"] = 1

    def save_too_much(self, session: Session) -> None:
        session["page"] = "x" * 200
        self.save(session)

    def save_an_object(self, session: Session) -> None:
        session["page"] = [object()]
        self.save(session)

    def test_a_storage_failure_holds_no_id(self) -> None:
        """S20"""
        spy = self.spy()
        session_id = self.stored(user="anna")
        spy.fail("load")
        with pytest.raises(StorageUnavailable) as raised:
            self.open(session_id, self.new_manager(storage=spy))
        assert session_id not in self.told(raised.value)

    def test_a_missing_key_says_nothing_but_the_key(self) -> None:
        session = self.open(self.stored(user="anna"))
        with pytest.raises(KeyError) as raised:
            session["page"]
        assert raised.value.args == ("page",)

    def test_logs_and_warnings_hold_no_id(self) -> None:
        """S20: through a whole life, with everything switched on."""
        listener, root = Listener(), logging.getLogger()
        level = root.level
        root.addHandler(listener)
        root.setLevel(logging.DEBUG)
        try:
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                ids = self.a_whole_life()
        finally:
            root.setLevel(level)
            root.removeHandler(listener)
        said = "\n".join([*listener.lines, *(str(warning.message) for warning in warned)])
        assert [session_id for session_id in ids if session_id in said] == []

    def a_whole_life(self) -> list[str]:
        """Create, read, change, corrupt, rotate, lose and destroy; every id that was met."""
        session = self.open(self.stored(user="anna"))
        ids = [session.id, self.unknown_id()]
        self.open(ids[1])
        self.write(session.id, page=1)
        ids.append(self.rotate(session, delete_old=not self.supports_grace))
        late = self.open(session.id)
        late["page"] = 2
        self.destroy(self.open(session.id))
        with pytest.raises(SessionGone):
            self.save(late)
        damaged = self.stored(user="bert")
        self.corrupt_record(self.storage, damaged)
        self.read(damaged)
        ids.append(damaged)
        expired = self.stored(user="carl")
        self.wait_out(2 * TTL)
        self.read(expired)
        return [*ids, expired]

    def test_what_is_stored_holds_no_id(self) -> None:
        """S21, V4: a listing or a backup of the storage logs nobody in; what is looked up in it is no id."""
        if self.raw_dump(self.storage) is None:
            pytest.skip("there is no raw_dump() to look at")
        session = self.open(self.stored(user="anna"))
        ids = [session.id, self.rotate(session, delete_old=not self.supports_grace), self.stored(user="bert")]
        self.write(ids[2], page=1)
        dump = self.raw_dump(self.storage)
        assert dump
        assert [session_id for session_id in ids if session_id.encode() in dump] == []

    # ---- bytes that are no record ------------------------------------------------------------------------

    def test_a_damaged_record_is_a_missing_session(self) -> None:
        """R13, rule 9: and no exception for the user."""
        session_id = self.stored(user="anna")
        self.damage(session_id)
        assert self.read(session_id) is None

    def test_a_damaged_record_is_counted(self) -> None:
        """Rule 9"""
        session_id = self.stored(user="anna")
        self.damage(session_id)
        before = self.storage.stats()["corrupt"]
        self.read(session_id)
        assert self.storage.stats()["corrupt"] > before

    def test_a_commit_to_a_damaged_record_raises_session_gone(self) -> None:
        """R13, V5"""
        session = self.open(self.stored(user="anna"))
        session["page"] = 1
        self.damage(session.id)
        with pytest.raises(SessionGone):
            self.save(session)

    def test_a_damaged_record_leaves_other_sessions_alone(self) -> None:
        """R13"""
        other, session_id = self.stored(user="bert"), self.stored(user="anna")
        self.damage(session_id)
        assert self.read(other) == {"user": "bert"}

    def damage(self, session_id: str) -> None:
        if not self.corrupt_record(self.storage, session_id):
            pytest.skip("corrupt_record() does not say how a record can be damaged")
