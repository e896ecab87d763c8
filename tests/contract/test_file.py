"""FileStorage keeps the contract, in one process and in several."""

from pathlib import Path

from cysession import FileStorage, Storage
from cysession.testing import AsyncStorageContract, StorageContract


def stored_files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


class InFiles:
    directory: Path

    def make_storage(self) -> Storage:
        return FileStorage(self.directory / "sessions", durability="none")


class TestFileStorage(InFiles, StorageContract):
    max_steps = 6
    shared_between_processes = True


class TestFileStorageAsync(InFiles, AsyncStorageContract):
    max_steps = 4
    shared_between_processes = True
