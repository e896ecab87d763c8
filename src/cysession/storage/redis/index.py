"""UserIndex: whose sessions they are: one sorted set a user, of storage keys by when they were last noted.

A hint that cleans itself: whose a session is, the session says, and an entry whose session is long gone is taken out
by whoever meets it. An index that was lost comes back with the use of the sessions.
"""

from typing import Any, Final

from cysession import ids
from cysession._core import Record
from cysession.storage import users
from cysession.storage.base import SECOND

from . import scripts
from .asking import Flow, loading
from .keeper import Keeper, locator_of
from .records import Request, Stored, command, script
from .touches import MILLISECOND

__all__ = ["UserIndex"]

AT_ONCE: Final = 256  # sessions of a user that are read in one round trip


class UserIndex(Keeper):
    """The sessions of a user."""

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
        return [(locator_of(name), record) for name, record in found.items()]

    def _judge(self, key: bytes, user: str, entries: dict[str, bytes]) -> Flow[dict[str, Record]]:
        """Which of the index's entries are live sessions of that user. Those long gone are taken out of it."""
        names, found, gone = list(entries), dict[str, Record](), list[bytes]()
        for start in range(0, len(names), AT_ONCE):
            places = [self._named(name) for name in names[start : start + AT_ONCE]]
            for place, reply in zip(places, (yield [loading(place) for place in places]), strict=True):
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
        life = min(users.index_life(ttl) // MILLISECOND, Stored.LIFE_MAX)
        return script(scripts.NOTE, key, b"%d" % (now // SECOND), name.encode("ascii"), b"%d" % life)

    def _settled(self, noted: bytes) -> bool:
        return self.now_ns() // SECOND - int(float(noted)) > users.SETTLE


def _pairs(reply: Any) -> dict[str, bytes]:
    """Members and scores of a sorted set, which RESP3 tells in pairs and as numbers."""
    if reply and type(reply[0]) is list:
        reply = [item for member, score in reply for item in (member, b"%d" % score)]
    return {reply[n].decode("ascii", "replace"): reply[n + 1] for n in range(0, len(reply or ()), 2)}
