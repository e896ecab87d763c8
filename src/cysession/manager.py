"""Manager: what an application holds. It carries the policy; sessions read it, storages keep the records."""

from __future__ import annotations  # evaluating them costs import time

from collections.abc import Callable, Iterable
from datetime import timedelta
from types import TracebackType
from typing import NamedTuple, Self, TypedDict, TypeVar, overload

from ._core import ManagerCore, Record, Session
from .errors import StorageMisconfigured
from .events import Hook, Hooks
from .ids import new_id
from .storage import Storage

__all__ = ["Manager", "Policy", "SessionInfo", "Stats"]

H = TypeVar("H", bound=Hook)


class SessionInfo(NamedTuple):
    """One of a user's sessions, for a list of devices: nothing in it lets anybody use the session.

    Attributes:
        handle: names the session for life, through rotations; what `Manager.revoke` takes
        created_at: seconds since the epoch
        data: what is stored in it, read-only
    """

    handle: str
    created_at: float
    data: Record


class Stats(TypedDict):
    """Counts since this manager was made, in this process; `storage` has those of the storage itself.

    Attributes:
        created: sessions that its sessions stored for the first time; see events.py
        destroyed: those that they ended
        regenerated: those that they moved to a fresh id
        unknown_id: presented ids that named no live session
        revoked: sessions that `revoke` and `max_per_user` destroyed
        expired: sessions that the storage found to have expired, 0 where it cannot tell
        corrupt: records that it found damaged
        storage: the storage's own counts, see its `stats`
    """

    created: int
    destroyed: int
    regenerated: int
    unknown_id: int
    revoked: int
    expired: int
    corrupt: int
    storage: dict[str, int]


