"""Where sessions are kept. FileStorage and the Redis storages are imported when they are first asked for.

So is what opens one by its URL: most programs build theirs themselves.
"""

from typing import TYPE_CHECKING, Any

from .base import Storage as Storage
from .memory import MemoryStorage as MemoryStorage
from .operate import Finding as Finding
from .operate import Summary as Summary

if TYPE_CHECKING:
    from .file import FileStorage as FileStorage
    from .redis import RedisHashStorage as RedisHashStorage
    from .redis import RedisStorage as RedisStorage
    from .urls import open_storage as open_storage

__all__ = [
    "FileStorage",
    "Finding",
    "MemoryStorage",
    "RedisHashStorage",
    "RedisStorage",
    "Storage",
    "Summary",
    "open_storage",
]


def __getattr__(name: str) -> Any:
    if name == "FileStorage":
        from .file import FileStorage

        return FileStorage
    if name in ("RedisStorage", "RedisHashStorage"):
        from . import redis

        return getattr(redis, name)
    if name == "open_storage":
        from .urls import open_storage

        return open_storage
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
