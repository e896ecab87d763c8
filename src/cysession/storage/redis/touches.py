"""Noted uses that are still to be written: a read costs no write, and many sessions share one round trip.

A use is noted at most every min(60 s, ttl / 20) of a session and process, kept for a second, and then written
together with all others of that second: at most that second of uses is lost by a kill. Idle time counts from
the use, not from the writing. What is written changes a time to live and nothing else, and only if the session
is still the one that was used, with the deadlines it had then.

Threads share one clean-up thread for it; on an event loop a timer of that loop does it, on the connection that
the loop has anyway. A flush that fails puts back what it took, and the next one tries again.
"""

import threading
import time
from collections.abc import Iterable
from typing import Final, NamedTuple

from .records import Place, Stored

__all__ = ["EVERY", "Touch", "Touches"]

EVERY: Final = 1.0  # seconds between two flushes
MOST: Final = 512  # in one round trip: some 100 kB
LIMIT: Final = 100_000  # waiting; only a server that is away lets it come so far
MILLISECOND: Final = 1_000_000


class Touch(NamedTuple):
    """One use of one session, in ns of the storage's clock."""

    place: Place
    stored: Stored
    used: int
    ttl: int  # the session's if it has none of its own


class Touches:
    """Noted uses, one a session, the last one."""

    def __init__(self) -> None:
        self.written = 0
        self.forget()

    def forget(self) -> None:
        """In a forked child: the parent writes its own."""
        self._lock = threading.Lock()
        self._waiting: dict[bytes, Touch] = {}
        self._since = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    def note(self, touch: Touch) -> None:
        with self._lock:
            if not self._waiting:
                self._since = time.monotonic()
            if len(self._waiting) < LIMIT:
                self._waiting[touch.place.key] = touch

    def due_in(self, every: float) -> float:
        """Seconds until the first one has waited that long; 0 or less: it has."""
        return self._since + every - time.monotonic() if self._waiting else every

    def last(self, place: Place) -> int:
        """When the last use that is not written yet was; 0: there is none."""
        touch = self._waiting.get(place.key)
        return 0 if touch is None else touch.used

    def drop(self, place: Place) -> None:
        """What is written of a session otherwise begins its idle time anew, or ends it."""
        if place.key in self._waiting:
            with self._lock:
                self._waiting.pop(place.key, None)

    def take(self) -> list[Touch]:
        """Some of what waits; empty: nothing does."""
        with self._lock:
            if len(self._waiting) <= MOST:
                taken, self._waiting = list(self._waiting.values()), {}
            else:
                taken = [self._waiting.pop(key) for key in list(self._waiting)[:MOST]]
        return taken

    def put_back(self, touches: Iterable[Touch]) -> None:
        """They were not written. Later uses of the same sessions stay as they are."""
        with self._lock:
            for touch in touches:
                self._waiting.setdefault(touch.place.key, touch)
