"""Storages of the tests: as a user could have written them, with and without waiting. They fail on demand."""

from __future__ import annotations

import asyncio
from typing import Any

from cysession import Record, Storage


class DictStorage(Storage):
    """The four methods of a custom storage over a dict. Notes every id that reaches it."""

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}
        self.seen: list[str] = []
        self.broken = False

    def __len__(self) -> int:
        return len(self.records)

    def _reach(self, session_id: str) -> None:
        self.seen.append(session_id)
        if self.broken:
            raise ConnectionError("the storage is down")

    def get_session(self, session_id: str, ttl: float) -> Record | None:
        self._reach(session_id)
        return self.records.get(session_id)

    def set_session(self, session_id: str, record: Record, ttl: float) -> None:
        self._reach(session_id)
        self.records[session_id] = record

    def update_ttl(self, session_id: str, ttl: float) -> bool:
        self._reach(session_id)
        return session_id in self.records

    def remove_all(self, session_id: str) -> bool:
        self._reach(session_id)
        return self.records.pop(session_id, None) is not None


class DirectStorage(DictStorage):
    """The same without I/O: adapters call it without awaiting."""

    does_io = False


class WaitingStorage(DictStorage):
    """Every awaited step lets other tasks run, as a network does."""

    waits = 0

    async def _wait(self) -> None:
        self.waits += 1
        await asyncio.sleep(0)

    async def aload_record(self, *args: Any) -> Any:
        await self._wait()
        return self.load_record(*args)

    async def atouch_record(self, *args: Any) -> Any:
        await self._wait()
        return self.touch_record(*args)

    async def acreate_record(self, *args: Any) -> Any:
        await self._wait()
        return self.create_record(*args)

    async def acommit_record(self, *args: Any) -> Any:
        await self._wait()
        return self.commit_record(*args)

    async def adelete_record(self, *args: Any) -> Any:
        await self._wait()
        return self.delete_record(*args)

    async def arename_record(self, *args: Any) -> Any:
        await self._wait()
        return self.rename_record(*args)
