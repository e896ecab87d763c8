"""Near: what one connection has read lately, kept as long as the server promises to say when it changes.

The server is asked for it by CLIENT TRACKING (RESP3), in its default mode and without NOLOOP: it remembers which keys
this connection has read, and pushes the name of each that anybody changes, this connection included. The mode that
broadcasts all changes under a prefix would cost every writer a message to every process; leaving out the changes of
this connection would leave them to be remembered here, and what is forgotten there once is stale for ever.

1. Replies and pushes come down one stream in the order in which the server did things. An entry is kept, and dropped,
   where its reply and its push stand in that stream, never later: so what is kept is what the server held when it
   wrote the last byte that was read here. A read has two replies, the value and its time to live, and a push may come
   between them: then nothing is kept.
2. That byte may be old: the network may be cut, the server stopped, this loop busy. So entries count only for
   `max_stale` after a moment that an answer has vouched for, which is when its question was sent. As long as somebody
   asks for entries, PINGs provide for such moments.
3. No entry outlives the time to live that the server gave together with it: a key that ends is pushed only when the
   server comes by to delete it.
4. A write of this process is seen by this process at once, whichever connection it took: it raises a floor for its
   key, and what was asked for before does not count.
5. A connection that ends takes all this along; the next one begins with nothing.

Entries belong to the thread of the event loop; `outdate` alone is for all threads.
"""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple

from .wire import ErrorReply, Reply, pack

__all__ = ["Bounds", "Near"]

PING: Final = pack(b"PING")
FLOORS: Final = 1024  # keys share them; whoever meets another one's asks the server once in vain
# Of clocks that no one sets, the one that does not stand still while the machine sleeps.
if hasattr(time, "CLOCK_BOOTTIME"):
    moment: Callable[[], float] = partial(time.clock_gettime, time.CLOCK_BOOTTIME)
else:
    moment = time.monotonic


class Bounds(NamedTuple):
    """entries: kept at most, for each event loop and node. max_stale: seconds."""

    entries: int
    max_stale: float


class Near:
    """Args:
    ping: sends that command; a future whose result is the reply, or an exception in place of one.
    """

    __slots__ = (
        "_asked",
        "_bounds",
        "_confirmed",
        "_entries",
        "_floors",
        "_halfway",
        "_loop",
        "_max_stale",
        "_ping",
        "_reads",
        "_timer",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        bounds: Bounds,
        ping: Callable[[bytes], "asyncio.Future[Any]"],
    ) -> None:
        self._loop = loop
        self._bounds = bounds
        self._max_stale = bounds.max_stale
        self._ping = ping
        # reply, when it ends, number of its read, which floor is its key's
        self._entries: dict[bytes, tuple[Reply, float, int, int]] = {}
        self._floors = [0] * FLOORS  # numbers of reads; those up to it do not count
        self._reads = 0  # sent so far
        self._halfway: bytes | None = None  # the key whose value has come last; None: it has changed since
        self._confirmed = float("-inf")  # the server has told all that it did until then
        self._asked = False  # since the last look of the timer
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> Reply | None:
        """What the server holds under the key, as of `max_stale` ago or later; None: it has to be asked."""
        self._asked = True
        entry = self._entries.get(key)
        if entry is None:
            return None
        reply, ends, number, floor = entry
        now = moment()
        if now - self._confirmed > self._max_stale or number <= self._floors[floor]:
            return None
        if now >= ends:
            del self._entries[key]
            return None
        return reply

    # --- as reads are sent, and as the stream brings replies and pushes -----------------------------------------

    def begin(self) -> tuple[int, float]:
        """A read is about to be sent: its number, and the moment."""
        self._reads += 1
        return self._reads, moment()

    def value_came(self, key: bytes) -> None:
        """The first half of a read was answered: from here on its changes are announced."""
        self._halfway = key

    def keep(self, key: bytes, reply: Reply, left: Reply, begun: tuple[int, float]) -> None:
        """A read was answered; `left`: the milliseconds that the key has yet to live, by PTTL."""
        number, sent = begun
        self._confirm(sent)
        entries = self._entries
        entries.pop(key, None)
        if self._halfway != key:
            return  # announced as changed before we knew all of it
        if not reply or isinstance(reply, ErrorReply) or type(left) is not int or left <= 0:
            return  # nothing there, or nothing of ours: whoever looks again asks again
        entries[key] = reply, sent + left / 1000, number, hash(key) % FLOORS
        if len(entries) > self._bounds.entries:
            del entries[next(iter(entries))]  # what was read longest ago
        if self._timer is None:
            self._look_later()

    def pushed(self, message: list[Any]) -> None:
        """The server says something unasked."""
        if message[:1] != [b"invalidate"]:
            return
        keys = message[1]
        if keys is None:  # everything: FLUSHALL, or a replica that begins anew
            self._entries.clear()
            self._halfway = None
        else:
            for key in keys:
                self._entries.pop(key, None)
                if key == self._halfway:
                    self._halfway = None

    # --- how far the server is believed -------------------------------------------------------------------------

    def _confirm(self, sent: float) -> None:
        """What was sent then is answered, and all that the server had to say before stood before the answer."""
        if sent > self._confirmed:
            self._confirmed = sent

    def _look_later(self) -> None:
        self._timer = self._loop.call_later(self._max_stale / 3, self._look)

    def _look(self) -> None:
        self._timer = None
        if not self._asked:
            return  # nobody needs it; the next read begins anew
        self._asked = False
        self._look_later()
        sent = moment()
        if sent - self._confirmed < self._max_stale / 3:
            return
        try:
            answer = self._ping(PING)
        except Exception:  # so much waits already that no more can be sent
            return
        answer.add_done_callback(partial(self._ponged, sent))

    def _ponged(self, sent: float, answer: "asyncio.Future[Any]") -> None:
        if not answer.cancelled() and not isinstance(answer.result(), Exception):
            self._confirm(sent)

    # --- what this process does itself --------------------------------------------------------------------------

    def outdate(self, key: bytes) -> None:
        """This process has changed the key, or tried to. From any thread, once the answer is there."""
        self._floors[hash(key) % FLOORS] = self._reads

    def close(self) -> None:
        """The connection is no more."""
        self._entries.clear()
        self._confirmed = float("-inf")
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
