"""Where sessions are kept. FileStorage and the Redis storages are imported when they are first asked for.

`open_storage` (urls.py), MemoryStorage and this lazy table are relied on by `cysession.manager`: keep them here.
"""

from typing import TYPE_CHECKING, Any

from .base import Storage as Storage
from .memory import MemoryStorage as MemoryStorage
from .urls import open_storage as open_storage

if TYPE_CHECKING:
    from .file import FileStorage as FileStorage

__all__ = ["FileStorage", "MemoryStorage", "Storage", "open_storage"]


def __getattr__(name: str) -> Any:
    if name == "FileStorage":
        from .file import FileStorage

        return FileStorage
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
