"""Storage: what every storage offers, and all that a storage of your own does not have to write.

There are three ways to write one, told apart once for each class:

    records   load_record, touch_record, create_record, commit_record, delete_record and rename_record, each
              atomic. What FileStorage and RedisStorage do; sessions use a storage through these only.
    whole     get_session, set_session, remove_all and update_ttl (without it idle time counts from the last
              write): a session is read and written as a whole. docs/custom_storage.md has one in 30 lines.
    keyed     get_map, set_map (or set), remove, and if possible remove_all and update_ttl: key by key.

For the last two this class makes the record protocol: it merges by key, tells a reborn id from the one that
was loaded (`birth`), enforces the absolute deadline (`cap`), rotates, and follows an old id for its grace
time, under locks striped by id. Those locks hold inside one process; a storage shared by several processes
has to be atomic itself, which is what the record protocol is for. Idle time is the storage's own job:
`set_session` and `update_ttl` say how long a session lives from now on, and `get_session` must not return it
any later.

The methods with GoFrame's names take seconds, the record protocol takes nanoseconds of `now_ns()`.
"""

from __future__ import annotations  # evaluating them takes half of this module's import

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Self

from cysession import ids
from cysession._core import Delta, Record, SessionTable
from cysession.errors import (
    CorruptRecord,
    NotSupported,
    SessionError,
    SessionGone,
    StorageMisconfigured,
    StorageUnavailable,
)

from . import users
from .operate import Finding, Summary

__all__ = ["Storage"]

PUBLIC = (  # GoFrame's names
    *("new", "get", "get_map", "get_size", "set", "set_map", "remove", "remove_all"),
    *("get_session", "set_session", "update_ttl"),
)
SECOND = 1_000_000_000
HOPS = 8  # how many rotations back an old id is followed


