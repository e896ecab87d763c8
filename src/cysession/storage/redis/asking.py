"""Asking: a step of the storage, carried out on the calling thread or on an event loop.

Steps are written once, as generators (`Flow`) that ask for requests and are sent the replies, or ask for a pause of
some seconds: `_run` makes the calls on the calling thread, `_arun` awaits them. Every request may be sent twice: what
it has done already, it does not do again. What may have changed a key outdates what near-caches hold of it, whatever
became of the request.
"""

import asyncio
import time
from collections.abc import Generator
from typing import Any, Final, TypeVar

from cysession.storage.base import Storage

from .client import Client
from .records import FOREIGN, Place, Request
from .touches import MILLISECOND
from .wire import ErrorReply, Template, WrongType, explain

__all__ = ["Asking", "Flow", "Reads", "loading"]

T = TypeVar("T")
Flow = Generator[Request | list[Request] | float, Any, T]

Reads = dict[bytes, list["asyncio.Future[Any]"]]
"""Keys that are being read, and who else waits for them."""

AGAIN: Final = object()  # in place of a reply: whoever was to read gave up
PTTL: Final = Template(b"PTTL", Template.HOLE)


def loading(place: Place) -> Request:
    """Asks for a whole session."""
    return Request(place.key, place.load)


class Asking(Storage):
    """Requests and their replies."""

    _client: Client
    _near: bool  # whether loads may be answered by a near-cache
    _shared_reads: int
    _reads: dict[asyncio.AbstractEventLoop, Reads]

    # ---- steps -------------------------------------------------------------------------------------------

    def _run(self, flow: Flow[T]) -> T:
        """Carry out a step on this thread."""
        answer = None
        while True:
            try:
                request = flow.send(answer)
            except StopIteration as end:
                value: T = end.value
                return value
            if isinstance(request, Request):
                answer = self._ask(request)
            elif isinstance(request, list):
                answer = self._ask_all(request)
            else:
                time.sleep(request)
                answer = None

    async def _arun(self, flow: Flow[T]) -> T:
        """Carry out a step on the running event loop."""
        answer = None
        while True:
            try:
                request = flow.send(answer)
            except StopIteration as end:
                value: T = end.value
                return value
            if isinstance(request, Request):
                answer = await self._aask(request)
            elif isinstance(request, list):
                answer = await self._aask_all(request)
            else:
                await asyncio.sleep(request)
                answer = None

    def _ask(self, request: Request) -> Any:
        try:
            return self._client.call_packed(request.key, request.packed, retry=True)
        except WrongType:
            return FOREIGN
        finally:
            if self._near:
                self._outdate([request])

    async def _aask(self, request: Request) -> Any:
        try:
            return await self._client.acall_packed(request.key, request.packed, retry=True)
        except WrongType:
            return FOREIGN
        finally:
            if self._near:
                self._outdate([request])

    def _ask_all(self, requests: list[Request]) -> list[Any]:
        """In one round trip, but for a cluster's."""
        if self._client.is_cluster:
            return [self._ask(request) for request in requests]
        try:
            replies = self._client.call_packed_many(
                requests[0].key, _packed(requests), len(requests), retry=True, raise_errors=False
            )
        finally:
            self._outdate(requests)
        return _judged(replies)

    async def _aask_all(self, requests: list[Request]) -> list[Any]:
        if self._client.is_cluster:
            return await asyncio.gather(*map(self._aask, requests))
        try:
            replies = await self._client.acall_packed_many(
                requests[0].key, _packed(requests), len(requests), retry=True, raise_errors=False
            )
        finally:
            self._outdate(requests)
        return _judged(replies)

    def _outdate(self, requests: list[Request]) -> None:
        """What may have changed a key, whatever became of it."""
        if self._near:
            for request in requests:
                if request.changes:
                    self._client.outdate(request.key)

    # ---- reads that tasks share --------------------------------------------------------------------------

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


def _packed(requests: list[Request]) -> bytes:
    return b"".join([request.packed for request in requests])


def _judged(replies: list[Any]) -> list[Any]:
    """What each request would have been answered alone. Raises SessionError."""
    for n, reply in enumerate(replies):
        if type(reply) is ErrorReply:
            error = explain(reply)
            if not isinstance(error, WrongType):
                raise error
            replies[n] = FOREIGN
    return replies
