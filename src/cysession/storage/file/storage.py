"""FileStorage: the record protocol over files.

Reading takes no lock. Whatever writes holds the lock of the record's stripe, looks again at what is
stored, decides on that, and replaces or removes the file in one step: so create means "must not exist",
commit means "must exist", and a destroyed session stays destroyed whatever other threads and processes are
in the middle of.
"""

import asyncio
import contextlib
import os
import random
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

from cysession import codec, ids
from cysession._core import Delta, Numbers, Place, Record, Stored, glance, stamp
from cysession.errors import SessionGone, StorageMisconfigured, StorageUnavailable
from cysession.storage import users
from cysession.storage.base import HOPS, SECOND, Storage
from cysession.storage.operate import Finding, Summary

from . import survey
from .directory import Directory, default_path, explain
from .locks import Locks
from .records import TICK, Files
from .seal import Sealer
from .sweeper import Sweeper

__all__ = ["FileStorage"]

T = TypeVar("T")
_births = Numbers(random.randrange(1000))  # tells a file from one that was there before it


class _MayWait(Exception):
    """Raised before something that may wait, for a flush or for another writer, where that must not be."""


class FileStorage(Storage):
    """Sessions in files of a private directory; any number of processes of one host may share it.

    Args:
        path: the directory. Default: this user's own, $XDG_STATE_HOME/cysession/sessions or
            ~/.local/state/cysession/sessions. It is made if missing, with mode 0700, and refused if it is
            a link, belongs to another user or can be written by one.
        durability: what a commit has on the disk when it returns. "none": nothing yet; the kernel writes
            it soon, and a power cut may lose it or bring back the state before. "data" (default): the
            record. "full": its directory entry too, so a power cut neither loses a new session nor revives
            a destroyed one.
        keys: encrypt records at rest (needs cysession[crypto]): secrets of at least 32 random bytes. The
            first encrypts, all decrypt. Records that are not encrypted are then as good as missing.
        realm: sessions of one realm are unknown in another, in the same directory.
        sweep_every: seconds between two rounds of the clean-up thread; 0: none, call sweep() yourself.
        orphan_age: seconds after which the temporary file of a killed writer is removed.
        lock_timeout: seconds to wait for another writer of the same session before StorageUnavailable.
        cache: how many decoded records to keep in this process, each confirmed by one stat when it is
        used; 0: none.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        durability: str = "data",
        keys: Sequence[bytes | str] = (),
        realm: str = "",
        sweep_every: float = 300.0,
        orphan_age: float = 3600.0,
        lock_timeout: float = 10.0,
        cache: int = 16384,
    ) -> None:
        if durability not in ("none", "data", "full"):
            raise StorageMisconfigured(f'durability is "none", "data" or "full", not {durability!r}')
        root = default_path() if path is None else os.path.abspath(os.path.expanduser(os.fspath(path)))
        self._realm = realm
        self._durability = durability
        self._full = durability == "full"
        self._flushes = durability != "none"
        self._cache_limit = int(cache)
        self._places: dict[str, Place] = {}
        self._longest_ttl = 0
        self._sweeping = False  # whether the clean-up has been started
        sealer = Sealer(keys) if keys else None
        self._sealed = sealer is not None
        self._directory = Directory(root, sync=self._full)
        self._locks = Locks(self._directory, float(lock_timeout))
        self._files = Files(
            self._directory,
            sync_file=self._flushes,
            sync_dir=self._full,
            sealer=sealer,
            tell_corrupt=self._tell_corrupt,
        )
        self._sweeper = Sweeper(
            self._directory,
            self._locks,
            self._now_and_ttl,
            self._tell_expired,
            every=float(sweep_every),
            orphan_age=float(orphan_age),
        )
        _storages.add(self)

    def __repr__(self) -> str:
        return f"<FileStorage {self._directory.path}>"

    # ---- what sessions are called --------------------------------------------------------------------------

    def locator(self, session_id: str) -> str:
        return ids.locator(session_id, self._realm)

    def fingerprint(self, session_id: str) -> str:
        """Of the storage key, which is all that the clean-up knows of a session."""
        return ids.fingerprint(ids.storage_key(session_id, self._realm))

    def _tell_corrupt(self, place: Place) -> None:
        self._tell("corrupt", ids.fingerprint(place.key.decode("ascii")))

    def _tell_expired(self, place: Place) -> None:
        self._tell("expired", ids.fingerprint(place.key.decode("ascii")))

    # ---- the record protocol ------------------------------------------------------------------------------

    def load_record(self, session_id: str, ttl: int) -> Record | None:
        """The live record, or None. The file's time notes its use, at most every min(60 s, ttl / 20)."""
        # The common case in one piece: a record decoded before, unchanged since, and used a moment ago.
        record = glance(self._places, session_id, self._directory.fd, self.clock, ttl)
        if record is not None:
            return record
        return self._run(self._load, session_id, ttl)

    def _load(self, session_id: str, ttl: int, may_wait: bool = True) -> Record | None:
        place = self._places.get(session_id) or self._place(session_id)
        aliased, birth = False, 0
        for _ in range(HOPS):
            stored = self._files.look(place)
            now = self.now_ns()
            if (
                stored is None
                or not _alive(place, stored, now, ttl)
                or (birth and stored.record.birth != birth)
            ):
                break
            if stored.alias is None:
                if stored.needs_longer(ttl) and self._lengthen(place, ttl, may_wait):
                    continue
                stored = self._used(place, stored, now, ttl)
                if stored is None:
                    break
                if not aliased:
                    self._remember(session_id, place, stored)
                return stored.record
            aliased, birth, place = True, stored.record.birth, Place(stored.alias)
        self._places.pop(session_id, None)
        if self._directory.recover():
            self._places.clear()
            return self._load(session_id, ttl, may_wait)
        return None

    def _lengthen(self, place: Place, ttl: int, may_wait: bool) -> bool:
        """Write into the file that it is in use with a longer idle ttl than it says. False: it stays as it is.

        Nothing else tells the clean-up of another process, which may know only shorter ones. Happens once for
        every session that is used by managers of different ttl. If it cannot be written, the read goes on without.
        """
        if self._flushes and not may_wait:
            raise _MayWait
        with contextlib.suppress(OSError, StorageUnavailable):
            self._own(place, may_wait)
            try:
                stored = self._files.look(place)
                now = self.now_ns()
                if stored is None or stored.alias is not None or not _alive(place, stored, now, ttl):
                    return True  # not what it was: look again
                if stored.needs_longer(ttl):
                    self._files.write(place, stored.record, ttl, stamp(now, stored.mtime))
            finally:
                self._locks.release(place.stripe)
            self.renew_index(stored.record, ttl)
            return True
        return False

    def _used(self, place: Place, stored: Stored, now: int, ttl: int) -> Stored | None:
        """After noting the use if the last one noted is long ago. None: the record vanished meanwhile."""
        idle = stored.record.ttl or ttl or stored.idle
        if 0 <= now - stored.last_use < min(idle // 20, 60 * SECOND):
            return stored
        mtime = now - now % TICK + stored.mtime % TICK  # the same data, so the same count of writes
        if not self._files.touch(place, mtime):
            return None
        self.renew_index(stored.record, idle)
        return stored.used_at(mtime)

    def peek_record(self, session_id: str, ttl: int) -> Record | None:
        return self._run(self._peek, session_id, ttl)

    def _peek(self, session_id: str, ttl: int) -> Record | None:
        place, birth = self._place(session_id), 0
        for _ in range(HOPS):
            stored = self._files.look(place)
            if stored is None or not _alive(place, stored, self.now_ns(), ttl):
                return None
            if birth and stored.record.birth != birth:
                return None
            if stored.alias is None:
                return stored.record
            place, birth = Place(stored.alias), stored.record.birth
        return None

    def is_current(self, session_id: str) -> bool:
        return self._run(self._is_current, session_id)

    def _is_current(self, session_id: str) -> bool:
        stored = self._files.look(self._place(session_id))
        ttl = round(self.ttl * SECOND)
        return stored is not None and stored.alias is None and stored.alive(self.now_ns(), ttl)

    def touch_record(self, session_id: str, record: Record, ttl: int) -> bool:
        found = self.load_record(session_id, ttl)
        return found is not None and found.birth == record.birth

    def create_record(self, session_id: str, record: Record, ttl: int) -> bool:
        return self._run(self._create, session_id, record, ttl)

    def _create(self, session_id: str, record: Record, ttl: int, may_wait: bool = True) -> bool:
        place = self._place(session_id)
        self._note_writer(ttl)
        self._own(place, may_wait)
        try:
            now = self.now_ns()
            stored = self._files.look(place)
            if stored is not None and _alive(place, stored, now, ttl):
                return False
            before = _births.take() if stored is None else stored.mtime
            stored = self._files.write(place, record, ttl, stamp(now, before))
        finally:
            self._locks.release(place.stripe)
        self._remember(session_id, place, stored)
        return True

    def _own(self, place: Place, may_wait: bool) -> None:
        """Own the lock of the place's stripe; _MayWait if it is not free and waiting is not allowed."""
        if not self._locks.acquire(place.stripe, wait=may_wait):
            raise _MayWait

    def commit_record(self, session_id: str, base: Record, delta: Delta, ttl: int) -> Record | None:
        try:
            return self._commit(session_id, base, delta, ttl)
        except OSError as failure:
            first = failure
        return self._again(first, self._commit, session_id, base, delta, ttl)

    def _commit(
        self, session_id: str, base: Record, delta: Delta, ttl: int, may_wait: bool = True
    ) -> Record | None:
        place = self._places.get(session_id) or self._place(session_id)
        if ttl > self._longest_ttl or not self._sweeping:
            self._note_writer(ttl)
        for hop in range(HOPS):
            if not self._locks.acquire(place.stripe, wait=may_wait):
                raise _MayWait
            try:
                usual = self._files.exchange(place, base, delta, self.clock, ttl)
                if usual is not None:
                    return usual
                stored = self._files.look(place)
                now = self.now_ns()
                if stored is None or stored.record.birth != base.birth or not _alive(place, stored, now, ttl):
                    break
                if stored.alias is None:
                    merged = delta.apply(stored.record, now, stored.record.cap)
                    if merged is None:
                        self._files.remove(place)
                        return None
                    idle = max(ttl, stored.idle)
                    written = self._files.write(place, merged, idle, stamp(now, stored.mtime))
                    if hop == 0:
                        self._remember(session_id, place, written)
                    return merged
            finally:
                self._locks.release(place.stripe)
            place = Place(stored.alias)
        self._places.pop(session_id, None)
        raise SessionGone

    def delete_record(self, session_id: str) -> bool:
        return self._run(self._delete, session_id)

    def _delete(self, session_id: str) -> bool:
        """The record first, then the aliases that led to it: a kill in between leaves nothing alive."""
        place, aliases, birth, found = self._place(session_id), [], 0, False
        for _ in range(HOPS):  # step by step under the lock: a rotation may be under way
            self._locks.acquire(place.stripe)
            try:
                stored = self._files.look(place)
                alive = stored is not None and stored.alive(self.now_ns(), 0)
                if stored is not None and birth and stored.record.birth != birth:
                    break  # the alias leads to a session that it was not made for
                if stored is None or stored.alias is None or not alive:
                    self._files.remove(place)
                    found = alive
                    break
            finally:
                self._locks.release(place.stripe)
            aliases.append(place)
            place, birth = Place(stored.alias), stored.record.birth
        for place in reversed(aliases):
            self._locks.acquire(place.stripe)
            try:
                self._files.remove(place)
            finally:
                self._locks.release(place.stripe)
        self._places.pop(session_id, None)
        return found

    def rename_record(self, old_id: str, new_id: str, base: Record, ttl: int, grace: int) -> Record | None:
        return self._run(self._rename, old_id, new_id, base, ttl, grace)

    def _rename(self, old_id: str, new_id: str, base: Record, ttl: int, grace: int) -> Record | None:
        """The new record first, then the end of the old id: a kill in between leaves all as it was."""
        place, target = self._place(old_id), self._place(new_id)
        self._note_writer(ttl)
        for _ in range(HOPS):
            stripes = sorted({place.stripe, target.stripe})
            self._locks.acquire_all(stripes)
            try:
                stored = self._files.look(place)
                now = self.now_ns()
                if stored is None or stored.record.birth != base.birth or not _alive(place, stored, now, ttl):
                    break
                if stored.alias is None:
                    self._move(place, target, stored, now, ttl, grace)
                    self._places.pop(old_id, None)
                    return stored.record
            finally:
                self._locks.release_all(stripes)
            place = Place(stored.alias)
        self._places.pop(old_id, None)
        return None

    def _move(self, place: Place, target: Place, stored: Stored, now: int, ttl: int, grace: int) -> None:
        record = stored.record
        there = self._files.look(target)
        if there is not None and there.alive(now, ttl):
            raise StorageUnavailable("the fresh id is in use already; check the id function")
        mtime = stamp(now, stored.mtime)
        self._files.write(target, record, max(ttl, stored.idle), mtime)
        try:
            if grace > 0:
                end = Record.build({}, now, min(now + grace, record.cap), 0, record.birth)
                self._files.write_alias(place, target, end, mtime)
            else:
                self._files.remove(place)
        except BaseException:
            # Take the new record back if the old one is still there; it is not if only a flush has failed.
            with contextlib.suppress(OSError):
                still = self._files.look(place)
                if still is not None and still.alias is None:
                    self._files.remove(target)
            raise

    # ---- the same for event loops: what may wait, for the disk or for another writer, goes to a thread -------

    async def aload_record(self, session_id: str, ttl: int) -> Record | None:
        record = glance(self._places, session_id, self._directory.fd, self.clock, ttl)
        if record is not None:
            return record
        with contextlib.suppress(_MayWait):
            return self._run(self._load, session_id, ttl, False)
        return await asyncio.to_thread(self.load_record, session_id, ttl)

    async def atouch_record(self, session_id: str, record: Record, ttl: int) -> bool:
        found = await self.aload_record(session_id, ttl)
        return found is not None and found.birth == record.birth

    async def acreate_record(self, session_id: str, record: Record, ttl: int) -> bool:
        if not self._flushes:
            with contextlib.suppress(_MayWait):
                return self._run(self._create, session_id, record, ttl, False)
        return await asyncio.to_thread(self.create_record, session_id, record, ttl)

    async def acommit_record(self, session_id: str, base: Record, delta: Delta, ttl: int) -> Record | None:
        if not self._flushes:
            with contextlib.suppress(_MayWait):
                return self._run(self._commit, session_id, base, delta, ttl, False)
        return await asyncio.to_thread(self.commit_record, session_id, base, delta, ttl)

    async def adelete_record(self, session_id: str) -> bool:
        return await asyncio.to_thread(self.delete_record, session_id)

    async def arename_record(
        self, old_id: str, new_id: str, base: Record, ttl: int, grace: int
    ) -> Record | None:
        return await asyncio.to_thread(self.rename_record, old_id, new_id, base, ttl, grace)

    # ---- for operators ------------------------------------------------------------------------------------

    def scan(self) -> Iterator[Summary]:
        """Reads every record once, in the order of the directory."""
        walk = self._run(self._sweeper.places)
        while (place := self._run(next, walk, None)) is not None:
            summary = self._run(survey.summarize, self._directory, place, self.now_ns())
            if summary is not None:
                yield summary

    def summary(self, session_id: str) -> Summary | None:
        place = self._place(session_id)
        index = users.is_index(session_id)
        return self._run(partial(survey.summarize, index=index), self._directory, place, self.now_ns())

    def examine(self) -> Iterator[Finding]:
        found = partial(survey.examine, durability=self._durability, sealed=self._sealed)
        yield from self._run(lambda: list(found(self._directory)))

    def vitals(self) -> dict[str, float]:
        """The room that is left: free_bytes of bytes and free_inodes of inodes."""
        return self._run(survey.space_of, self._directory)

    # ---- housekeeping -------------------------------------------------------------------------------------

    def sweep(self, budget_s: float | None = None) -> int:
        """Remove what has expired or was left behind, for about `budget_s` seconds; how many files went.

        The next call goes on where this one stopped. 0 also while another process does it.
        """
        return self._run(self._sweeper.sweep, budget_s)

    def __len__(self) -> int:
        """How many sessions live. Reads the head of every record: for operators, not for requests."""
        return self._run(self._sweeper.count_live)

    def stats(self) -> dict[str, int]:
        """Counts since this object was made.

        corrupt: reads that met a torn, damaged or foreign record. expired, torn, orphans: files that the
        clean-up removed; signs: those of ids that were rotated, and indexes of users without sessions. passes:
        rounds of the clean-up. cached: records kept in memory now.
        """
        return {"corrupt": self._files.damage.count, "cached": len(self._places), **self._sweeper.counts}

    def close(self) -> None:
        """Stop the clean-up and close the files. Any use after this raises StorageUnavailable."""
        self._sweeper.stop()
        self._places.clear()
        self._locks.close()
        self._directory.close()

    def _run(self, call: Callable[..., T], *args: Any) -> T:
        """Call, once more if a directory was removed under it. OSErrors become ours."""
        try:
            return call(*args)
        except OSError as failure:
            first = failure
        return self._again(first, call, *args)

    def _again(self, failure: OSError, call: Callable[..., T], *args: Any) -> T:
        if isinstance(failure, FileNotFoundError):
            try:
                self._directory.recover()
                self._places.clear()
                return call(*args)
            except OSError as second:
                failure = second
        raise explain(failure)  # outside of the handler: the OSError's text holds the path of a record

    def _place(self, session_id: str) -> Place:
        flags = codec.FLAG_INDEX if users.is_index(session_id) else 0
        return Place(ids.storage_key(session_id, self._realm), flags)

    def _remember(self, session_id: str, place: Place, stored: Stored) -> None:
        if not self._cache_limit or stored.size > Place.KEPT or not stored.exact:
            return
        place.seen = stored
        self._places[session_id] = place
        if len(self._places) > self._cache_limit:
            for name in list(self._places)[: self._cache_limit // 4 + 1]:  # a copy: other threads go on
                self._places.pop(name, None)

    def _note_writer(self, ttl: int) -> None:
        if ttl > self._longest_ttl:
            self._longest_ttl = ttl
        if not self._sweeping:
            self._sweeping = True
            self._sweeper.start()

    def _now_and_ttl(self) -> tuple[int, int]:
        return self.now_ns(), self._longest_ttl

    def _begin_in_child(self) -> None:
        """After a fork: drop what other threads held and what must not be shared with the parent."""
        self._directory.forget()
        self._locks.forget()
        self._files.forget()
        self._sweeper.forget()
        self._sweeping = False


def _alive(place: Place, stored: Stored, now: int, ttl: int) -> bool:
    """Whether it lives for whoever gives its sessions `ttl`. The index of a user lives as long as it says: some of
    the user's sessions may have a longer ttl of their own.
    """
    return stored.alive(now, max(ttl, stored.idle) if place.flags & codec.FLAG_INDEX else ttl)


_storages: "weakref.WeakSet[FileStorage]" = weakref.WeakSet()


def _begin_in_child() -> None:
    for storage in list(_storages):
        storage._begin_in_child()


os.register_at_fork(after_in_child=_begin_in_child)
