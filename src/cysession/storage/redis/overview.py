"""Overview: what operators ask of a storage in Redis: its sessions, one by one or counted, and its server."""

from collections.abc import Iterator
from typing import Any

from cysession import ids
from cysession._core import Record
from cysession.errors import NotSupported
from cysession.storage import users
from cysession.storage.base import SECOND
from cysession.storage.operate import Finding, Summary

from . import survey
from .asking import Flow, loading
from .index import AT_ONCE
from .keeper import Keeper, locator_of
from .records import Place, Request, Stored, command
from .touches import MILLISECOND

__all__ = ["Overview"]


class Overview(Keeper):
    """Reads only, and nothing of it is on the way of a request."""

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
            for request in (loading(place), command(place.key, b"PTTL", place.key))
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
            locator=locator_of(place.name),
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

    def __len__(self) -> int:
        """How many sessions live, of all realms. Looks at every key of the server: for operators, not for requests."""
        return sum(self._run(self._count(names)) for names in survey.names(self._client, self._prefix))

    def _count(self, names: list[str]) -> Flow[int]:
        live = 0
        for start in range(0, len(names), AT_ONCE):
            heads = yield [self._layout.glance(self._named(name)) for name in names[start : start + AT_ONCE]]
            live += sum(type(head) is bytes and self._shows_life(head) for head in heads)
        return live


def _answers(requests: list[Request]) -> Flow[list[Any]]:
    replies: list[Any] = yield requests
    return replies
