"""Everything cysession raises on purpose, under one root.

    SessionError
     |- SessionGone             the record vanished (destroyed, expired, revoked) before the commit
     |- SessionClosed           a write after close()
     |- SessionStarted          set_id()/set_id_func() after the first access
     |- SessionTooLarge         over max_bytes; the stored record is intact
     |- NotSerializable         a value no storage could give back unchanged
     |- StorageUnavailable      the storage failed; says nothing about whether the session exists
     |   `- StorageFull         no room for this write; reads and deletes still work
     |- StorageMisconfigured    a mistake of the operator, found at construction or at the first contact
     |- CorruptRecord           bytes that are not a record; storages treat them as a missing session
     `- NotSupported            this storage cannot do that

No message ever contains a session id, a key or a password, so every one may be logged.
A missing key of a session stays a plain KeyError.
"""

__all__ = [
    "CorruptRecord",
    "NotSerializable",
    "NotSupported",
    "SessionClosed",
    "SessionError",
    "SessionGone",
    "SessionStarted",
    "SessionTooLarge",
    "StorageFull",
    "StorageMisconfigured",
    "StorageUnavailable",
]


class SessionError(Exception):
    """Root of all errors raised by cysession; raised without a message it explains itself."""

    default = "session error"

    def __init__(self, message: str = "") -> None:
        super().__init__(message or self.default)


class SessionGone(SessionError):
    """The session was destroyed, revoked or expired elsewhere; this commit was not applied."""

    default = (
        "the session no longer exists: it was destroyed, revoked or has expired since it was loaded; "
        "its changes were not stored"
    )


class SessionClosed(SessionError):
    """The session was closed; later writes would be lost, so they are refused."""

    default = "the session is closed; write before close() or before the response headers are sent"


class SessionStarted(SessionError):
    """The session already has its id, which cannot be chosen any more."""

    default = "the session has started; call set_id() or set_id_func() before the first access"


class SessionTooLarge(SessionError):
    """The session would exceed the manager's max_bytes."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(
            f"the session would hold {size} bytes, the limit is {limit}; "
            "store less in it or raise max_bytes (the stored session is unchanged)"
        )
        self.size = size
        self.limit = limit

    def __reduce__(self) -> tuple[type["SessionTooLarge"], tuple[int, int]]:
        return type(self), (self.size, self.limit)


class NotSerializable(SessionError):
    """A value of a type that sessions cannot hold, with the path of keys that leads to it."""

    def __init__(self, path: str, type_name: str) -> None:
        super().__init__(f"a session cannot hold {path}: {type_name}; convert it to a supported type first")
        self.path = path
        self.type_name = type_name

    def __reduce__(self) -> tuple[type["NotSerializable"], tuple[str, str]]:
        return type(self), (self.path, self.type_name)


class StorageUnavailable(SessionError):
    """The storage could not be reached or failed. Never mistake it for an empty session; try again later."""

    default = "the session storage is unavailable; try again"


class StorageFull(StorageUnavailable):
    """The storage has no room for this write; what was stored before is intact."""

    default = "the session storage is full; make room or raise its limit (the stored session is unchanged)"


class StorageMisconfigured(SessionError):
    """The storage cannot work as configured; waiting will not help."""

    default = "the session storage is misconfigured"


class CorruptRecord(SessionError):
    """Bytes that are not a whole, unchanged session record."""

    default = "not a valid session record"


class NotSupported(SessionError):
    """The storage does not offer this operation."""

    default = "this storage does not support the operation"
