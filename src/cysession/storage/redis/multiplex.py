"""Mux: the async side's one connection to a node and event loop, shared by all tasks.

The commands of one turn of the loop go out in one write, those of a long turn in a few; that of a task which is alone
does not wait for the end of its turn. Replies come in the order of
the commands, so the n-th reply belongs to the n-th future of a queue, whatever has become of its task meanwhile: a
cancelled caller stays in the queue until its reply has been read and dropped, so cancelling costs no connection and can
never shift replies.

There is no timer for each call. While anything is unanswered a watchdog looks at the queue sixteen times a timeout
and notes how many commands had been sent by then; what is older than the timeout fails, and if nothing at all arrived
in that time, the connection is given up. A watchdog that itself comes late has been held up by other work of the loop,
and so have replies: it lets them come in first.
"""

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

import hiredis

from .link import NOT_YET, READ, Lost, make_reader
from .near import Bounds, Near
from .source import Settings
from .wire import Reply

__all__ = ["MAX_BYTES", "MAX_WAITING", "Mux"]

MAX_WAITING = 65536  # commands without a reply; beyond it new ones fail at once
ENOUGH = 16  # commands that do not wait for the end of the turn, so that the server works meanwhile; then 32, 64 ...
MAX_BYTES = 1 << 25  # bytes that wait because the server takes no more
LOOKS = 16  # of the watchdog, in one timeout


class Gather:
    """Stands in the queue once for each of several replies that belong to one future."""

    __slots__ = ("_future", "_left", "_replies")

    def __init__(self, future: "asyncio.Future[Any]", count: int) -> None:
        self._future = future
        self._left = count
        self._replies: list[Reply] = []

    def done(self) -> bool:
        return False  # count on, whatever has become of the future

    def set_result(self, reply: Reply) -> None:
        self._replies.append(reply)
        self._left -= 1
        if self._future.done():
            return
        if isinstance(reply, Lost):
            self._future.set_result(reply)
        elif not self._left:
            self._future.set_result(self._replies)


class Reading(Gather):
    """Stands for a read of the near-cache: a value, and how long it has to live."""

    __slots__ = ("_begun", "_key", "_near")

    def __init__(self, future: "asyncio.Future[Any]", near: Near, key: bytes) -> None:
        super().__init__(future, 2)
        self._near = near
        self._key = key
        self._begun = near.begin()

    def set_result(self, reply: Reply) -> None:
        """Kept where it stands in the stream, whatever has become of the caller."""
        super().set_result(reply)
        if self._left:
            self._near.value_came(self._key)
        elif not any(isinstance(known, Lost) for known in self._replies):
            value, left = self._replies
            self._near.keep(self._key, value, left, self._begun)


