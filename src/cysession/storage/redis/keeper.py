"""Keeper: what a storage in Redis calls its sessions, what it saw of them last, and what it believes of a reply."""

import asyncio
import os
import threading
import time
import weakref
from typing import Any, ClassVar, Final

from cysession import ids
from cysession.errors import CorruptRecord, StorageMisconfigured
from cysession.storage.base import SECOND

from .asking import Asking, Reads
from .client import Client
from .near import Bounds
from .records import Blobs, Layout, Place, Stored, is_alias, read_head
from .touches import Touches

__all__ = ["Keeper", "locator_of"]

CACHED_BYTES: Final = 65536  # of one record: what is larger is decoded again rather than kept
ENTRY: Final = 600  # bytes that a session in memory costs beside its data


def locator_of(name: str) -> str:
    """Of a session whose storage key is known: see ids.locator."""
    return "#" + name


class Keeper(Asking):
    """Names, memory and judgement. For the arguments see RedisStorage."""

    _layout: ClassVar[Layout] = Blobs()
    _kind: ClassVar[bytes] = b""

    def __init__(
        self,
        source: Any,
        *,
        prefix: str,
        realm: str,
        cache: int,
        near_cache: int,
        max_stale: float,
        **options: Any,
    ) -> None:
        if not prefix:
            raise StorageMisconfigured("the prefix of Redis keys may not be empty: other data may be there")
        if near_cache < 0 or not 0.0 < max_stale < float("inf"):
            raise StorageMisconfigured(
                "near_cache is a number of sessions, max_stale a positive number of seconds"
            )
        self._prefix = prefix.encode("utf-8") + self._kind
        self._realm = realm
        self._near = near_cache > 0
        bounds = Bounds(near_cache, max_stale) if self._near else None
        self._client = Client(source, near=bounds, **options)
        self._cache_limit = int(cache)
        self._touches = Touches()
        self._shared_reads = 0
        self._forget()
        _keepers.add(self)

    def _forget(self) -> None:
        """At the beginning, and in a forked child: what belongs to threads and loops."""
        self._places: dict[str, Place] = {}
        self._held = 0  # bytes, about
        self._lock = threading.Lock()
        self._reads: dict[asyncio.AbstractEventLoop, Reads] = {}
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

    @property
    def _own_ttl(self) -> int:
        return round(self.ttl * SECOND)

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
            self._note_corrupt(locator_of(place.name), str(error))
            return None

    def _alive(self, place: Place, stored: Stored, ttl: int) -> bool:
        """Whether it lives yet. Of idle time the server itself knows best, unless a clock was given."""
        record = stored.record
        if self.clock is None:
            return time.time_ns() < record.cap
        now = self.now_ns()
        if now >= record.cap or stored.alias is not None:
            return now < record.cap
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
        return stored.life(ttl, now, now if used is None else used, self.clock)

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


# ---- forks ---------------------------------------------------------------------------------------------

_keepers: "weakref.WeakSet[Keeper]" = weakref.WeakSet()


def _begin_in_child() -> None:
    for keeper in list(_keepers):
        keeper._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_in_child)
