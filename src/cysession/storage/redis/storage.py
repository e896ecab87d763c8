"""RedisStorage: the record protocol over Redis, for many processes on many hosts.

Every step is one command or script on one key, and each that writes says what it expects to find: so create means
"must not exist", commit means "as I read it", and a destroyed session stays destroyed whatever other nodes are in
the middle of. A commit is planned on what this process last saw of the session and takes one round trip if that is
still so; if not, it is answered with what is there now, and planned again.

Steps are written once, as generators that ask for requests and are sent the replies: `_run` makes the calls on the
calling thread, `_arun` awaits them on an event loop.
"""

import asyncio
import atexit
import contextlib
import logging
import os
import threading
import time
import weakref
from collections.abc import Generator, Iterable, Iterator
from typing import Any, ClassVar, Final, NamedTuple, TypeVar

from cysession import ids
from cysession._core import Delta, Record
from cysession.errors import (
    CorruptRecord,
    NotSupported,
    SessionGone,
    StorageMisconfigured,
    StorageUnavailable,
)
from cysession.storage import users
from cysession.storage.base import HOPS, SECOND, Storage
from cysession.storage.driver import Driver
from cysession.storage.operate import Finding, Summary

from . import scripts, survey
from .client import Client
from .near import Bounds
from .records import (
    FOREIGN,
    TOKEN,
    Blobs,
    Change,
    Layout,
    Place,
    Request,
    Stored,
    Tokens,
    command,
    is_alias,
    new_token,
    read_head,
    script,
)
from .touches import EVERY, MILLISECOND, Touch, Touches
from .wire import ErrorReply, NoScript, Template, WrongType

__all__ = ["RedisStorage"]

log = logging.getLogger("cysession.storage")

T = TypeVar("T")
Flow = Generator[Request | list[Request], Any, T]

Reads = dict[bytes, list["asyncio.Future[Any]"]]
"""Keys that are being read, and who else waits for them."""

AGAIN: Final = object()  # in place of a reply: whoever was to read gave up
TRIES: Final = (
    1000  # of one commit; each that fails was overtaken by one that did not, and the quick ones come in runs
)
SPARE: Final = 3600 * 1000  # ms that a key outlives its session where a clock of the manager's decides
FOREVER: Final = 100 * 365 * 86400 * 1000  # ms; a server refuses times beyond its own reckoning
AT_ONCE: Final = 256  # sessions of a user that are read in one round trip
CACHED_BYTES: Final = 65536  # of one record: what is larger is decoded again rather than kept
PTTL: Final = Template(b"PTTL", Template.KEY)
ENTRY: Final = 600  # bytes that a session in memory costs beside its data
_CONTENDED: Final = "too many others write this session at once; try again"


class Attempt(NamedTuple):
    """One try of a commit: what it would store, None for a deletion, and the request that does it."""

    token: bytes
    made: Stored | None
    request: Request