class Mux(asyncio.BufferedProtocol):
    """Args:
    timeout: seconds from a command to its reply.
    trouble: called when commands got no reply in time, and once when the connection is no more:
        trouble(mux, reason) with the reasons of Lost.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, timeout: float, trouble: Callable[["Mux", str], None]
    ) -> None:
        self.loop = loop
        self.open = False  # may commands be sent?
        self.near: Near | None = None
        self._timeout = timeout
        self._trouble = trouble
        self._transport: Any = None
        self._make_future = loop.create_future
        self._soon = loop.call_soon
        self._waiting: deque[Any] = deque()  # futures and Gathers, in the order of their commands
        self._out: list[bytes] = []  # commands of this turn
        self._will_flush = False
        self._alone = False  # the last turn that was waited for had one command; the next one does not wait
        self._enough = ENOUGH  # commands that are sent before the turn is over
        self._paused = False
        self._answered = 0  # replies so far
        self._received = 0  # reads so far
        self._timer: asyncio.TimerHandle | None = None
        self._marks: deque[tuple[float, int, int]] = deque()  # (moment, commands sent by then, reads by then)
        self._late_since = 0.0  # when a reply was first missed, the queue never having been empty since
        self._due = 0.0  # when the watchdog should look next
        self._buffer = bytearray(READ)
        self._view = memoryview(self._buffer)
        reader = make_reader()
        self._feed, self._gets = reader.feed, reader.gets

    # --- sending ------------------------------------------------------------------------------------------------

    def send(self, data: bytes) -> "asyncio.Future[Any]":
        """One command; the future's result is its reply, or a Lost. To be called in the loop, while `open`."""
        if self._paused or len(self._waiting) >= MAX_WAITING:
            self._check_room()
        future = self._make_future()
        waiting = self._waiting
        alone = self._alone and not waiting and not self._paused
        waiting.append(future)
        if alone:
            if self._timer is None:
                self._arm()
            self._transport.write(data)
            return future
        out = self._out
        out.append(data)
        if not self._will_flush:
            self._will_flush = True
            self._soon(self._flush)
        elif len(out) >= self._enough:
            self._enough *= 2
            self._write()
        return future

    def send_many(self, data: bytes, count: int) -> "asyncio.Future[Any]":
        """`count` commands; the future's result is the list of their replies, or a Lost."""
        if self._paused or len(self._waiting) >= MAX_WAITING:
            self._check_room()
        future = self._make_future()
        gather = Gather(future, count)
        self._waiting.extend([gather] * count)
        self._out.append(data)
        if not self._will_flush:
            self._will_flush = True
            self._soon(self._flush)
        return future

    def track(self, bounds: Bounds) -> None:
        """From now on there is a near-cache; the server has been asked to track what is read."""
        self.near = Near(self.loop, bounds, self.send)

    def read(self, near: Near, key: bytes, data: bytes) -> "asyncio.Future[Any]":
        """send_many of two commands, a value's and its PTTL's, for the near-cache of this connection."""
        if self._paused or len(self._waiting) >= MAX_WAITING:
            self._check_room()
        future = self._make_future()
        reading = Reading(future, near, key)
        self._waiting += (reading, reading)
        out = self._out
        out.append(data)
        if not self._will_flush:
            self._will_flush = True
            self._soon(self._flush)
        elif len(out) >= self._enough:
            self._enough *= 2
            self._write()
        return future

    def _check_room(self) -> None:
        """Raises Lost if so much waits that more would only wait in vain."""
        if len(self._waiting) >= MAX_WAITING or sum(map(len, self._out)) >= MAX_BYTES:
            raise Lost("crowded", sent=False)

    def _flush(self) -> None:
        """The turn is over."""
        self._will_flush = False
        self._alone = len(self._waiting) == 1
        self._enough = ENOUGH
        self._write()

    def _write(self) -> None:
        if self._paused or not self._out or self._transport is None:
            return
        out = self._out
        data = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        if self._timer is None:
            self._arm()
        self._transport.write(data)

    # --- the connection, as the loop reports it -----------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self.open = True

    def tune(self, settings: Settings) -> None:
        """Socket options; small packets at once is every loop's own habit."""
        sock = self._transport.get_extra_info("socket") if self._transport is not None else None
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in settings.keepalive.items():
                sock.setsockopt(socket.IPPROTO_TCP, option, value)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        self._received += 1
        waiting = self._waiting
        gets = self._gets
        before = len(waiting)
        near = self.near
        caller = None
        try:
            self._feed(self._buffer, 0, nbytes)
            reply = gets()
            while reply is not NOT_YET:
                if near is not None and type(reply) is hiredis.PushNotification:
                    near.pushed(reply)
                else:
                    caller = waiting.popleft()
                    if not caller.done():
                        caller.set_result(reply)
                reply = gets()
        except (hiredis.HiredisError, MemoryError, ValueError, IndexError):
            # No reply at all, or one that nobody asked for: whose would the next one be?
            self.fail("garbage")
            return
        except BaseException:  # the handler of a signal, in between
            if caller is not None and not caller.done():
                caller.set_result(Lost("closed"))
            self.fail("closed")
            raise
        self._answered += before - len(waiting)

    def eof_received(self) -> bool:
        return False  # close

    def connection_lost(self, exc: Exception | None) -> None:
        self.fail("closed")

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._flush()

    # --- the watchdog -------------------------------------------------------------------------------------------

    def _arm(self) -> None:
        """Something is unanswered, after a time when nothing was."""
        now = self.loop.time()
        self._marks.clear()
        self._marks.append((now, self._answered, self._received))
        self._look_in(now, self._timeout / LOOKS)

    def _look_in(self, now: float, seconds: float) -> None:
        self._due = now + seconds
        self._timer = self.loop.call_at(self._due, self._look)

    def _look(self) -> None:
        self._timer = None
        if not self._waiting:
            self._late_since = 0.0
            return
        now = self.loop.time()
        pause = self._timeout / LOOKS
        if now - self._due > pause:
            # The loop was busy elsewhere; what came in meanwhile has not been read yet.
            self._marks = deque((then + now - self._due, sent, reads) for then, sent, reads in self._marks)
            self._look_in(now, pause / 4)
            return
        marks = self._marks
        marks.append((now, self._answered + len(self._waiting), self._received))
        silent = late = False
        while (
            len(marks) > 1 and marks[0][0] <= now - self._timeout + 1.5 * pause
        ):  # before the deadline, never after
            _, _, reads = marks.popleft()
            # All that had been sent at the next mark has been under way since this one, or longer.
            if self._fail_first(marks[0][1] - self._answered):
                late, silent = True, reads == self._received
        if silent:
            self.fail("timeout")
            return
        if late:
            if self._late_since and now - self._late_since > self._timeout:
                # Answers come but are always late: too slow a server, or one that left a reply out, so that the
                # queue never ends. Only a new connection tells.
                self.fail("timeout")
                return
            self._late_since = self._late_since or now
            self._trouble(self, "timeout")
        self._look_in(now, pause)

    def _fail_first(self, count: int) -> bool:
        """The first `count` callers in the queue are told; their replies may still come, and are dropped."""
        for caller in list(self._waiting)[: max(0, count)]:
            if not caller.done():
                caller.set_result(Lost("timeout"))
        return count > 0

    # --- the end ------------------------------------------------------------------------------------------------

    def fail(self, reason: str) -> None:
        """Give the connection up; all that wait learn that it is lost."""
        if self._transport is None:
            return
        transport, self._transport = self._transport, None
        self.open = False
        with contextlib.suppress(RuntimeError):  # the loop may be closed already
            transport.abort()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.near is not None:
            self.near.close()
        waiting = [*self._waiting]
        self._waiting.clear()
        self._out.clear()
        with contextlib.suppress(RuntimeError):
            for caller in waiting:
                if not caller.done():
                    caller.set_result(Lost(reason))
        self._trouble(self, reason)

    def close(self) -> None:
        """End it in good order: nobody waits, or nobody cares."""
        self.fail("closed")

    @property
    def waiting(self) -> int:
        """Commands without a reply."""
        return len(self._waiting)
