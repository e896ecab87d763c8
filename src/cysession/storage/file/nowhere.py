"""FileStorage where it cannot keep its promises: Windows has no flock() and no descriptors of directories.

Its locks, its check that nobody else can read the directory and its replacement of files under a reader all rest on
those. So there the name exists, for programs that import it, and every use of it says what to do instead.
"""

from typing import NoReturn

from cysession.errors import StorageMisconfigured
from cysession.storage.base import Storage

__all__ = ["FileStorage"]


class FileStorage(Storage):
    """Raises StorageMisconfigured."""

    def __new__(cls, *args: object, **options: object) -> NoReturn:
        raise StorageMisconfigured(
            "FileStorage, the default storage, does not work on Windows: it needs flock() and descriptors of "
            "directories; pass storage=MemoryStorage() or a Redis storage"
        )
