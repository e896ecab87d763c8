"""FileStorage keeps the contract, in one process and in several."""

import errno
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from cysession import FileStorage, Storage
from cysession.ids import storage_key
from cysession.testing import AsyncStorageContract, StorageContract
from cysession.testing.kit import Kit

CALLS = ("open", "read", "write", "stat", "fstat", "rename", "unlink", "utime", "mkdir", "fsync", "fdatasync")


@contextmanager
def broken_disk() -> Iterator[None]:
    """Every system call that reaches the disk fails."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, fail)
        yield


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
        return broken_disk()


class TestFileStorage(InFiles, StorageContract):
    max_steps = 5


class TestFileStorageAsync(InFiles, AsyncStorageContract):
    max_steps = 4
