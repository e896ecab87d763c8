"""MemoryStorage: sessions in this process, in the compiled table.

Sessions talk to the table in C; the methods here serve direct calls and keep house. Each process has its own
sessions: behind several workers use files or Redis.
"""

import os
import weakref
from collections.abc import Callable

from .._core import Delta, Record, SessionTable
from .base import Storage
from .driver import Driver

__all__ = ["MemoryStorage"]

SLICE = 256  # sessions looked at before other threads get their turn
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
        self.table = SessionTable(on_expire=on_expire, max_sessions=max_sessions)
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

    def _sweep(self) -> float:
        """One slice; then at once the next one, or a tick's rest."""
        return 0.0 if self.table.expire(SLICE)[1] else TICK

    # ---- the record protocol -------------------------------------------------------------------------------

    def load_record(self, session_id: str, ttl: int) -> Record | None:
        return self.table.load(session_id, ttl)

    def touch_record(self, session_id: str, record: Record, ttl: int) -> bool:
        found = self.table.load(session_id, ttl)
        return found is not None and found.birth == record.birth

    def create_record(self, session_id: str, record: Record, ttl: int) -> bool:
        return self.table.add(session_id, record, ttl / 1e9)

    def commit_record(self, session_id: str, base: Record, delta: Delta, ttl: int) -> Record | None:
        return self.table.commit(session_id, base, delta, ttl)

    def delete_record(self, session_id: str) -> bool:
        return self.table.pop(session_id)

    def rename_record(self, old_id: str, new_id: str, base: Record, ttl: int, grace: int) -> Record | None:
        return self.table.rename(old_id, new_id, grace / 1e9, base.birth, ttl / 1e9)

    # ---- housekeeping --------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.table)

    def stats(self) -> dict[str, int]:
        """Counts since this storage was made; see SessionTable.stats."""
        return {**super().stats(), **self.table.stats()}

    def close(self) -> None:
        """Stop the expiry thread and drop every session."""
        self._driver.stop()
        self.table.clear()


def _begin_in_child() -> None:
    """The child has the parent's sessions, no expiry thread, and perhaps a lock that nobody holds any more."""
    for storage in list(_storages):
        storage.table._after_fork_child()
        storage.table._wake_on_add(storage._driver.start)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_in_child)