class Policy(TypedDict):
    """What a manager was made with; times in seconds. Its `ttl` is an attribute, because it may change."""

    max_age: float | None
    strict: bool
    own_ids: bool
    max_bytes: int
    grace: float
    max_per_user: int


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
        max_per_user: how many sessions a user may have (those bound with `Session.bind`); the commit that binds
            one more revokes the oldest. 0: no limit.

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
        max_per_user: int = 0,
    ) -> None:
        if id_func is not None and not callable(id_func):
            raise TypeError("id_func must be a callable that returns a str")
        if max_bytes < 0:
            raise ValueError("max_bytes must be 0 (no limit) or more")
        if max_per_user < 0:
            raise ValueError("max_per_user must be 0 (no limit) or more")
        self._set_policy(
            fresh_id=id_func or new_id,
            ttl=ttl,
            max_age=max_age,
            grace=grace,
            max_bytes=max_bytes,
            strict=strict,
        )
        self._limits: Policy = {
            "max_age": None if max_age is None else _seconds(max_age),
            "strict": strict,
            "own_ids": id_func is not None,
            "max_bytes": max_bytes,
            "grace": _seconds(grace),
            "max_per_user": max_per_user,
        }
        if storage is None:
            from .storage import open_storage

            storage = open_storage("file://")
        self._clock = clock
        self._hooks = Hooks()
        self._revoked = 0
        self._max_per_user = max_per_user
        if max_per_user:
            self._set_user_limit(self._limit_user, self._alimit_user)
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
        max_per_user: int = 0,
    ) -> Self:
        """A manager over the storage that a URL names: "memory://", "file:///var/lib/app", "redis://..."."""
        from .storage import open_storage

        return cls(
            ttl,
            open_storage(url),
            max_age=max_age,
            strict=strict,
            id_func=id_func,
            max_bytes=max_bytes,
            grace=grace,
            clock=clock,
            max_per_user=max_per_user,
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

    @property
    def policy(self) -> Policy:
        """The limits that this manager was made with, for a look from outside (ASVS 7.1.1)."""
        return self._limits.copy()

    def _use(self, storage: Storage) -> None:
        if not isinstance(storage, Storage):
            raise StorageMisconfigured(
                f"storage must be a cysession Storage, not {type(storage).__name__}; subclass cysession.Storage"
            )
        storage.use_clock(self._clock)
        if self._listening:
            storage.listen(self._hooks.tell)
        storage.ttl = self.ttl
        wall = type(storage).now_ns is Storage.now_ns
        self._set_storage(storage, storage.table, storage.any_object, wall)

    # ---- log out everywhere ------------------------------------------------------------------------------

    def sessions_of(self, user: str) -> list[SessionInfo]:
        """The live sessions that are bound to this user, the oldest first. Does not count as using them."""
        return self._infos(self.storage.user_sessions(user))

    async def asessions_of(self, user: str) -> list[SessionInfo]:
        return self._infos(await self.storage.auser_sessions(user))

    def revoke(self, user: str, *handles: str, keep: Session | None = None) -> int:
        """Destroy the user's sessions, or only those with these handles; never `keep`. How many there were.

        Final, as `Session.destroy`: a request that is just using one cannot write it back (ASVS 7.4.2, 7.4.5).
        """
        kept = None if keep is None else keep.handle
        tried: set[str] = set()
        revoked = 0
        while due := _to_revoke(self.storage.user_sessions(user), handles, kept, tried):
            for locator in due:  # again until none is left: one may be rotated under our hands
                if self.storage.delete_record(locator):
                    self._note_revoked(locator, user)
                    revoked += 1
        return revoked

    async def arevoke(self, user: str, *handles: str, keep: Session | None = None) -> int:
        """`revoke` without blocking the event loop."""
        if keep is not None:
            await keep.aload()
        kept = None if keep is None else keep.handle
        tried: set[str] = set()
        revoked = 0
        while due := _to_revoke(await self.storage.auser_sessions(user), handles, kept, tried):
            for locator in due:
                if await self.storage.adelete_record(locator):
                    self._note_revoked(locator, user)
                    revoked += 1
        return revoked

    def _infos(self, found: Iterable[tuple[str, Record]]) -> list[SessionInfo]:
        one_each = {record.handle: record for _, record in found}
        wall = self.storage.wall
        return [
            SessionInfo(handle, wall(record.created), record)
            for handle, record in sorted(one_each.items(), key=lambda pair: pair[1].created)
        ]

    def _limit_user(self, session: Session) -> None:
        """After a commit that bound the session: revoke the oldest ones beyond the limit."""
        user = session.user
        if user is not None and (surplus := self._surplus(self.sessions_of(user), session)):
            self.revoke(user, *surplus)

    async def _alimit_user(self, session: Session) -> None:
        user = session.user
        if user is not None and (surplus := self._surplus(await self.asessions_of(user), session)):
            await self.arevoke(user, *surplus)

    def _surplus(self, sessions: list[SessionInfo], newest: Session) -> list[str]:
        own = newest.handle
        others = [info.handle for info in sessions if info.handle != own]
        return others[: max(0, len(others) + 1 - self._max_per_user)]

    def _note_revoked(self, locator: str, user: str) -> None:
        self._revoked += 1
        self._hooks.tell("revoked", self.storage.fingerprint(locator), user)

    # ---- what happens ------------------------------------------------------------------------------------

    @overload
    def on(self, event: str, hook: H) -> H: ...
    @overload
    def on(self, event: str, hook: None = None) -> Callable[[H], H]: ...
    def on(self, event: str, hook: H | None = None) -> H | Callable[[H], H]:
        """Call `hook(Event)` whenever that happens to a session; see events.py. Also a decorator.

        Only what this manager's sessions do, and what its storage finds from now on.
        """
        if hook is None:
            return lambda given: self.on(event, given)
        self._hooks.add(event, hook)
        if not self._listening:
            self._listening = True
            self._listen()
        return hook

    _listening = False

    def _listen(self) -> None:
        self._set_tell(self._tell)
        self.storage.listen(self._hooks.tell)

    def _tell(self, kind: str, session_id: str, user: str | None) -> None:
        self._hooks.tell(kind, self.storage.fingerprint(session_id), user if isinstance(user, str) else None)

    def stats(self) -> Stats:
        """What happened so far; the keys are stable."""
        of_storage = self.storage.stats()
        tally = self._tally()
        return {
            "created": tally["created"],
            "destroyed": tally["destroyed"],
            "regenerated": tally["regenerated"],
            "unknown_id": tally["unknown_id"],
            "revoked": self._revoked,
            "expired": of_storage.get("expired", 0),
            "corrupt": of_storage.get("corrupt", 0),
            "storage": of_storage,
        }

    # ---- the end -----------------------------------------------------------------------------------------

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


def _seconds(time: float | timedelta) -> float:
    return time.total_seconds() if isinstance(time, timedelta) else float(time)


def _to_revoke(
    found: Iterable[tuple[str, Record]], handles: tuple[str, ...], kept: str | None, tried: set[str]
) -> list[str]:
    """Locators not tried before, of the sessions that are to go."""
    due = [
        locator
        for locator, record in found
        if locator not in tried and record.handle != kept and (not handles or record.handle in handles)
    ]
    tried.update(due)
    return due