class RedisStorage(Storage):
    """Sessions in Redis or Valkey, one string each; any number of processes and hosts may share it.

    Args:
        source: a URL (redis://, rediss://, unix://, redis+sentinel://, redis+cluster://), or a client or pool of
            redis-py whose address, credentials and TLS are then used.
        prefix: what the keys of all sessions begin with; may not be empty.
        realm: sessions of one realm are unknown in another, under the same prefix.
        cache: bytes of memory for what was last seen of sessions, so that an unchanged one is not decoded again
            and a commit knows what it changes. Never used without asking the server.
        near_cache: sessions, for each event loop and node, that are loaded without asking the server as long as it
            announces every change of them; 0: none. Only awaited loads know it. See near.py.
        max_stale: seconds; how long after a log-out elsewhere a session of the near-cache may still be read, in the
            worst case. Normally it is gone at once.
        options: see Client: timeout and the like.
    """

    _layout: ClassVar[Layout] = Blobs()
    _kind: ClassVar[bytes] = b""
    _every = EVERY

    def __init__(
        self,
        source: Any = "redis://localhost:6379/0",
        *,
        prefix: str = "cysession:",
        realm: str = "",
        cache: int = 16 * 1024 * 1024,
        near_cache: int = 0,
        max_stale: float = 2.0,
        **options: Any,
    ) -> None:
        if not prefix:
            raise StorageMisconfigured("the prefix of Redis keys may not be empty: other data may be there")
        self._prefix = prefix.encode("utf-8") + self._kind
        self._realm = realm
        if near_cache < 0 or not 0.0 < max_stale < float("inf"):
            raise StorageMisconfigured(
                "near_cache is a number of sessions, max_stale a positive number of seconds"
            )
        self._near = near_cache > 0
        bounds = Bounds(near_cache, max_stale) if self._near else None
        self._client = Client(source, near=bounds, **options)
        self._cache_limit = int(cache)
        self._touches = Touches()
        self._driver = Driver("cysession-redis", self._write_touches)
        self._conflicts = 0
        self._shared_reads = 0
        self._near_hits = 0
        self._inspected = False
        self._forget()
        _storages.add(self)

    def _forget(self) -> None:
        """At the beginning, and in a forked child: what belongs to threads and loops."""
        self._places: dict[str, Place] = {}
        self._held = 0  # bytes, about
        self._lock = threading.Lock()
        self._reads: dict[asyncio.AbstractEventLoop, Reads] = {}
        self._timers: dict[asyncio.AbstractEventLoop, asyncio.TimerHandle] = {}
        self._writing: set[asyncio.Task[None]] = set()
        self._touches.forget()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._client!r}>"

    # ---- what sessions are called ------------------------------------------------------------------------

    def locator(self, session_id: str) -> str:
        return ids.locator(session_id, self._realm)

    def fingerprint(self, session_id: str) -> str:
        """Of the storage key, which is all that is known of a session found through the index."""
        return ids.fingerprint(ids.storage_key(session_id, self._realm))

    def _place(self, session_id: str) -> Place:
        return self._named(ids.storage_key(session_id, self._realm))

    def _named(self, name: str) -> Place:
        return Place(self._prefix, name, self._layout.load)

    # ---- the record protocol -----------------------------------------------------------------------------

    def load_record(self, session_id: str, ttl: int) -> Record | None:
        """The live record, or None: one round trip. Its use is noted, at most every min(60 s, ttl / 20)."""
        place = self._places.get(session_id) or self._place(session_id)
        reply = self._ask(_loading(place))
        if (stored := place.stored) is not None and reply == stored.raw:
            record, clock = stored.record, self.clock
            now = time.time_ns() if clock is None else round(clock() * SECOND)
            if 0 <= now - place.noted < _throttle(record.ttl or ttl) and now < record.cap:
                return record
        return self._run(self._load(session_id, place, reply, ttl))

    async def aload_record(self, session_id: str, ttl: int) -> Record | None:
        place = self._places.get(session_id) or self._place(session_id)
        loop = asyncio.get_running_loop()
        reads = self._reads.get(loop)
        if reads is None:
            reads = self._reads[loop] = {}
            loop.call_soon(self._reads.pop, loop, None)
        if self._near and (reply := self._client.nearby(place.key)) is not None:
            self._near_hits += 1
        elif place.key in reads:
            reply = await self._join(reads, place)
        else:
            reply = await self._read(reads, place)
        if (stored := place.stored) is not None and reply == stored.raw:
            record, clock = stored.record, self.clock
            now = time.time_ns() if clock is None else round(clock() * SECOND)
            if 0 <= now - place.noted < _throttle(record.ttl or ttl) and now < record.cap:
                return record
        return await self._arun(self._load(session_id, place, reply, ttl))

    # What is stored is read once for all tasks that ask for it in one turn of the event loop: the read is sent when
    # the turn ends, so nothing that any of them could know is newer.

    async def _read(self, reads: Reads, place: Place) -> Any:
        """Read it, and hand it to those who joined meanwhile."""
        joined = reads[place.key] = []
        try:
            if self._near:
                reply = await self._read_near(place)
            else:
                reply = await self._client.acall_packed(place.key, place.load, retry=True)
        except WrongType:
            reply = FOREIGN
        except BaseException as error:
            if reads.get(place.key) is joined:
                del reads[place.key]
            for waiter in joined:
                if not waiter.done():
                    # Cancelled is only this task: the first of the others reads.
                    waiter.set_result(error if isinstance(error, Exception) else AGAIN)
            raise
        for waiter in joined:
            if not waiter.done():
                waiter.set_result(reply)
        return reply

    async def _read_near(self, place: Place) -> Any:
        """For the near-cache. Takes note of how long the server lets it live, whoever used it last."""
        reply, left = await self._client.acall_near(place.key, place.load + PTTL(place.key))
        place.ends = self.now_ns() + left * MILLISECOND if self.clock is None and left > 0 else 0
        return reply

    async def _join(self, reads: Reads, place: Place) -> Any:
        """Wait for what another task reads."""
        while (joined := reads.get(place.key)) is not None:
            waiter = asyncio.get_running_loop().create_future()
            joined.append(waiter)
            reply = await waiter
            if isinstance(reply, Exception):
                raise type(reply)(str(reply))
            if reply is not AGAIN:
                self._shared_reads += 1
                return reply
        return await self._read(reads, place)

    def _load(self, session_id: str, place: Place, reply: Any, ttl: int) -> Flow[Record | None]:
        found = yield from self._follow(session_id, place, reply, ttl)
        if found is None:
            return None
        place, stored = found
        now = self.now_ns()
        idle = stored.record.ttl or ttl or stored.idle
        if 0 <= now - (elsewhere := place.ends - idle) < _throttle(idle):
            # A use by another process was written just now: one does for all, or near-caches were never at rest.
            place.noted = max(place.noted, elsewhere)
        if not 0 <= now - place.noted < _throttle(idle):
            place.noted = now
            touch = Touch(place, stored, now, ttl)
            if idle < 20 * EVERY * SECOND:  # could end while the touch waits
                yield from self._touch_now([touch])
            else:
                self._touches.note(touch)
                self._arrange_writing()
        return stored.record

    def _follow(
        self, session_id: str, place: Place, reply: Any, ttl: int
    ) -> Flow[tuple[Place, Stored] | None]:
        """From what was read at `place` over aliases to the live session, as it was just read."""
        birth = 0
        for hop in range(HOPS):
            stored = self._understand(place, reply)
            if (
                stored is None
                or not self._alive(place, stored, ttl)
                or (birth and stored.record.birth != birth)
            ):
                break
            if stored.alias is None:
                if hop == 0:
                    self._remember(session_id, place, stored)
                return place, stored
            birth, place = stored.record.birth, self._named(stored.alias)
            reply = yield _loading(place)
        self._let_go(session_id)
        return None

    def peek_record(self, session_id: str, ttl: int) -> Record | None:
        """The live record, or None. Notes no use."""
        return self._run(self._peek(session_id, ttl))

    async def apeek_record(self, session_id: str, ttl: int) -> Record | None:
        return await self._arun(self._peek(session_id, ttl))

    def _peek(self, session_id: str, ttl: int) -> Flow[Record | None]:
        found = yield from self._look_up(session_id, self._place(session_id), ttl)
        return None if found is None else found[1].record

    def is_current(self, session_id: str) -> bool:
        return self._run(self._is_current(session_id))

    async def ais_current(self, session_id: str) -> bool:
        return await self._arun(self._is_current(session_id))

    def _is_current(self, session_id: str) -> Flow[bool]:
        place = self._place(session_id)
        stored = self._understand(place, (yield _loading(place)))
        return stored is not None and stored.alias is None and self._alive(place, stored, self._own_ttl)

    @property
    def _own_ttl(self) -> int:
        return round(self.ttl * SECOND)

    def _look_up(self, session_id: str, place: Place, ttl: int) -> Flow[tuple[Place, Stored] | None]:
        reply = yield _loading(place)
        return (yield from self._follow(session_id, place, reply, ttl))

    def touch_record(self, session_id: str, record: Record, ttl: int) -> bool:
        found = self.load_record(session_id, ttl)
        return found is not None and found.birth == record.birth

    async def atouch_record(self, session_id: str, record: Record, ttl: int) -> bool:
        found = await self.aload_record(session_id, ttl)
        return found is not None and found.birth == record.birth

    def create_record(self, session_id: str, record: Record, ttl: int) -> bool:
        return self._run(self._create(session_id, record, ttl))

    async def acreate_record(self, session_id: str, record: Record, ttl: int) -> bool:
        return await self._arun(self._create(session_id, record, ttl))

    def _create(self, session_id: str, record: Record, ttl: int) -> Flow[bool]:
        place, token, now = self._place(session_id), new_token(), self.now_ns()
        made = self._layout.build(place, record, Tokens.after(Tokens.NONE, token), ttl, now)
        created = yield from self._put(place, made, token, ttl)
        if created:
            place.noted = now
            self._remember(session_id, place, made)
        return created

    def _put(self, place: Place, made: Stored, token: bytes, ttl: int) -> Flow[bool]:
        """Store what must not exist yet. True also if an earlier try of ours did, and its answer was lost."""
        life = self._life(made, ttl, self.now_ns())
        for _ in range(TRIES):
            if (yield self._layout.create(place, made, life)):
                return True
            there = yield _loading(place)
            if not there:
                continue
            stored = self._understand(place, there)
            if stored is not None:
                if Tokens.has(stored.tokens, token):
                    return True
                if self._alive(place, stored, ttl):
                    return False
            if (yield self._layout.swap(place, self._layout.version_read(there), made, life)) == 1:
                return True
        raise StorageUnavailable(_CONTENDED)

    def commit_record(self, session_id: str, base: Record, delta: Delta, ttl: int) -> Record | None:
        return self._run(self._commit(session_id, base, delta, ttl))

    async def acommit_record(self, session_id: str, base: Record, delta: Delta, ttl: int) -> Record | None:
        # The common case in one piece: what this process saw last is what is stored.
        place = self._places.get(session_id)
        if place is None or (stored := place.stored) is None or stored.record.birth != base.birth:
            return await self._arun(self._commit(session_id, base, delta, ttl))
        if not self._alive(place, stored, ttl):
            return await self._arun(self._commit(session_id, base, delta, ttl))
        attempt = self._attempt(place, stored, delta, new_token(), ttl)
        made, request = attempt.made, attempt.request
        try:
            reply = await self._client.acall_packed(request.key, request.packed, retry=True)
        except (NoScript, WrongType):
            reply = await self._aask(request)
        finally:
            if self._near:
                self._client.outdate(place.key)
        if reply == 1:
            self._committed(session_id, place, place, made)
            return None if made is None else made.record
        return await self._arun(self._commit_on(session_id, base, delta, ttl, (place, place), attempt, reply))

    def _commit(self, session_id: str, base: Record, delta: Delta, ttl: int) -> Flow[Record | None]:
        home = place = self._places.get(session_id) or self._place(session_id)
        stored = place.stored
        if stored is None or stored.record.birth != base.birth or not self._alive(place, stored, ttl):
            found = yield from self._look_up(session_id, place, ttl)
            if found is None or found[1].record.birth != base.birth:
                raise SessionGone
            place, stored = found
        attempt = self._attempt(place, stored, delta, new_token(), ttl)
        reply = yield attempt.request
        return (yield from self._commit_on(session_id, base, delta, ttl, (home, place), attempt, reply))

    def _commit_on(
        self,
        session_id: str,
        base: Record,
        delta: Delta,
        ttl: int,
        places: tuple[Place, Place],
        attempt: Attempt,
        reply: Any,
    ) -> Flow[Record | None]:
        """From the answer to the first attempt on. All attempts bring one token: whichever arrives, it is ours.

        places: that of the id, and the one the attempt was made at; another one if the id is an old one.
        """
        (home, place), token = places, attempt.token
        for _ in range(TRIES):
            if reply == 1:
                self._committed(session_id, home, place, attempt.made)
                return None if attempt.made is None else attempt.made.record
            if reply == 0:
                break
            self._conflicts += 1
            stored = self._understand(place, reply)
            for _ in range(HOPS):
                if stored is None or stored.alias is None or not self._alive(place, stored, ttl):
                    break
                place = self._named(stored.alias)  # rotated since
                stored = self._understand(place, (yield _loading(place)))
            if stored is None or stored.record.birth != base.birth or not self._alive(place, stored, ttl):
                break
            if Tokens.has(stored.tokens, token):  # done, and the answer was lost
                self._committed(session_id, home, place, stored)
                return stored.record
            attempt = self._attempt(place, stored, delta, token, ttl)
            reply = yield attempt.request
        else:
            raise StorageUnavailable(_CONTENDED)
        self._let_go(session_id)
        raise SessionGone

    def _attempt(self, place: Place, stored: Stored, delta: Delta, token: bytes, ttl: int) -> Attempt:
        """To commit onto what is stored."""
        made = self._planned(place, stored, delta, token, ttl)
        life = 0 if made is None else self._life(made, ttl, made.used)
        layout = self._layout
        return Attempt(token, made, layout.swap(place, layout.version(stored), made, life))

    def _planned(self, place: Place, stored: Stored, delta: Delta, token: bytes, ttl: int) -> Stored | None:
        """What is to be stored; None: nothing is left."""
        now, record, layout = self.now_ns(), stored.record, self._layout
        change = None
        if layout.wants_changes:
            delta = delta.against(record)
            change = Change(stored, delta)
        merged = delta.apply(record, now, record.cap)
        if merged is None:
            return None
        return layout.build(place, merged, Tokens.after(stored.tokens, token), ttl, now, change)

    def _committed(self, session_id: str, home: Place, place: Place, made: Stored | None) -> None:
        self._touches.drop(place)
        if made is None:
            self._let_go(session_id)
        elif place is home:
            place.noted = made.used
            self._remember(session_id, place, made)

    def delete_record(self, session_id: str) -> bool:
        return self._run(self._delete(session_id))

    async def adelete_record(self, session_id: str) -> bool:
        return await self._arun(self._delete(session_id))

    def _delete(self, session_id: str) -> Flow[bool]:
        """The record first, then the aliases that led to it: a kill in between leaves nothing alive."""
        layout, place, birth, found = self._layout, self._place(session_id), None, False
        aliases: list[tuple[Place, int | None]] = []
        for _ in range(HOPS):
            reply = yield layout.remove(place, birth, alias=False)
            self._touches.drop(place)
            if not reply:
                break
            head = layout.head_in(reply)
            if not is_alias(head):
                found = self._shows_life(head)
                break
            sign = self._understand(place, reply)
            if sign is None or sign.alias is None or not self._alive(place, sign, 0):
                aliases.append((place, None))
                break
            birth = sign.record.birth
            aliases.append((place, birth))
            place = self._named(sign.alias)
        for place, birth in reversed(aliases):
            yield layout.remove(place, birth, alias=True)
        self._let_go(session_id)
        return found

    def rename_record(self, old_id: str, new_id: str, base: Record, ttl: int, grace: int) -> Record | None:
        return self._run(self._rename(old_id, new_id, base, ttl, grace))

    async def arename_record(
        self, old_id: str, new_id: str, base: Record, ttl: int, grace: int
    ) -> Record | None:
        return await self._arun(self._rename(old_id, new_id, base, ttl, grace))

    def _rename(self, old_id: str, new_id: str, base: Record, ttl: int, grace: int) -> Flow[Record | None]:
        """The new record first, then the end of the old id: a kill in between leaves all as it was.

        Two keys, which may be on two nodes. The old one is ended only as it was copied: a commit in between is
        copied too, a destroy in between takes the copy back. Until then nobody has been told the new id.
        """
        layout, place, target = (
            self._layout,
            self._places.get(old_id) or self._place(old_id),
            self._place(new_id),
        )
        stored, copy, token = place.stored, None, new_token()
        if stored is None or stored.record.birth != base.birth or not self._alive(place, stored, ttl):
            stored = self._understand(place, (yield _loading(place)))
        for _ in range(TRIES):
            if stored is None or stored.record.birth != base.birth or not self._alive(place, stored, ttl):
                break
            if stored.alias is not None:
                place = self._named(stored.alias)
                stored = self._understand(place, (yield _loading(place)))
                continue
            copy = yield from self._copy(target, stored, copy, token, ttl)
            sign = self._sign(place, target, stored, token, grace) if grace > 0 else None
            life = 0 if sign is None else self._life(sign, 0, self.now_ns())
            reply = yield layout.swap(place, layout.version(stored), sign, life)
            if reply != 1:
                stored = self._understand(place, reply) if reply else None
                if stored is None or stored.alias is None or not Tokens.has(stored.tokens, token):
                    continue
            self._touches.drop(place)
            self._let_go(old_id)
            target.noted = copy.used
            self._remember(new_id, target, copy)
            return copy.record
        if copy is not None:
            yield layout.remove(target, base.birth, alias=False)
        self._let_go(old_id)
        return None

    def _copy(
        self, target: Place, stored: Stored, copy: Stored | None, token: bytes, ttl: int
    ) -> Flow[Stored]:
        """What is to stand under the new id, put there if it is not there yet."""
        if copy is not None and copy.tokens[TOKEN:] == stored.tokens[:-TOKEN]:
            return copy
        now = self.now_ns()
        fresh = token if copy is None else new_token()
        made = self._layout.build(target, stored.record, Tokens.after(stored.tokens, fresh), ttl, now)
        if copy is None:
            if not (yield from self._put(target, made, token, ttl)):
                raise StorageUnavailable("the fresh id is in use already; check the id function")
        elif (
            yield self._layout.swap(target, self._layout.version(copy), made, self._life(made, ttl, now))
        ) != 1:
            raise StorageUnavailable("the copy under the fresh id is gone; try again")
        return made

    def _sign(self, place: Place, target: Place, stored: Stored, token: bytes, grace: int) -> Stored:
        now = self.now_ns()
        end = Record.build({}, now, min(now + grace, stored.record.cap), 0, stored.record.birth)
        return self._layout.build_alias(place, target, end, Tokens.after(stored.tokens, token))

    # ---- whose sessions they are: one sorted set a user, of storage keys by when they were last noted -------

    def note_user(self, user: str, session_id: str, ttl: int) -> None:
        self._run(self._note_user(user, session_id, ttl))

    async def anote_user(self, user: str, session_id: str, ttl: int) -> None:
        await self._arun(self._note_user(user, session_id, ttl))

    def _note_user(self, user: str, session_id: str, ttl: int) -> Flow[None]:
        key = self._index(user)
        name = ids.storage_key(session_id, self._realm)
        oldest = yield self._note_request(key, name, self.now_ns(), ttl)
        pairs = _pairs(oldest)
        due = {entry: noted for entry, noted in pairs.items() if self._settled(noted) and entry != name}
        if due:
            yield from self._judge(key, user, due)

    def user_sessions(self, user: str) -> list[tuple[str, Record]]:
        return self._run(self._user_sessions(user))

    async def auser_sessions(self, user: str) -> list[tuple[str, Record]]:
        return await self._arun(self._user_sessions(user))

    def _user_sessions(self, user: str) -> Flow[list[tuple[str, Record]]]:
        """Looked at until the index says nothing new: a session may have been rotated while we looked."""
        key = self._index(user)
        found: dict[str, Record] = {}
        seen: dict[str, bytes] = {}
        while True:
            pairs = _pairs((yield command(key, b"ZRANGE", key, b"0", b"-1", b"WITHSCORES")))
            fresh = {name: noted for name, noted in pairs.items() if name not in seen}
            if not fresh:
                break
            seen.update(fresh)
            found.update((yield from self._judge(key, user, fresh)))
        young = {n: noted for n, noted in seen.items() if n not in found and not self._settled(noted)}
        if young:  # noted before they were bound: they may be by now
            found.update((yield from self._judge(key, user, young)))
        return [(_locator(name), record) for name, record in found.items()]

    def _judge(self, key: bytes, user: str, entries: dict[str, bytes]) -> Flow[dict[str, Record]]:
        """Which of the index's entries are live sessions of that user. Those long gone are taken out of it."""
        names, found, gone = list(entries), dict[str, Record](), list[bytes]()
        for start in range(0, len(names), AT_ONCE):
            places = [self._named(name) for name in names[start : start + AT_ONCE]]
            for place, reply in zip(places, (yield [_loading(place) for place in places]), strict=True):
                stored = self._understand(place, reply)
                lives = stored is not None and stored.alias is None and self._alive(place, stored, 0)
                if stored is not None and lives and users.owned(stored.record, user):
                    found[place.name] = stored.record
                elif self._settled(entries[place.name]):
                    gone += (place.name.encode("ascii"), entries[place.name])
        if gone:
            yield script(scripts.FORGET, key, *gone)
        return found

    def _index(self, user: str) -> bytes:
        return self._prefix + b"user:" + ids.storage_key(users.index_name(user), self._realm).encode("ascii")

    def _note_request(self, key: bytes, name: str, now: int, ttl: int) -> Request:
        life = min(users.index_life(ttl) // MILLISECOND, FOREVER)
        return script(scripts.NOTE, key, b"%d" % (now // SECOND), name.encode("ascii"), b"%d" % life)

    def _settled(self, noted: bytes) -> bool:
        return self.now_ns() // SECOND - int(float(noted)) > users.SETTLE

    # ---- writing what uses were noted --------------------------------------------------------------------

    def _arrange_writing(self) -> None:
        """Within a second: by a timer of the running event loop, or by a thread where there is none."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._driver.start()
            return
        if loop not in self._timers:
            self._timers = {known: timer for known, timer in self._timers.items() if not known.is_closed()}
            self._timers[loop] = loop.call_later(self._every, self._begin_writing, loop)

    def _begin_writing(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timers.pop(loop, None)
        task = loop.create_task(self._awrite_quietly())
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def _awrite_quietly(self) -> None:
        try:
            await self._arun(self._write_all())
        except (StorageUnavailable, StorageMisconfigured):
            self._arrange_writing()
            return
        with contextlib.suppress(StorageUnavailable, StorageMisconfigured):
            await self._arun(self._inspect())

    def _inspect(self) -> Flow[None]:
        """Look once whether the server may throw sessions away; not every user may ask that."""
        if self._inspected:
            return
        self._inspected = True
        reply = yield command(self._prefix, b"INFO", b"memory")
        lines = reply.split(b"\r\n") if type(reply) is bytes else []
        told = {name: value for name, _, value in (line.partition(b":") for line in lines)}
        policy = told.get(b"maxmemory_policy", b"").decode("ascii", "replace")
        if policy not in ("", "noeviction") and told.get(b"maxmemory") != b"0":
            log.warning(
                "Redis may evict live sessions and log users out: its maxmemory-policy is %s; "
                "sessions need noeviction, on a server of their own if other data are to be evicted",
                policy,
            )

    def _write_touches(self) -> float:
        """A step of the thread."""
        wait = self._touches.due_in(self._every)
        if wait > 0:
            return wait
        with contextlib.suppress(StorageUnavailable, StorageMisconfigured):
            self._run(self._write_all())
            self._run(self._inspect())
        return self._every

    def flush(self) -> None:
        """Write the noted uses now."""
        self._run(self._write_all())

    async def aflush(self) -> None:
        await self._arun(self._write_all())

    def _write_all(self) -> Flow[None]:
        while touches := self._touches.take():
            try:
                yield from self._touch_now(touches)
            except BaseException:
                self._touches.put_back(touches)
                raise

    def _touch_now(self, touches: Iterable[Touch]) -> Flow[None]:
        now, asked = self.now_ns(), list[Request]()
        for place, stored, used, ttl in touches:
            life = self._life(stored, ttl, now, used)
            if life <= 0:
                continue
            asked.append(self._layout.touch(place, stored, life, None if self.clock is None else used))
            user = stored.record.get(users.USER_KEY)
            if isinstance(user, str):
                idle = stored.record.ttl or ttl
                asked.append(self._note_request(self._index(user), place.name, used, idle))
        if asked:
            yield asked
            self._touches.written += len(asked)

    # ---- what is believed --------------------------------------------------------------------------------

    def _understand(self, place: Place, reply: Any) -> Stored | None:
        """What was read. None: nothing, or nothing of ours, which is counted."""
        if not reply:
            return None
        seen = place.stored
        if seen is not None and reply == seen.raw:
            return seen
        try:
            return self._layout.decode(place, reply)
        except CorruptRecord as error:
            self._note_corrupt(_locator(place.name), str(error))
            return None

    def _alive(self, place: Place, stored: Stored, ttl: int) -> bool:
        """Whether it lives yet. Of idle time the server itself knows best, unless a clock was given."""
        now, record = self.now_ns(), stored.record
        if now >= record.cap:
            return False
        if self.clock is None or stored.alias is not None:
            return True
        idle = record.ttl or ttl or stored.idle
        return not idle or now - max(stored.used, place.noted, self._touches.last(place)) < idle

    def _shows_life(self, head: bytes) -> bool:
        """`_alive`, by the head alone; an alias does not."""
        try:
            header, used = read_head(head)
        except CorruptRecord:
            return False
        now = self.now_ns()
        fresh = self.clock is None or not header.idle or now - used < header.idle
        return fresh and now < header.cap and not is_alias(head)

    def _life(self, stored: Stored, ttl: int, now: int, used: int | None = None) -> int:
        """Milliseconds that its key has to live from now on; 0 or less: none."""
        record, used = stored.record, now if used is None else used
        idle = record.ttl or ttl or stored.idle
        left = (min(used + idle, record.cap) if idle else record.cap) - now
        life = min(-(-left // MILLISECOND), FOREVER)
        return life if life <= 0 or self.clock is None else life + SPARE

    # ---- what was seen -----------------------------------------------------------------------------------

    def _remember(self, session_id: str, place: Place, stored: Stored) -> None:
        before = place.stored
        if stored is before:
            return
        if stored.size > CACHED_BYTES:
            self._let_go(session_id)
            return
        with self._lock:
            place.stored = stored
            self._held += stored.size - (0 if before is None else before.size)
            if self._places.get(session_id) is not place:
                self._lose(self._places.pop(session_id, None))
                self._places[session_id] = place
                self._held += ENTRY
            while self._held > self._cache_limit and self._places:
                self._lose(self._places.pop(next(iter(self._places))))

    def _let_go(self, session_id: str) -> None:
        if session_id in self._places:
            with self._lock:
                self._lose(self._places.pop(session_id, None))

    def _lose(self, place: Place | None) -> None:
        if place is not None:
            self._held -= ENTRY + (0 if place.stored is None else place.stored.size)

    # ---- talking to the server ---------------------------------------------------------------------------

    def _run(self, flow: Flow[T]) -> T:
        """Carry out a step on this thread."""
        answer = None
        while True:
            try:
                request = flow.send(answer)
            except StopIteration as end:
                value: T = end.value
                return value
            answer = self._ask(request) if isinstance(request, Request) else self._ask_all(request)

    async def _arun(self, flow: Flow[T]) -> T:
        """Carry out a step on the running event loop."""
        answer = None
        while True:
            try:
                request = flow.send(answer)
            except StopIteration as end:
                value: T = end.value
                return value
            answer = await (self._aask(request) if isinstance(request, Request) else self._aask_all(request))

    # Every request may be sent twice: what it has done already, it does not do again.
    # Their effect is not in a near-cache before it is known here, so whatever was read before does not count then.

    def _ask(self, request: Request) -> Any:
        try:
            try:
                return self._client.call_packed(request.key, request.packed, retry=True)
            except NoScript:
                return self._client.call_packed(request.key, request.whole(), retry=True)
        except WrongType:
            return FOREIGN
        finally:
            if self._near and request.changes:
                self._client.outdate(request.key)

    async def _aask(self, request: Request) -> Any:
        try:
            try:
                return await self._client.acall_packed(request.key, request.packed, retry=True)
            except NoScript:
                return await self._client.acall_packed(request.key, request.whole(), retry=True)
        except WrongType:
            return FOREIGN
        finally:
            if self._near and request.changes:
                self._client.outdate(request.key)

    def _ask_all(self, requests: list[Request]) -> list[Any]:
        """In one round trip, but for a cluster's."""
        if self._client.is_cluster:
            return [self._ask(request) for request in requests]
        replies = self._client.call_packed_many(
            requests[0].key, _packed(requests), len(requests), retry=True, raise_errors=False
        )
        for n in _failed(replies):  # a script that the server does not know yet, or an error for good
            replies[n] = self._ask(requests[n])
        return replies

    async def _aask_all(self, requests: list[Request]) -> list[Any]:
        if self._client.is_cluster:
            return await asyncio.gather(*map(self._aask, requests))
        replies = await self._client.acall_packed_many(
            requests[0].key, _packed(requests), len(requests), retry=True, raise_errors=False
        )
        for n in _failed(replies):
            replies[n] = await self._aask(requests[n])
        return replies

    # ---- for operators -----------------------------------------------------------------------------------

    def scan(self) -> Iterator[Summary]:
        """By SCAN, some hundred keys a round trip: slow, and harmless for the server."""
        for names in survey.names(self._client, self._prefix):
            yield from self._summaries(names)

    def summary(self, session_id: str) -> Summary | None:
        if users.is_index(session_id):
            raise NotSupported("a user's index is no record in Redis")
        return next(iter(self._summaries([ids.storage_key(session_id, self._realm)])), None)

    def _summaries(self, names: list[str]) -> list[Summary]:
        """Of those that are live sessions. Two commands a session, all in one round trip."""
        places = [self._named(name) for name in names]
        asked = [
            request
            for place in places
            for request in (_loading(place), command(place.key, b"PTTL", place.key))
        ]
        replies = self._run(_answers(asked)) if asked else []
        found = []
        for place, reply, left in zip(places, replies[::2], replies[1::2], strict=True):
            stored = self._understand(place, reply)
            if stored is not None and stored.alias is None and self._alive(place, stored, 0):
                found.append(self._summary(place, stored, left))
        return found

    def _summary(self, place: Place, stored: Stored, left: int) -> Summary:
        """left: ms that the key has yet to live, negative if for ever."""
        record, now = stored.record, self.now_ns()
        idle = record.ttl or stored.idle
        if self.clock is None:
            ends = record.cap if left < 0 else min(record.cap, now + left * MILLISECOND)
            used = max(stored.used, ends - idle) if idle and left >= 0 else stored.used
        else:
            used = stored.used
            ends = min(record.cap, used + idle) if idle else record.cap
        return Summary(
            locator=_locator(place.name),
            size=stored.size,
            created_at=self.wall(record.created),
            used_at=self.wall(used),
            expires_at=None if ends == Record.NEVER else self.wall(ends),
            idle=idle / SECOND if idle else None,
            bound=users.USER_KEY in record,
        )

    def examine(self) -> Iterator[Finding]:
        yield from survey.examine(self._client, self._prefix)

    def vitals(self) -> dict[str, float]:
        """From the server's INFO: its operations, clients, memory, and the keys it expired and evicted."""
        return survey.vitals(self._client, self._prefix)

    # ---- housekeeping ------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """How many sessions live, of all realms. Looks at every key of the server: for operators, not for requests."""
        return sum(self._run(self._count(names)) for names in survey.names(self._client, self._prefix))

    def _count(self, names: list[str]) -> Flow[int]:
        live = 0
        for start in range(0, len(names), AT_ONCE):
            heads = yield [self._layout.glance(self._named(name)) for name in names[start : start + AT_ONCE]]
            live += sum(type(head) is bytes and self._shows_life(head) for head in heads)
        return live

    def stats(self) -> dict[str, int]:
        """Counters since this object was made.

        corrupt: reads that met a torn, damaged or foreign record. conflicts: tries of commits that somebody else's
        commit overtook. shared_reads: loads that were answered by the read of another task. near_hits: loads that
        asked nobody. touches: uses that were written, touches_waiting: those that will be within a second.
        cached: sessions kept in memory now.
        """
        return {
            "corrupt": self._corrupt,
            "conflicts": self._conflicts,
            "shared_reads": self._shared_reads,
            "near_hits": self._near_hits,
            "touches": self._touches.written,
            "touches_waiting": len(self._touches),
            "cached": len(self._places),
        }

    def close(self) -> None:
        """Write the noted uses and close the connections. A server that is away loses them; nothing is raised."""
        self._driver.stop()
        with contextlib.suppress(StorageUnavailable, StorageMisconfigured):
            self.flush()
        self._client.close()

    async def aclose(self) -> None:
        self._driver.stop()
        loop = asyncio.get_running_loop()
        if (timer := self._timers.pop(loop, None)) is not None:
            timer.cancel()
        if under_way := {task for task in self._writing if task.get_loop() is loop}:
            await asyncio.wait(under_way)
        with contextlib.suppress(StorageUnavailable, StorageMisconfigured):
            await self.aflush()
        await self._client.aclose()


def _locator(name: str) -> str:
    """Of a session whose storage key is known: see ids.locator."""
    return "#" + name


def _loading(place: Place) -> Request:
    return Request(place.key, place.load)


def _answers(requests: list[Request]) -> Flow[list[Any]]:
    replies: list[Any] = yield requests
    return replies


def _packed(requests: list[Request]) -> bytes:
    return b"".join([request.packed for request in requests])


def _failed(replies: list[Any]) -> list[int]:
    return [n for n, reply in enumerate(replies) if type(reply) is ErrorReply]


def _throttle(idle: int) -> int:
    """For how long after a use is noted no other one is."""
    return min(idle // 20, 60 * SECOND)


def _pairs(reply: Any) -> dict[str, bytes]:
    """Members and scores of a sorted set, which RESP3 tells in pairs and as numbers."""
    if reply and type(reply[0]) is list:
        reply = [item for member, score in reply for item in (member, b"%d" % score)]
    return {reply[n].decode("ascii", "replace"): reply[n + 1] for n in range(0, len(reply or ()), 2)}


# ---- forks, and the end of the process -----------------------------------------------------------------

_storages: "weakref.WeakSet[RedisStorage]" = weakref.WeakSet()


def _begin_in_child() -> None:
    for storage in list(_storages):
        storage._forget()


def _write_at_exit() -> None:
    for storage in list(_storages):
        if len(storage._touches):
            with contextlib.suppress(Exception):
                storage.flush()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_in_child)
atexit.register(_write_at_exit)
