"""A storage of one's own on the four methods, and its tests: both type checkers pass it."""

from collections.abc import Mapping

from cysession import Manager, Record, Storage
from cysession.codec import decode, encode
from cysession.testing import AsyncStorageContract, StorageContract


class DictStorage(Storage):
    does_io = False

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    def get_session(self, session_id: str, ttl: float) -> Record | None:
        found = self.kept.get(session_id)
        return None if found is None else decode(found)

    def set_session(self, session_id: str, record: Record, ttl: float) -> None:
        self.kept[session_id] = encode(record)

    def update_ttl(self, session_id: str, ttl: float) -> bool:
        return session_id in self.kept

    def remove_all(self, session_id: str) -> bool:
        return self.kept.pop(session_id, None) is not None


class TestDictStorage(StorageContract):
    def make_storage(self) -> DictStorage:
        return DictStorage()


class TestDictStorageAsync(AsyncStorageContract):
    def make_storage(self) -> DictStorage:
        return DictStorage()


manager = Manager(storage=DictStorage())
data: Mapping[str, object] = Record.build({"a": 1}, created=0)
