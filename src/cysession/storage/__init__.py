"""Where sessions are kept. FileStorage and the Redis storages are imported when they are first asked for.

`open_storage` (urls.py), MemoryStorage and this lazy table are relied on by `cysession.manager`: keep them here.
"""

from typing import TYPE_CHECKING, Any

from .base import Storage as Storage
from .memory import MemoryStorage as MemoryStorage
from .operate import Finding as Finding
from .operate import Summary as Summary
from .urls import open_storage as open_storage

if TYPE_CHECKING:
    from .file import FileStorage as FileStorage
    from .redis import RedisHashStorage as RedisHashStorage
    from .redis import RedisStorage as RedisStorage

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
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
