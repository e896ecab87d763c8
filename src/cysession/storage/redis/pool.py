"""Pool: the sync side's connections to one node; threads that find all of them busy share one.

The last link used is the first to be used again (its buffers are warm, the others may rest). When all are busy, callers
queue; a link that becomes free is handed to the first of them, who then writes the commands of all that wait in one
go, reads all replies and wakes everyone ("flat combining"): under load fewer system calls and fewer switches between
threads than a link for each, and no thread ever works for others but while it waits itself.

Whatever interrupts a thread between writing and reading, closes the link; those who shared it learn that it was lost.
"""

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable

from . import link as link_module
from .link import Link, Lost
from .wire import Reply

__all__ = ["Pool"]

BATCH = 64  # callers that share one write at most
BATCH_BYTES = 1 << 18  # and bytes
RECOUNT = 0.05  # seconds; after that long a link that was lost with its thread is noticed

# What has become of a caller in the queue; changed under the pool's mutex, but for DONE.
WAITS, LEADS, RIDES, DONE = range(4)


class _Caller:
    """One that waits for a link, or for another to do its work."""

    __slots__ = ("count", "data", "link", "replies", "state", "wake")

    def __init__(self, data: bytes, count: int) -> None:
        self.data = data
        self.count = count
        self.state = WAITS
        self.link: Link | None = None  # with LEADS; perhaps still to be connected
        self.replies: list[Reply] | Lost | None = None  # with DONE
        self.wake = threading.Lock()
        self.wake.acquire()


