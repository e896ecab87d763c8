"""RedisStorage: the record protocol over Redis, for many processes on many hosts.

Every step is one command or script on one key, and each that writes says what it expects to find: so create means
"must not exist", commit means "as I read it", and a destroyed session stays destroyed whatever other nodes are in
the middle of. A commit is planned on what this process last saw of the session and takes one round trip if that is
still so; if not, it is answered with what is there now, and planned again.
"""

import asyncio
import random
from typing import Any, Final

from cysession._core import Delta, Record, use_lasts
from cysession.errors import SessionGone, StorageUnavailable
from cysession.storage.base import HOPS, SECOND

from .asking import Flow, loading
from .overview import Overview
from .records import FOREIGN, TOKEN, Place, Request, Stored, Tokens, is_alias, new_token
from .touches import EVERY, Touch
from .uses import Uses
from .wire import WrongType

__all__ = ["RedisStorage"]

TRIES: Final = (
    1000  # of one commit; each that fails was overtaken by one that did not, and the quick ones come in runs
)
PAUSE: Final = 0.002  # seconds: writers who are overtaken again and again make room for each other, at random
_CONTENDED: Final = "too many others write this session at once; try again"


class RedisStorage(Uses, Overview):
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
        super().__init__(
            source,
            prefix=prefix,
            realm=realm,
            cache=cache,
            near_cache=near_cache,
            max_stale=max_stale,
            **options,
        )
        self._conflicts = 0
        self._near_hits = 0

    # ---- load --------------------------------------------------------------------------------------------

    def load_record(self, session_id: str, ttl: int) -> Record | None:
        """The live record, or None: one round trip. Its use is noted, at most every min(60 s, ttl / 20)."""
        place = self._places.get(session_id) or self._place(session_id)
        try:
            reply = self._client.call_packed(place.key, place.load, retry=True)
        except WrongType:
            reply = FOREIGN
        if (
            (stored := place.stored) is not None
            and reply == stored.raw
            and stored.rests(place.noted, ttl, self.clock)
        ):
            return stored.record
        return self._run(self._load(session_id, place, reply, ttl))

    async def aload_record(self, session_id: str, ttl: int) -> Record | None:
        place = self._places.get(session_id) or self._place(session_id)
        reply = self._client.nearby(place.key) if self._near else None
        if reply is not None:
            self._near_hits += 1
        else:
            loop = asyncio.get_running_loop()
            reads = self._reads.get(loop)
            if reads is None:
                reads = self._reads[loop] = {}
                loop.call_soon(self._reads.pop, loop, None)
            if place.key in reads:
                reply = await self._join(reads, place)
            else:
                reply = await self._read(reads, place)
        if (
            (stored := place.stored) is not None
            and reply == stored.raw
            and stored.rests(place.noted, ttl, self.clock)
        ):
            return stored.record
        return await self._arun(self._load(session_id, place, reply, ttl))

    def _load(self, session_id: str, place: Place, reply: Any, ttl: int) -> Flow[Record | None]:
        found = yield from self._follow(session_id, place, reply, ttl)
        if found is None:
            return None
        place, stored = found
        now = self.now_ns()
        idle = stored.record.ttl or ttl or stored.idle
        if 0 <= now - (elsewhere := place.ends - idle) < use_lasts(idle):
            # A use by another process was written not long ago and does for all, or near-caches were never at rest.
            place.noted = max(place.noted, elsewhere)
        if not 0 <= now - place.noted < use_lasts(idle):
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
            reply = yield loading(place)
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
        stored = self._understand(place, (yield loading(place)))
        return stored is not None and stored.alias is None and self._alive(place, stored, self._own_ttl)

    def _look_up(self, session_id: str, place: Place, ttl: int) -> Flow[tuple[Place, Stored] | None]:
        reply = yield loading(place)
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
            there = yield loading(place)
            if not there:
                continue
            stored = self._understand(place, there)
            if stored is not None:
                if Tokens.has(stored.tokens, token):
                    return True
                if self._alive(place, stored, ttl):
                    return False
            swap = self._layout.swap(place, self._layout.version_read(there), made, life)
            if (yield Request(place.key, swap, True)) == 1:
                return True
        raise StorageUnavailable(_CONTENDED)

    def commit_record(self, session_id: str, base: Record, delta: Delta, ttl: int) -> Record | None:
        first = self._first_attempt(session_id, base, delta, ttl)
        if first is None:
            return self._run(self._commit(session_id, base, delta, ttl))
        place, token, made, packed = first
        try:
            reply = self._client.call_packed(place.key, packed, retry=True)
        except WrongType:
            reply = FOREIGN
        finally:
            if self._near:
                self._client.outdate(place.key)
        if reply == 1:
            return self._committed(session_id, place, place, made)
        return self._run(self._commit_on(session_id, base, delta, ttl, (place, place), token, made, reply))

    async def acommit_record(self, session_id: str, base: Record, delta: Delta, ttl: int) -> Record | None:
        first = self._first_attempt(session_id, base, delta, ttl)
        if first is None:
            return await self._arun(self._commit(session_id, base, delta, ttl))
        place, token, made, packed = first
        try:
            reply = await self._client.acall_packed(place.key, packed, retry=True)
        except WrongType:
            reply = FOREIGN
        finally:
            if self._near:
                self._client.outdate(place.key)
        if reply == 1:
            return self._committed(session_id, place, place, made)
        return await self._arun(
            self._commit_on(session_id, base, delta, ttl, (place, place), token, made, reply)
        )

    def _first_attempt(
        self, session_id: str, base: Record, delta: Delta, ttl: int
    ) -> tuple[Place, bytes, Stored | None, bytes] | None:
        """The common case: what this process saw last is what is stored. None: it saw nothing that would do."""
        place = self._places.get(session_id)
        if place is None or (stored := place.stored) is None or stored.record.birth != base.birth:
            return None
        if not self._alive(place, stored, ttl):
            return None
        token = new_token()
        return place, token, *self._layout.attempt(place, stored, delta, token, ttl, self.clock)

    def _commit(self, session_id: str, base: Record, delta: Delta, ttl: int) -> Flow[Record | None]:
        """For what this process has not seen."""
        home = self._places.get(session_id) or self._place(session_id)
        found = yield from self._look_up(session_id, home, ttl)
        if found is None or found[1].record.birth != base.birth:
            raise SessionGone
        (place, stored), token = found, new_token()
        made, packed = self._layout.attempt(place, stored, delta, token, ttl, self.clock)
        reply = yield Request(place.key, packed, True)
        return (yield from self._commit_on(session_id, base, delta, ttl, (home, place), token, made, reply))

    def _commit_on(
        self,
        session_id: str,
        base: Record,
        delta: Delta,
        ttl: int,
        places: tuple[Place, Place],
        token: bytes,
        made: Stored | None,
        reply: Any,
    ) -> Flow[Record | None]:
        """From the answer to the first attempt on. All attempts bring one token: whichever arrives, it is ours.

        places: that of the id, and the one the attempt was made at; another one if the id is an old one.
        """
        home, place = places
        for tries in range(TRIES):
            if reply == 1:
                return self._committed(session_id, home, place, made)
            if reply == 0:
                break
            self._conflicts += 1
            stored = self._understand(place, reply)
            for _ in range(HOPS):
                if stored is None or stored.alias is None or not self._alive(place, stored, ttl):
                    break
                place = self._named(stored.alias)  # rotated since
                stored = self._understand(place, (yield loading(place)))
            if stored is None or stored.record.birth != base.birth or not self._alive(place, stored, ttl):
                break
            if Tokens.has(stored.tokens, token):  # done, and the answer was lost
                return self._committed(session_id, home, place, stored)
            if tries:
                yield random.random() * PAUSE * min(tries, 8)
            made, packed = self._layout.attempt(place, stored, delta, token, ttl, self.clock)
            reply = yield Request(place.key, packed, True)
        else:
            raise StorageUnavailable(_CONTENDED)
        self._let_go(session_id)
        raise SessionGone

    def _committed(self, session_id: str, home: Place, place: Place, made: Stored | None) -> Record | None:
        """What is stored now; None: nothing."""
        self._touches.drop(place)
        if made is None:
            self._let_go(session_id)
            return None
        if place is home:
            place.noted = made.used
            self._remember(session_id, place, made)
        return made.record

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
            stored = self._understand(place, (yield loading(place)))
        for _ in range(TRIES):
            if stored is None or stored.record.birth != base.birth or not self._alive(place, stored, ttl):
                break
            if stored.alias is not None:
                place = self._named(stored.alias)
                stored = self._understand(place, (yield loading(place)))
                continue
            copy = yield from self._copy(target, stored, copy, token, ttl)
            sign = self._sign(place, target, stored, token, grace) if grace > 0 else None
            life = 0 if sign is None else self._life(sign, 0, self.now_ns())
            reply = yield Request(place.key, layout.swap(place, layout.version(stored), sign, life), True)
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
        else:
            swap = self._layout.swap(target, self._layout.version(copy), made, self._life(made, ttl, now))
            if (yield Request(target.key, swap, True)) != 1:
                raise StorageUnavailable("the copy under the fresh id is gone; try again")
        return made

    def _sign(self, place: Place, target: Place, stored: Stored, token: bytes, grace: int) -> Stored:
        now = self.now_ns()
        end = Record.build({}, now, min(now + grace, stored.record.cap), 0, stored.record.birth)
        return self._layout.build_alias(place, target, end, Tokens.after(stored.tokens, token))

    # ---- counters ----------------------------------------------------------------------------------------

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
