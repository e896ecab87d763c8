"""MemoryStorage keeps the contract, through its table and through the record protocol."""

from cysession import MemoryStorage, Storage
from cysession.testing import AsyncStorageContract, FaultyStorage, StorageContract


class TestMemoryStorage(StorageContract):
    def make_storage(self) -> Storage:
        return MemoryStorage()


class TestMemoryStorageAsync(AsyncStorageContract):
    def make_storage(self) -> Storage:
        return MemoryStorage()


class TestMemoryStorageByTheRecordProtocol(StorageContract):
    """Sessions talk to the table in C; behind another storage they cannot."""

    max_steps = 6

    def make_storage(self) -> Storage:
        return FaultyStorage(MemoryStorage())