class Pool:
    """Args:
    connect: makes and connects a link within a deadline: connect(link, deadline), raises SessionError.
    size: links at most.
    timeout: what links are set to, seconds.
    """

    def __init__(self, connect: Callable[[Link, float], None], size: int, timeout: float) -> None:
        self._connect = connect
        self._size = size
        self._timeout = timeout
        self._start_empty()
        _pools.add(self)

    def _start_empty(self) -> None:
        # Reentrant: a finalizer, or the handler of a signal, may come in between and need Redis too.
        self._mutex = threading.RLock()
        self._idle: deque[Link] = deque()
        self._queue: deque[_Caller] = deque()
        # Weak: a thread killed between any two steps can drop a link but not the place that it took.
        self._links: weakref.WeakSet[Link] = weakref.WeakSet()
        self._generation = 0
        self._full_until = 0.0  # no link may be added before, as far as is known

    # --- exchange -----------------------------------------------------------------------------------------------

    def exchange(self, data: bytes, count: int, deadline: float, fresh: bool = True) -> list[Reply]:
        """Write `data`, return its `count` replies. Raises Lost; SessionError if no connection can be made."""
        try:
            link = self._idle.pop() if self._idle else None
        except IndexError:
            link = None
        if link is None:
            found = self._queue_up(data, count, deadline)
            if isinstance(found, list):
                return found
            link, fresh = found, False
        elif deadline - link.used > link_module.STALE and link.stale():
            self._drop(link)
            return self.exchange(data, count, deadline, fresh)
        try:
            replies = link.exchange(data, count, deadline, fresh)
        except BaseException as error:
            self._part_with(link, error)
            raise
        self._give_back(link)
        return replies

    def _queue_up(self, data: bytes, count: int, deadline: float) -> list[Reply] | Link:
        """All links are busy: a new one, connected, or the replies, where there may be no more links."""
        caller = _Caller(data, count)
        with self._mutex:
            link = self._new_link(deadline)
            if link is None:
                self._queue.append(caller)
        if link is None:
            if self._idle:  # given back just before we were in the queue
                self._hand_over()
            self._wait(caller, deadline)
            if caller.state == DONE:
                if isinstance(caller.replies, Lost):
                    raise caller.replies
                assert caller.replies is not None
                return caller.replies
            link = caller.link
            assert link is not None
            if link.sock is not None:
                return self._lead(link, caller, deadline)
        try:
            self._connect(link, deadline)
        except BaseException:
            self._drop(link)
            raise
        return link

    def _new_link(self, moment: float | None = None) -> Link | None:
        """A link still to be connected, if there may be one more. Under the mutex.

        moment: now, by any clock; counting weak references at every call of a crowd would cost too much. None:
            count in any case.
        """
        if moment is not None and moment < self._full_until:
            return None
        if len(self._links) >= self._size:
            if moment is not None:
                self._full_until = moment + RECOUNT
            return None
        link = Link(self._timeout)
        link.generation = self._generation
        self._links.add(link)
        return link

    # --- the queue ----------------------------------------------------------------------------------------------

    def _wait(self, caller: _Caller, deadline: float) -> None:
        """Until the caller leads or is done. Raises Lost after the deadline."""
        try:
            if caller.wake.acquire(timeout=max(0.0, deadline - time.monotonic())):
                return
        except BaseException:
            self._leave(caller)
            raise
        state = self._leave(caller)
        if state != DONE:
            raise Lost("timeout" if state == RIDES else "crowded", sent=state == RIDES)

    def _leave(self, caller: _Caller) -> int:
        """Give up waiting; what was being handed to this caller goes to the next."""
        with self._mutex:
            state = caller.state
            if state == WAITS:
                self._queue.remove(caller)
        if state == LEADS:
            assert caller.link is not None
            if caller.link.sock is not None:
                self._give_back(caller.link)
            else:
                self._drop(caller.link)
        return state

    def _hand_over(self) -> None:
        """Idle links to those who wait."""
        with self._mutex:
            while self._queue:
                try:
                    link = self._idle.pop()
                except IndexError:
                    return
                self._promote(self._queue.popleft(), link)

    def _call_next(self) -> None:
        """A place for a link became free: who waits longest gets it, and connects."""
        with self._mutex:
            if self._queue and (link := self._new_link()) is not None:
                self._promote(self._queue.popleft(), link)

    def _promote(self, caller: _Caller, link: Link) -> None:
        caller.link = link
        caller.state = LEADS
        caller.wake.release()

    def _lead(self, link: Link, caller: _Caller, deadline: float) -> list[Reply]:
        """Do one's own exchange and those of all that wait, over a link that was handed over."""
        try:
            riders = self._take_riders(len(caller.data))
            if not riders:
                replies = link.exchange(caller.data, caller.count, deadline, False)
            else:
                replies = self._carry(link, caller, riders, deadline)
        except BaseException as error:
            self._part_with(link, error)
            raise
        self._give_back(link)
        return replies

    def _take_riders(self, size: int) -> list[_Caller]:
        riders: list[_Caller] = []
        if not self._queue:
            return riders
        with self._mutex:
            while self._queue and len(riders) < BATCH and size < BATCH_BYTES:
                rider = self._queue.popleft()
                rider.state = RIDES
                size += len(rider.data)
                riders.append(rider)
        return riders

    @staticmethod
    def _carry(link: Link, caller: _Caller, riders: list[_Caller], deadline: float) -> list[Reply]:
        waiting = deque(riders)
        try:
            data = b"".join([caller.data, *[rider.data for rider in riders]])
            count = caller.count + sum([rider.count for rider in riders])
            replies = link.exchange(data, count, deadline, False)
            start = caller.count
            while waiting:
                rider = waiting[0]
                rider.replies = replies[start : start + rider.count]
                start += rider.count
                rider.state = DONE
                waiting.popleft()
                rider.wake.release()
            return replies[: caller.count]
        finally:
            for rider in waiting:  # none but after an error or an interruption
                rider.replies = Lost("closed")
                rider.state = DONE
                rider.wake.release()

    # --- links come back, or do not -----------------------------------------------------------------------------

    def _give_back(self, link: Link) -> None:
        if link.generation != self._generation:
            self._drop(link)
            return
        self._idle.append(link)
        if self._queue:
            self._hand_over()

    def _part_with(self, link: Link, error: BaseException) -> None:
        """After a failure. When the server closed one, it was restarted, and those that rest are dead as well: a
        retry shall not find one of them."""
        self._drop(link)
        if isinstance(error, Lost) and error.reason == "closed":
            self._drop_idle()

    def _drop(self, link: Link) -> None:
        link.close()
        with self._mutex:
            self._links.discard(link)
            self._full_until = 0.0
        if self._queue:
            self._call_next()

    # --- the end ------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close all links: idle ones now, busy ones when they come back. The pool stays usable."""
        self._generation += 1
        self._drop_idle()

    def _drop_idle(self) -> None:
        while self._idle:
            try:
                link = self._idle.pop()
            except IndexError:
                return
            self._drop(link)

    @property
    def size(self) -> int:
        """Links that are open, or being opened."""
        with self._mutex:
            return len(self._links)

    def forget(self) -> None:
        """After a fork, in the child: the connections are the parent's. Nothing is sent over them."""
        links = list(self._links)
        self._start_empty()
        for link in links:
            link.close()


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def _after_fork() -> None:
    for pool in list(_pools):
        pool.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
