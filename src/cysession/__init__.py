"""Server-side sessions for Python servers, on a compiled core.

    from cysession import Manager, MemoryStorage

    manager = Manager(ttl=3600, storage=MemoryStorage())
    with manager.new(token) as session:
        session["visits"] = session.get("visits", 0) + 1

FileStorage and the Redis storages are imported at first use, like everything that not every program needs.
"""

from typing import TYPE_CHECKING, Any

from .errors import CorruptRecord as CorruptRecord
from .errors import NotSerializable as NotSerializable
from .errors import NotSupported as NotSupported
from .errors import SessionClosed as SessionClosed
from .errors import SessionError as SessionError
from .errors import SessionGone as SessionGone
from .errors import SessionStarted as SessionStarted
from .errors import SessionTooLarge as SessionTooLarge
from .errors import StorageFull as StorageFull
from .errors import StorageMisconfigured as StorageMisconfigured
from .errors import StorageUnavailable as StorageUnavailable
from .events import Event as Event
from .manager import Manager as Manager
from .manager import SessionInfo as SessionInfo
from .manager import Stats as Stats
from .session import Delta as Delta
from .session import Record as Record
from .session import Session as Session
from .storage import MemoryStorage as MemoryStorage
from .storage import Storage as Storage

if TYPE_CHECKING:
    from .storage import FileStorage as FileStorage
    from .storage import RedisHashStorage as RedisHashStorage
    from .storage import RedisStorage as RedisStorage

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "FileStorage":
        from .storage.file import FileStorage

        return FileStorage
    if name in ("RedisStorage", "RedisHashStorage"):
        from .storage import redis

        return getattr(redis, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