class Storage:
    """Base of all storages. Subclass it and override one of the three sets of methods named above."""

    clock: Callable[[], float] | None = None
    """Seconds; given by Manager(clock=...). None: the wall clock."""

    ttl: float = 86400.0
    """Idle seconds for those public methods that are not told any."""

    does_io: bool = True
    """Whether adapters on an event loop have to await the async twins."""

    table: SessionTable | None = None
    """MemoryStorage's table, which sessions then use directly, in C."""

    any_object: bool = False
    """Whether values of any type are taken, by reference."""

    overrides: ClassVar[frozenset[str]] = frozenset()
    """Which of GoFrame's methods this class brings itself; the others are made of them."""

    _backing: ClassVar[type[_Whole] | type[_Keyed] | None] = None
    _missing: ClassVar[str] = "a subclass of Storage"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.overrides = frozenset(name for name in PUBLIC if getattr(cls, name) is not getattr(Storage, name))
        cls._backing, cls._missing = _choose(cls)

    def __new__(cls, *_: Any, **__: Any) -> Self:
        # Not in __init__: a subclass may forget to call that.
        if cls._missing:
            raise StorageMisconfigured(f"{cls.__name__} is no storage yet: it needs {cls._missing}")
        self = super().__new__(cls)
        self._stripes = Stripes()
        self._touched = {}
        self._corrupt = 0
        self._listeners = ()
        return self

    _stripes: Stripes
    _touched: dict[str, int]  # id -> when idle time was last begun anew through this object
    _corrupt: int
    _listeners: tuple[Callable[[str, str], object], ...]

    def now_ns(self) -> int:
        """The time that all deadlines of this storage are measured on."""
        clock = self.clock
        return time.time_ns() if clock is None else round(clock() * SECOND)

    def use_clock(self, clock: Callable[[], float] | None) -> None:
        """Take all times from `clock`. None keeps the clock there is; a second one is refused."""
        if clock is None or clock is self.clock:
            return
        if self.clock is not None:
            raise StorageMisconfigured(
                "this storage has a clock already; managers that share it share its clock"
            )
        self.clock = clock

    def __bool__(self) -> bool:
        return True  # a storage that counts its sessions with __len__ is still there when it has none

    def close(self) -> None:
        """Release what the storage holds. Using it again afterwards is allowed where it can be reopened."""

    async def aclose(self) -> None:
        self.close()

    def stats(self) -> dict[str, int]:
        """Counters since this object was made."""
        return {"corrupt": self._corrupt}

    def wall(self, moment: int) -> float:
        """A time of `now_ns` as seconds since the epoch."""
        return moment / SECOND

    # ---- for operators: see operate.py -------------------------------------------------------------------

    def scan(self) -> Iterator[Summary]:
        """A summary of every live session, in no order. One that comes or goes meanwhile may be left out."""
        raise NotSupported(f"{type(self).__name__} cannot list its sessions")

    def summary(self, session_id: str) -> Summary | None:
        """Of one live session, by its id, its locator or the name of an index. None: there is none.

        Storages that cannot tell raise NotSupported.
        """
        raise NotSupported(f"{type(self).__name__} cannot describe a session")

    def sweep(self, budget_s: float | None = None) -> int:
        """Remove what has expired, for about `budget_s` seconds (None: all of it). How much was removed."""
        raise NotSupported(f"{type(self).__name__} has nothing to sweep: what has expired is gone by itself")

    def examine(self) -> Iterator[Finding]:
        """Look at the place where sessions are kept: is it safe, fast and large enough? Changes no session."""
        yield from ()

    def vitals(self) -> dict[str, float]:
        """What the medium says of itself, for a live view. Names that end in "_total" only ever grow."""
        return {}

    # ---- what sessions are called ----------------------------------------------------------------------

    def locator(self, session_id: str) -> str:
        """What the user index calls this session: a name that the record protocol takes in place of the id.

        A storage that keeps no ids but their `ids.storage_key` returns `ids.locator(session_id)`; storage_key()
        takes that in place of the id. The locator of a locator is the same.
        """
        return session_id

    def fingerprint(self, session_id: str) -> str:
        """What logs and events call this session; also takes a locator."""
        return ids.fingerprint(self.locator(session_id))

    def listen(self, listener: Callable[[str, str], object]) -> None:
        """Call `listener("expired" or "corrupt", fingerprint)` for what this storage finds by itself."""
        self._listeners += (listener,)

    def _tell(self, kind: str, fingerprint: str) -> None:
        for listener in self._listeners:
            listener(kind, fingerprint)

    # ---- the record protocol -------------------------------------------------------------------------
    # `session_id` is an id, a locator, or the name of a user's index (see users.py): the last two hold a
    # character that ids never do, so no client can present them.

    def load_record(self, session_id: str, ttl: int) -> Record | None:
        """The live record, or None. Its idle time begins anew, unless that was noted a moment ago."""
        now = self.now_ns()
        found = self._find(session_id, now, ttl)
        if found is None or not self._begin_anew(*found, now, ttl):
            return None
        return found[1]

    def peek_record(self, session_id: str, ttl: int) -> Record | None:
        """The live record, or None, without beginning its idle time anew where the storage can tell the two apart."""
        if self._backing is None:
            return self.load_record(session_id, ttl)
        found = self._find(session_id, self.now_ns(), ttl)
        return None if found is None else found[1]

    def touch_record(self, session_id: str, record: Record, ttl: int) -> bool:
        """Begin the idle time anew. False: there is no such record; touching never makes one."""
        found = self.load_record(session_id, ttl)
        return found is not None and found.birth == record.birth

    def create_record(self, session_id: str, record: Record, ttl: int) -> bool:
        """Store a new session. False, and nothing stored, if the id is in use."""
        now = self.now_ns()
        with self._stripes.hold(session_id):
            if self._fetch(session_id, now, ttl) is not None:
                return False
            self._store(session_id, record, None, now, ttl)
            return True

    def commit_record(self, session_id: str, base: Record, delta: Delta, ttl: int) -> Record | None:
        """Apply changes to what is stored now; None if that leaves no data and the record is deleted.

        `delta.apply` is the merge: a storage that writes single keys asks `delta.against(current)` for them.
        Raises SessionGone, and stores nothing, unless the session that was loaded (`base`) still lives.
        """
        now = self.now_ns()
        while (found := self._find(session_id, now, ttl)) is not None:
            target = found[0]
            with self._stripes.hold(target):
                current = self._fetch(target, now, ttl)
                if current is None or current.birth != base.birth:
                    break
                if _alias_of(current) is not None:  # rotated since we looked
                    continue
                merged = delta.apply(current, now, current.cap)
                if merged is None:
                    self._drop(target, current)
                else:
                    self._store(target, merged, current, now, ttl)
                return merged
        raise SessionGone

    def delete_record(self, session_id: str) -> bool:
        """Destroy the session, also through an old id in its grace time. False: there was none."""
        now, ttl = self.now_ns(), round(self.ttl * SECOND)
        aliases: list[tuple[str, Record]] = []
        found, target = False, session_id
        for _ in range(HOPS):  # step by step under the lock: a rotation may be under way
            with self._stripes.hold(target):
                current = self._fetch(target, now, ttl)
                if current is None or (aliases and current.birth != aliases[0][1].birth):
                    break
                alias = _alias_of(current)
                if alias is None:
                    self._drop(target, current)
                    found = True
                    break
                aliases.append((target, current))
                target = alias
        for name, sign in aliases:
            with self._stripes.hold(name):
                self._drop(name, sign)
        return found

    def rename_record(self, old_id: str, new_id: str, base: Record, ttl: int, grace: int) -> Record | None:
        """Rotate: move the record to `new_id`. None: the session that was loaded (`base`) lives no more.

        grace: ns for which the old id leads to the new record; 0 = it is dead at once.
        """
        now = self.now_ns()
        while (found := self._find(old_id, now, ttl)) is not None:
            target = found[0]
            with self._stripes.hold(target, new_id):
                current = self._fetch(target, now, ttl)
                if current is None or current.birth != base.birth:
                    break
                if _alias_of(current) is not None:
                    continue
                if self._fetch(new_id, now, ttl) is not None:
                    raise StorageUnavailable("the fresh id is in use already; check the id function")
                self._store(new_id, current, None, now, ttl)
                if grace > 0:
                    alias = Record.build(
                        {ALIAS: new_id}, now, min(now + grace, current.cap), 0, current.birth
                    )
                    self._store(target, alias, current, now, grace)
                else:
                    self._drop(target, current)
                return current
        return None

    def is_current(self, session_id: str) -> bool:
        """Whether a live session has this very id. False for a dead one, and for one that was rotated away and
        leads on for its grace time: adapters ask before they hand an id out once more.

        A storage of the record protocol that keeps old ids for a grace time overrides this; others need not.
        """
        if self._backing is None:
            return self.peek_record(session_id, round(self.ttl * SECOND)) is not None
        record = self._fetch(session_id, self.now_ns(), round(self.ttl * SECOND))
        return record is not None and _alias_of(record) is None

    # ---- the same for event loops; override these too where the work would block one ------------------

    async def aload_record(self, session_id: str, ttl: int) -> Record | None:
        return self.load_record(session_id, ttl)

    async def apeek_record(self, session_id: str, ttl: int) -> Record | None:
        return self.peek_record(session_id, ttl)

    async def atouch_record(self, session_id: str, record: Record, ttl: int) -> bool:
        return self.touch_record(session_id, record, ttl)

    async def acreate_record(self, session_id: str, record: Record, ttl: int) -> bool:
        return self.create_record(session_id, record, ttl)

    async def acommit_record(self, session_id: str, base: Record, delta: Delta, ttl: int) -> Record | None:
        return self.commit_record(session_id, base, delta, ttl)

    async def adelete_record(self, session_id: str) -> bool:
        return self.delete_record(session_id)

    async def arename_record(
        self, old_id: str, new_id: str, base: Record, ttl: int, grace: int
    ) -> Record | None:
        return self.rename_record(old_id, new_id, base, ttl, grace)

    async def ais_current(self, session_id: str) -> bool:
        if self._backing is None and type(self).is_current is Storage.is_current:
            return await self.aload_record(session_id, round(self.ttl * SECOND)) is not None
        return self.is_current(session_id)

    # ---- whose sessions they are: see users.py -----------------------------------------------------------

    def note_user(self, user: str, session_id: str, ttl: int) -> None:
        """Add a session to the user's index. `ttl`: the session's, in ns."""
        users.run(self, users.note(self, user, session_id, ttl))

    def user_sessions(self, user: str) -> list[tuple[str, Record]]:
        """(locator, record) of the user's live sessions. One that is being rotated may be there twice."""
        return users.run(self, users.find(self, user))

    async def anote_user(self, user: str, session_id: str, ttl: int) -> None:
        await users.arun(self, users.note(self, user, session_id, ttl))

    async def auser_sessions(self, user: str) -> list[tuple[str, Record]]:
        return await users.arun(self, users.find(self, user))

    def renew_index(self, record: Record, ttl: int) -> None:
        """To be called after noting the use of a session, outside of locks: its user's index must not end before it.

        `ttl`: the session's, in ns. A storage of the record protocol that keeps indexes of its own need not.
        """
        user = record.get(users.USER_KEY)
        if isinstance(user, str):
            self.load_record(users.index_name(user), users.index_life(ttl))

    # ---- GoFrame's names, for use without a Session ----------------------------------------------------

    def new(self, ttl: float) -> str:
        """A fresh id. Nothing is stored."""
        return ids.new_id()

    def get(self, session_id: str, key: str, default: Any = None) -> Any:
        record = self.load_record(session_id, round(self.ttl * SECOND))
        return default if record is None else record.get(key, default)

    def get_map(self, session_id: str) -> dict[str, Any]:
        """The session's data; empty if there is none."""
        record = self.load_record(session_id, round(self.ttl * SECOND))
        return {} if record is None else record.to_dict()

    def get_size(self, session_id: str) -> int:
        """Number of keys; 0 if there is no such session."""
        record = self.load_record(session_id, round(self.ttl * SECOND))
        return 0 if record is None else len(record)

    def set(self, session_id: str, key: str, value: Any, ttl: float) -> None:
        self.set_map(session_id, {key: value}, ttl)

    def set_map(self, session_id: str, mapping: Mapping[str, Any], ttl: float) -> None:
        """Set keys, in a new session if there is none."""
        self._change(session_id, Delta(mapping), ttl)

    def remove(self, session_id: str, *keys: str) -> None:
        self._change(session_id, Delta(removed=keys), self.ttl)

    def remove_all(self, session_id: str) -> bool:
        """Destroy the session. False: there was none."""
        return self.delete_record(session_id)

    def get_session(self, session_id: str, ttl: float) -> Record | None:
        return self.load_record(session_id, round(ttl * SECOND))

    def set_session(self, session_id: str, record: Record, ttl: float) -> None:
        """Store these data in place of whatever is stored."""
        replace = Delta(record.to_dict(), cleared=True, ttl=record.ttl)
        self._change(session_id, replace, ttl, first=record)

    def update_ttl(self, session_id: str, ttl: float) -> bool:
        """Begin the idle time anew. False: there is no such session."""
        return self.load_record(session_id, round(ttl * SECOND)) is not None

    def _change(self, session_id: str, delta: Delta, ttl: float, first: Record | None = None) -> None:
        """Apply changes to the session there is, or to a new one; look again if somebody comes between."""
        idle = round(ttl * SECOND)
        for _ in range(HOPS):
            record = self.load_record(session_id, idle)
            if record is None:
                made = first or delta.apply(None, self.now_ns(), Record.NEVER)
                if made is None or self.create_record(session_id, made, idle):
                    return
                continue
            try:
                self.commit_record(session_id, record, delta, idle)
            except SessionGone:
                continue
            return
        raise SessionGone

    # ---- the record protocol's steps, for storages that are whole or keyed -------------------------------

    def _steps(self, session_id: str, now: int, ttl: int) -> Iterator[tuple[str, Record]]:
        """(id, record) of every step from this id over aliases to the record itself, as far as they live."""
        birth = 0
        for _ in range(HOPS):
            record = self._fetch(session_id, now, ttl)
            if record is None or (birth and record.birth != birth):
                return
            yield session_id, record
            alias = _alias_of(record)
            if alias is None:
                return
            session_id, birth = alias, record.birth

    def _find(self, session_id: str, now: int, ttl: int) -> tuple[str, Record] | None:
        """The record that this id leads to, and the id it is stored under."""
        for step in self._steps(session_id, now, ttl):
            if _alias_of(step[1]) is None:
                return step
        return None

    def _fetch(self, session_id: str, now: int, ttl: int) -> Record | None:
        try:
            record = self._backing.fetch(self, session_id, ttl)  # type: ignore[union-attr]
        except CorruptRecord as error:
            self._note_corrupt(session_id, str(error))
            return None
        except SessionError:
            raise
        except Exception as error:
            raise _unavailable(self, error) from error
        return None if record is None or now >= record.cap else record

    def _store(self, session_id: str, record: Record, before: Record | None, now: int, ttl: int) -> None:
        seconds = max(min(record.ttl or ttl, record.cap - now), 1) / SECOND
        try:
            self._backing.store(self, session_id, record, before, seconds)  # type: ignore[union-attr]
        except SessionError:
            raise
        except Exception as error:
            raise _unavailable(self, error) from error
        self._note_touch(session_id, now)

    def _drop(self, session_id: str, record: Record) -> None:
        try:
            self._backing.drop(self, session_id, record)  # type: ignore[union-attr]
        except SessionError:
            raise
        except Exception as error:
            raise _unavailable(self, error) from error
        self._touched.pop(session_id, None)

    def _begin_anew(self, session_id: str, record: Record, now: int, ttl: int) -> bool:
        """False: the storage says that the session is gone."""
        if "update_ttl" not in self.overrides:
            return True
        idle = record.ttl or ttl
        last = self._touched.get(session_id)
        if last is not None and 0 <= now - last < min(60 * SECOND, idle // 20):
            return True
        try:
            known = self.update_ttl(session_id, min(idle, record.cap - now) / SECOND)
        except SessionError:
            raise
        except Exception as error:
            raise _unavailable(self, error) from error
        self._note_touch(session_id, now)
        self.renew_index(record, idle)
        return known is not False  # None: a method that does not tell

    def _note_touch(self, session_id: str, now: int) -> None:
        if len(self._touched) >= 10_000:
            self._touched.clear()
        self._touched[session_id] = now

    def _note_corrupt(self, session_id: str, reason: str) -> None:
        self._corrupt += 1
        fingerprint = self.fingerprint(session_id)
        if self._corrupt == 1:
            import logging  # here: a fifth of the package's import, and seldom needed

            logging.getLogger("cysession.storage").warning(
                "session %s: %s; treated as missing (counted in stats(), not logged again)",
                fingerprint,
                reason,
            )
        self._tell("corrupt", fingerprint)


# ---- the two simpler kinds of storage ------------------------------------------------------------------

ALIAS = "\0cysession.alias"  # the only key of a record that stands for another: the id that it moved to
META = "\0cysession.meta"  # keyed storages: birth, created, cap and ttl, beside the session's own keys


def _alias_of(record: Record) -> str | None:
    target = record.get(ALIAS) if len(record) == 1 else None
    return target if isinstance(target, str) else None


def _choose(cls: type[Storage]) -> tuple[type[_Whole] | type[_Keyed] | None, str]:
    """How this class stores, or what it lacks."""
    if cls.load_record is not Storage.load_record:
        return None, ""
    own = cls.overrides
    if own >= {"get_session", "set_session", "remove_all"}:
        return _Whole, ""
    if own >= {"get_map", "remove"} and own & {"set_map", "set"}:
        return _Keyed, ""
    if own & {"get_session", "set_session"}:
        lacking = {"get_session", "set_session", "remove_all"} - own
    elif own & {"get_map", "set_map", "get", "set"}:
        lacking = {"get_map", "set_map", "remove"} - own
    else:
        return None, "get_session, set_session, update_ttl and remove_all"
    return None, " and ".join(sorted(lacking))


class _Whole:
    """A session is one value, stored and loaded as a whole."""

    @staticmethod
    def fetch(storage: Storage, session_id: str, ttl: int) -> Record | None:
        record: object = storage.get_session(session_id, ttl / SECOND)
        if record is None or isinstance(record, Record):
            return record
        what = type(record).__name__
        raise TypeError(f"get_session() must return None or a Record, as codec.decode() does, not {what}")

    @staticmethod
    def store(storage: Storage, session_id: str, record: Record, _: Record | None, ttl: float) -> None:
        storage.set_session(session_id, record, ttl)

    @staticmethod
    def drop(storage: Storage, session_id: str, _: Record) -> None:
        storage.remove_all(session_id)


class _Keyed:
    """Every key is stored for itself; what belongs to the session as a whole stands under META."""

    @staticmethod
    def fetch(storage: Storage, session_id: str, ttl: int) -> Record | None:
        data = dict(storage.get_map(session_id))
        if not data:
            return None
        birth, created, cap, own_ttl = 1, 0, Record.NEVER, 0  # keys that were set past any session
        if META in data:
            try:
                birth, created, cap, own_ttl = (int(part, 16) for part in data.pop(META).split())
            except (ValueError, AttributeError):
                raise CorruptRecord("unreadable data about the session") from None
        return Record.build(data, created, cap, own_ttl, birth)

    @staticmethod
    def store(storage: Storage, session_id: str, record: Record, before: Record | None, ttl: float) -> None:
        data = record.to_dict()
        gone: list[str] = []
        if before is not None:
            gone = [key for key in before if key not in data]
            stored = dict(before.raw_items())
            from cysession.codec import pack  # here: a program with its sessions in memory needs no codec

            data = {key: v for key, v in data.items() if key not in stored or pack(v) != pack(stored[key])}
        data[META] = f"{record.birth:x} {record.created:x} {record.cap:x} {record.ttl:x}"
        if "set_map" in storage.overrides:
            storage.set_map(session_id, data, ttl)
        else:
            for key, value in data.items():
                storage.set(session_id, key, value, ttl)
        if gone:
            storage.remove(session_id, *gone)

    @staticmethod
    def drop(storage: Storage, session_id: str, record: Record) -> None:
        if "remove_all" in storage.overrides:
            storage.remove_all(session_id)
        else:
            storage.remove(session_id, *record, META)


def _unavailable(storage: Storage, error: Exception) -> StorageUnavailable:
    return StorageUnavailable(f"{type(storage).__name__} failed with {type(error).__name__}; see its cause")


# ---- locks ---------------------------------------------------------------------------------------------


class Stripes:
    """A fixed number of locks shared by all ids. A forked child gets fresh ones."""

    COUNT = 64

    def __init__(self) -> None:
        self.reset()
        _forked.add(self)

    def reset(self) -> None:
        self._locks = [threading.Lock() for _ in range(self.COUNT)]

    @contextmanager
    def hold(self, *names: str) -> Iterator[None]:
        """Own the stripes of these names, taken in one order so that no two holders wait on each other."""
        locks = [self._locks[n] for n in sorted({hash(name) % self.COUNT for name in names})]
        for lock in locks:
            lock.acquire()
        try:
            yield
        finally:
            for lock in locks:
                lock.release()


_forked: weakref.WeakSet[Stripes] = weakref.WeakSet()


def _after_fork() -> None:
    for stripes in list(_forked):
        stripes.reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
