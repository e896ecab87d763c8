"""Manager: what an application holds. It carries the policy; sessions read it, storages keep the records."""

from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import Self

from ._core import ManagerCore
from .errors import StorageMisconfigured
from .ids import new_id
from .storage import Storage, open_storage

__all__ = ["Manager"]


class Manager(ManagerCore):
    """Makes sessions and decides how they live (GoFrame's gsession.Manager).

    Args:
        ttl: idle time in seconds or a timedelta; every use of a session begins it anew. Default 24 hours.
        storage: where sessions are kept; None is FileStorage() in this user's private state directory.
        max_age: absolute lifetime from creation on, in seconds or a timedelta; no use extends it. None: none.
        strict: drop a presented id that names no live session (protects against fixation, OWASP ASVS 7.2.4).
            False adopts any well-formed id, as GoFrame does: only for clients you trust.
        id_func: draws fresh ids instead of the default 256 random bits; it must be as hard to guess.
        max_bytes: limit of one session's data; a commit beyond it raises SessionTooLarge. 0: no limit.
        grace: seconds for which an id rotated with `regenerate_id(delete_old=False)` leads to the new one.
        clock: a callable that returns seconds since the epoch, for every time the storage takes; None is the
            native clock. Tests pass a clock they can turn.

    A manager may be shared by all threads of a process, and lives on in its forks.
    """

    def __init__(
        self,
        ttl: float | timedelta = 86400,
        storage: Storage | None = None,
        *,
        max_age: float | timedelta | None = None,
        strict: bool = True,
        id_func: Callable[[], str] | None = None,
        max_bytes: int = 65536,
        grace: float | timedelta = 30,
        clock: Callable[[], float] | None = None,
    ) -> None:
        if id_func is not None and not callable(id_func):
            raise TypeError("id_func must be a callable that returns a str")
        if max_bytes < 0:
            raise ValueError("max_bytes must be 0 (no limit) or more")
        self._set_policy(
            fresh_id=id_func or new_id,
            ttl=ttl,
            max_age=max_age,
            grace=grace,
            max_bytes=max_bytes,
            strict=strict,
        )
        if storage is None:
            storage = open_storage("file://")
        self._clock = clock
        self._use(storage)

    @classmethod
    def from_url(
        cls,
        url: str,
        ttl: float | timedelta = 86400,
        *,
        max_age: float | timedelta | None = None,
        strict: bool = True,
        id_func: Callable[[], str] | None = None,
        max_bytes: int = 65536,
        grace: float | timedelta = 30,
        clock: Callable[[], float] | None = None,
    ) -> Self:
        """A manager over the storage that a URL names: "memory://", "file:///var/lib/app", "redis://..."."""
        return cls(
            ttl,
            open_storage(url),
            max_age=max_age,
            strict=strict,
            id_func=id_func,
            max_bytes=max_bytes,
            grace=grace,
            clock=clock,
        )

    @property
    def ttl(self) -> float:
        """Idle time in seconds of sessions that have none of their own; a change holds from the next use on."""
        return self._ttl_seconds

    @ttl.setter
    def ttl(self, value: float | timedelta) -> None:
        self._set_ttl(value)
        self.storage.ttl = self.ttl

    @property
    def storage(self) -> Storage:
        """Where sessions are kept. Setting another one leaves the old one's sessions behind."""
        return super().storage

    @storage.setter
    def storage(self, value: Storage) -> None:
        self._use(value)

    def _use(self, storage: Storage) -> None:
        if not isinstance(storage, Storage):
            raise StorageMisconfigured(
                f"storage must be a cysession Storage, not {type(storage).__name__}; subclass cysession.Storage"
            )
        storage.use_clock(self._clock)
        storage.ttl = self.ttl
        self._set_storage(storage, storage.table, storage.any_object)

    def close(self) -> None:
        """Flush and close the storage. Sessions still open can no longer be committed."""
        self.storage.close()

    async def aclose(self) -> None:
        """`close` without blocking the event loop."""
        await self.storage.aclose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<Manager ttl={self.ttl:g} storage={type(self.storage).__name__}>"
