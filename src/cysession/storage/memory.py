"""MemoryStorage: sessions in this process, in the compiled table.

Sessions talk to the table in C; the methods here serve direct calls and keep house. Each process has its own
sessions: behind several workers use files or Redis.
"""

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator

from .._core import Delta, Record, SessionTable
from .base import Storage
from .driver import Driver
from .operate import OK, WARN, Finding, Summary
from .users import SECOND, SETTLE, USER_KEY

__all__ = ["MemoryStorage"]

SHARDS = 64  # of the table
SLICE = 256  # sessions looked at between two looks at the clock
TURN = 0.001  # seconds of sweeping before other threads get their turn
PAUSE = 0.0001  # seconds of their turn; a thread that does not sleep keeps the GIL for another 5 ms
USERS_SLICE = 64  # users whose entries are looked at in one go
TICK = 1.08  # seconds between two looks at the wheel: a little more than its tick

_storages: "weakref.WeakSet[MemoryStorage]" = weakref.WeakSet()


class MemoryStorage(Storage):
    """Sessions in this process's memory (GoFrame's StorageMemory).

    Args:
        max_sessions: the most sessions to hold; a new one beyond it raises StorageFull. 0: no limit.
        any_object: hold values of any type. Objects of unsupported types are shared by reference: requests see
            each other's changes to them, and such a session cannot move to another storage.
        on_expire: called with a list of (id, record) that expired, outside every lock. What it raises is reported
            as unraisable and undoes nothing.
    """

    does_io = False
    table: SessionTable

    def __init__(
        self,
        max_sessions: int = 0,
        *,
        any_object: bool = False,
        on_expire: Callable[[list[tuple[str, Record | None]]], object] | None = None,
    ) -> None:
        super().__init__()
        if max_sessions < 0:
            raise ValueError("max_sessions must be 0 (no limit) or more")
        if on_expire is not None and not callable(on_expire):
            raise TypeError("on_expire must be callable")
        self.any_object = any_object
        self._max_sessions = max_sessions
        self._on_expire = on_expire
        self._users: dict[str, dict[str, int]] = {}  # user -> ids of their sessions, and when they were noted
        self._users_lock = threading.Lock()
        self._unswept: list[str] = []  # users whose entries this round has still to look at
        self.table = SessionTable(  # pyright: ignore[reportIncompatibleVariableOverride]
            on_expire=on_expire, max_sessions=max_sessions
        )
        self._driver = Driver("cysession-expiry", self._sweep)
        self.table._wake_on_add(self._driver.start)
        _storages.add(self)

    def use_clock(self, clock: Callable[[], float] | None) -> None:
        known = self.clock
        super().use_clock(clock)
        if self.clock is not known:
            self.table._set_clock(self.clock)

    def now_ns(self) -> int:
        return self.table.now_ns()

    def wall(self, moment: int) -> float:
        if self.clock is None:  # the native clock counts from no date
            moment += time.time_ns() - self.table.now_ns()
        return moment / SECOND

    def listen(self, listener: Callable[[str, str], object]) -> None:
        super().listen(listener)
        self.table._set_on_expire(self._expired)

    def _expired(self, gone: list[tuple[str, Record | None]]) -> None:
        for session_id, _ in gone:
            self._tell("expired", self.fingerprint(session_id))
        if self._on_expire is not None:
            self._on_expire(gone)

    def _sweep(self) -> float:
        """A turn; then the next one after a short pause, or a tick's rest."""
        if self._expire(TURN)[1]:
            return PAUSE
        self._sweep_users()
        return TICK

    # ---- the record protocol -------------------------------------------------------------------------------

    def load_record(self, session_id: str, ttl: int) -> Record | None:
        return self.table.load(session_id, ttl)

    def peek_record(self, session_id: str, ttl: int) -> Record | None:
        return self.table.peek(session_id)

    def touch_record(self, session_id: str, record: Record, ttl: int) -> bool:
        found = self.table.load(session_id, ttl)
        return found is not None and found.birth == record.birth

    def create_record(self, session_id: str, record: Record, ttl: int) -> bool:
        return self.table.add(session_id, record, ttl / 1e9)

    def commit_record(self, session_id: str, base: Record, delta: Delta, ttl: int) -> Record | None:
        return self.table.commit(session_id, base, delta, ttl)

    def delete_record(self, session_id: str) -> bool:
        return self.table.pop(session_id)

    def is_current(self, session_id: str) -> bool:
        return self.table.is_current(session_id)

    def rename_record(self, old_id: str, new_id: str, base: Record, ttl: int, grace: int) -> Record | None:
        return self.table.rename(old_id, new_id, grace / 1e9, base.birth, ttl / 1e9)

    # ---- whose sessions they are ---------------------------------------------------------------------------

    def note_user(self, user: str, session_id: str, ttl: int) -> None:
        with self._users_lock:
            self._users.setdefault(user, {})[session_id] = self.now_ns()

    def user_sessions(self, user: str) -> list[tuple[str, Record]]:
        found: dict[str, Record] = {}
        seen: set[str] = set()
        while fresh := [name for name in self._noted(user) if name not in seen]:  # see users.find
            seen.update(fresh)
            for _ in range(2):  # one that was noted and is not yet renamed may be so at the second look
                for name in fresh:
                    record = self.table.peek(name)
                    if record is not None and record.get(USER_KEY) == user:
                        found[name] = record
        return list(found.items())

    async def anote_user(self, user: str, session_id: str, ttl: int) -> None:
        self.note_user(user, session_id, ttl)

    async def auser_sessions(self, user: str) -> list[tuple[str, Record]]:
        return self.user_sessions(user)

    def _noted(self, user: str) -> list[str]:
        with self._users_lock:
            return list(self._users.get(user, ()))

    def _sweep_users(self) -> None:
        """Forget the entries of the next few users whose sessions are gone."""
        with self._users_lock:
            if not self._unswept:
                self._unswept = list(self._users)
            due, self._unswept = self._unswept[-USERS_SLICE:], self._unswept[:-USERS_SLICE]
            settled = self.now_ns() - SETTLE * SECOND  # one noted later may just be on its way
            noted = [
                (user, name) for user in due for name, at in self._users.get(user, {}).items() if at < settled
            ]
        for user, name in noted:  # without the lock: a look may run `on_expire`
            record = self.table.peek(name)
            if record is None or record.get(USER_KEY) != user:
                self._forget(user, name, settled)

    def _forget(self, user: str, name: str, settled: int) -> None:
        with self._users_lock:
            entries = self._users.get(user, {})
            if entries.get(name, settled) < settled:  # not noted again meanwhile
                del entries[name]
            if not entries:
                self._users.pop(user, None)

    # ---- for operators ---------------------------------------------------------------------------------------

    def scan(self) -> Iterator[Summary]:
        """In slices of a sixty-fourth each. The table does not tell when a session was last used."""
        for shard in range(SHARDS):
            for name, record in self.table.snapshot(shard):
                if record is not None:
                    yield self._summary(name, record)

    def summary(self, session_id: str) -> Summary | None:
        record = self.table.peek(session_id)
        return None if record is None else self._summary(session_id, record)

    def _summary(self, name: str, record: Record) -> Summary:
        ends = None if record.cap == Record.NEVER else self.wall(record.cap)
        idle = (record.ttl / SECOND) or self.ttl
        return Summary(name, record.size, self.wall(record.created), None, ends, idle, USER_KEY in record)

    def sweep(self, budget_s: float | None = None) -> int:
        """Remove what has expired, as the clean-up thread does, for about `budget_s` seconds; how many sessions."""
        removed, more = 0, True
        end = time.monotonic() + (float("inf") if budget_s is None else budget_s)
        while more and (left := end - time.monotonic()) > 0:
            count, more = self._expire(min(left, TURN))
            removed += count
            if more:
                time.sleep(PAUSE)
        return removed

    def _expire(self, seconds: float) -> tuple[int, bool]:
        """Slice after slice for so long: how many sessions went, and whether more are due."""
        removed, end = 0, time.monotonic() + seconds
        while True:
            count, more = self.table.expire(SLICE)
            removed += count
            if not more or time.monotonic() >= end:
                return removed, more

    def examine(self) -> Iterator[Finding]:
        yield Finding(
            WARN,
            "place",
            "this process's memory",
            "each process has sessions of its own, which end with it: several workers need files or Redis",
        )
        limit = "no limit on their number" if not self._max_sessions else f"at most {self._max_sessions}"
        advice = "" if self._max_sessions else "MemoryStorage(max_sessions=...) bounds what a flood can fill"
        yield Finding(OK if self._max_sessions else WARN, "sessions", f"{len(self)}, {limit}", advice)

    # ---- housekeeping --------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.table)

    def stats(self) -> dict[str, int]:
        """Counts since this storage was made; see SessionTable.stats."""
        return {**super().stats(), **self.table.stats()}

    def close(self) -> None:
        """Stop the expiry thread and drop every session. The next one stored starts it again."""
        self._driver.stop()
        self.table.clear()
        with self._users_lock:
            self._users.clear()
        self.table._wake_on_add(self._driver.start)


def _begin_in_child() -> None:
    """The child has the parent's sessions, no expiry thread, and perhaps a lock that nobody holds any more."""
    for storage in list(_storages):
        storage.table._after_fork_child()
        storage._users_lock = threading.Lock()
        storage.table._wake_on_add(storage._driver.start)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_in_child)
