"""Storages that a user writes keep the contract: the base class makes up for all that they do not do."""

import time
from collections.abc import Mapping
from typing import Any

from cysession import Record, Storage
from cysession.testing import AsyncStorageContract, StorageContract
from cysession.testing.rules.concurrency import InterleavingRules
from cysession.testing.rules.expiry import ExpiryRules
from cysession.testing.rules.protocol import ProtocolRules
from cysession.testing.rules.rotation import GraceRules
from examples.custom_storage import SqliteStorage


class DictStorage(Storage):
    """The least there can be: four methods over a dict."""

    does_io = False

    def __init__(self) -> None:
        self.sessions: dict[str, tuple[float, Record]] = {}

    def now(self) -> float:
        return self.now_ns() / 1e9

    def get_session(self, session_id: str, ttl: float) -> Record | None:
        ends, record = self.sessions.get(session_id, (0.0, None))
        return record if ends > self.now() else None

    def set_session(self, session_id: str, record: Record, ttl: float) -> None:
        self.sessions[session_id] = self.now() + ttl, record

    def update_ttl(self, session_id: str, ttl: float) -> bool:
        record = self.get_session(session_id, ttl)
        if record is None:
            return False
        self.set_session(session_id, record, ttl)
        return True

    def remove_all(self, session_id: str) -> bool:
        return self.sessions.pop(session_id, None) is not None


class UntouchedStorage(DictStorage):
    """Without `update_ttl`: idle time counts from the last write."""

    update_ttl = Storage.update_ttl


class StorageOfAnotherClock(DictStorage):
    """As on a server, whose time no test can turn."""

    def now(self) -> float:
        return time.monotonic()


class KeyedStorage(Storage):
    """Every key for itself, as in GoFrame's hash table."""

    does_io = False

    def __init__(self) -> None:
        self.sessions: dict[str, dict[str, Any]] = {}
        self.ends: dict[str, float] = {}

    def now(self) -> float:
        return self.now_ns() / 1e9

    def get_map(self, session_id: str) -> dict[str, Any]:
        if self.ends.get(session_id, 0.0) <= self.now():
            return {}
        return dict(self.sessions.get(session_id, {}))  # another thread may have removed it

    def set_map(self, session_id: str, mapping: Mapping[str, Any], ttl: float) -> None:
        stored = {**self.get_map(session_id), **mapping}
        self.sessions[session_id], self.ends[session_id] = stored, self.now() + ttl

    def remove(self, session_id: str, *keys: str) -> None:
        for key in keys:
            self.sessions.get(session_id, {}).pop(key, None)

    def remove_all(self, session_id: str) -> bool:
        self.ends.pop(session_id, None)
        return self.sessions.pop(session_id, None) is not None

    def update_ttl(self, session_id: str, ttl: float) -> bool:
        if not self.get_map(session_id):
            return False
        self.ends[session_id] = self.now() + ttl
        return True


class TestKeyedStorage(StorageContract):
    max_steps = 5

    def make_storage(self) -> Storage:
        return KeyedStorage()


class TestSqliteStorage(StorageContract):
    max_steps = 5

    def make_storage(self) -> Storage:
        return SqliteStorage(":memory:")


class TestSqliteStorageAsync(AsyncStorageContract):
    max_steps = 4

    def make_storage(self) -> Storage:
        return SqliteStorage(":memory:")


class TestStorageWithoutTouch(ExpiryRules, GraceRules, InterleavingRules, ProtocolRules):
    max_steps = 5
    slides_on_use = False

    def make_storage(self) -> Storage:
        return UntouchedStorage()


class TestStorageOfAnotherClock(ExpiryRules, GraceRules, InterleavingRules, ProtocolRules):
    max_steps = 5
    follows_clock = False

    def make_storage(self) -> Storage:
        return StorageOfAnotherClock()
