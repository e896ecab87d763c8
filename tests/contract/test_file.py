"""FileStorage keeps the contract, in one process and in several."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from cysession import FileStorage, Storage
from cysession.ids import storage_key
from cysession.testing import AsyncStorageContract, StorageContract
from cysession.testing.kit import Kit


@contextmanager
def broken_disk(storage: FileStorage) -> Iterator[None]:
    """Every call that names a file of the directory fails: its descriptor leads elsewhere for a while."""
    directory = storage._directory.fd
    kept, elsewhere = os.dup(directory), os.open(os.devnull, os.O_RDONLY)
    os.dup2(elsewhere, directory, inheritable=False)
    try:
        yield
    finally:
        os.dup2(kept, directory, inheritable=False)
        os.close(kept)
        os.close(elsewhere)


class InFiles(Kit):
    shared_between_processes = True

    def make_storage(self) -> Storage:
        return FileStorage(self.root, durability="none")

    @property
    def root(self) -> Path:
        return self.directory / "sessions"

    def raw_dump(self, storage: Storage) -> bytes:
        """Names and contents."""
        return b"".join(str(path).encode() + path.read_bytes() for path in self.files())

    def files(self) -> list[Path]:
        return [path for path in self.root.rglob("*") if path.is_file()]

    def corrupt_record(self, storage: Storage, session_id: str) -> bool:
        key = storage_key(session_id)
        path = next(path for path in self.files() if "".join(path.relative_to(self.root).parts) == key)
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 0xFF
        path.write_bytes(raw)
        return True

    def out_of_order(self, storage: Storage) -> AbstractContextManager[object]:
        assert isinstance(storage, FileStorage)
        return broken_disk(storage)


class TestFileStorage(InFiles, StorageContract):
    max_steps = 5


class TestFileStorageAsync(InFiles, AsyncStorageContract):
    max_steps = 4
