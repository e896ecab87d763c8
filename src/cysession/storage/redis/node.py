"""Node: one server (or whatever the sentinels call the master) with its connections of both sides and its breaker.

An exchange is bytes out and a known number of replies back. What the replies say, and whether anything is tried
again, is decided above (client.py).
"""

import asyncio
import contextlib
import os
import socket
import time
import weakref
from collections.abc import AsyncGenerator, Callable, Sequence
from functools import partial
from typing import Any

from cysession.errors import SessionError, StorageUnavailable

from .breaker import Breaker
from .link import Link, Lost, Resolved, describe, look_up, numeric
from .multiplex import Mux
from .near import Bounds, Near
from .pool import Pool
from .source import Address, Handshake, Settings, Source, acredentials_of, credentials_of
from .wire import Reply, pack, pack_many

__all__ = ["Node"]


class Side:
    """What a node has in one event loop."""

    __slots__ = ("connecting", "keeper", "mux")

    def __init__(self) -> None:
        self.mux: Mux | None = None
        self.connecting: asyncio.Task[SessionError | None] | None = None
        self.keeper: AsyncGenerator[None, None] | None = None

    def close(self) -> None:
        if self.mux is not None:
            self.mux.close()
        if self.connecting is not None:
            with contextlib.suppress(RuntimeError):  # its loop may be closed
                self.connecting.cancel()


class Node:
    """Args:
    source: settings, and the sentinels to ask.
    address: of the server; None: ask the sentinels.
    timeout: seconds, for one exchange with connecting and all.
    links: connections of the sync side at most.
    near: of the near-cache that each connection of the async side has; None: there is none.
    """

    def __init__(
        self,
        source: Source,
        address: Address | None,
        timeout: float,
        links: int,
        near: Bounds | None = None,
    ) -> None:
        self.address = address
        self._source = source
        self._sentinels = list(source.addresses) if address is None else []
        self._timeout = timeout
        self._near = near
        self.pool = Pool(self._connect, links, timeout)
        self.fast: tuple[Any, Any] = (None, None)  # the loop that was served last, its mux
        self._sides: dict[asyncio.AbstractEventLoop, Side] = {}
        self._start_breaker()
        _nodes.add(self)

    def _start_breaker(self) -> None:
        self.breaker = Breaker(patience=2 * self._timeout)
        self._last_error: SessionError = StorageUnavailable()

    def __str__(self) -> str:
        return f"Redis at {self.address}" if self.address else f"the Redis master {self._source.service!r}"

    # --- sync ---------------------------------------------------------------------------------------------------

    def exchange(self, data: bytes, count: int, deadline: float, fresh: bool = False) -> list[Reply]:
        """Write `data`, return its `count` replies. Raises Lost, or SessionError if nothing was sent."""
        breaker = self.breaker
        if breaker.failures:
            self._ask_breaker()
        try:
            replies = self.pool.exchange(data, count, deadline, fresh)
        except (Lost, SessionError) as error:
            self._count(error, deadline - self._timeout)
            raise
        if breaker.failures:
            breaker.succeeded()
        return replies

    def _ask_breaker(self) -> None:
        if not self.breaker.admit():
            last = self._last_error
            raise type(last)(f"{last} (not tried again for a moment, after repeated failure)")

    def _count(self, error: Lost | SessionError, began: float) -> None:
        """A connection that ends is no failure of the server, if the next one can be made."""
        if isinstance(error, SessionError):
            self._last_error = error
            self.breaker.failed(began)
        elif error.reason in ("timeout", "garbage"):
            self._last_error = self.explain(error)
            self.breaker.failed(began)

    def explain(self, lost: Lost) -> SessionError:
        """Our own error for a lost connection."""
        unknown = "; if it was a change, whether it was made is unknown" if lost.sent else ""
        what = {
            "timeout": f"{self} did not answer within {self._timeout:g} s",
            "garbage": f"{self} answered what is no reply",
            "crowded": f"too many requests wait for {self}",
        }.get(lost.reason, f"{self} closed the connection")
        return StorageUnavailable(f"{what}{unknown}; try again")

    def _connect(self, link: Link, deadline: float) -> None:
        settings = self._source.settings
        address = self.address or self._ask_sentinels(deadline)
        handshake = Handshake(settings, credentials_of(settings), master=self.address is None)
        link.connect(address, settings, handshake, deadline)

    def _ask_sentinels(self, deadline: float) -> Address:
        for sentinel, until in self._shares(deadline):
            link = Link(self._timeout)
            try:
                settings = self._source.sentinel_settings
                link.connect(sentinel, settings, Handshake(settings, credentials_of(settings)), until)
                (reply,) = link.exchange(self._question(), 1, until, False)
            except (Lost, StorageUnavailable):
                continue
            finally:
                link.close()
            if found := self._believe(sentinel, reply):
                return found
        raise self._no_master()

    # --- sentinels ----------------------------------------------------------------------------------------------

    def _shares(self, deadline: float) -> Sequence[tuple[Address, float]]:
        """Each sentinel with the moment until which it may answer: a hung one must leave time for the others."""
        now = time.monotonic()
        share = (deadline - now) / (len(self._sentinels) + 1)
        return [(s, now + share * (n + 1)) for n, s in enumerate(list(self._sentinels))]

    def _question(self) -> bytes:
        return pack(b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", self._source.service)

    def _believe(self, sentinel: Address, reply: Reply) -> Address | None:
        """The master's address, if that is what was answered; who answered well is asked first the next time."""
        if not isinstance(reply, list) or len(reply) != 2:
            return None
        with contextlib.suppress(ValueError):
            self._sentinels.remove(sentinel)
            self._sentinels.insert(0, sentinel)
        return Address(reply[0].decode(), int(reply[1]))

    def _no_master(self) -> SessionError:
        return StorageUnavailable(f"no sentinel names a master for {self._source.service!r}; try again")

    # --- async --------------------------------------------------------------------------------------------------

    async def aexchange(self, data: bytes, count: int, deadline: float) -> list[Reply]:
        """exchange, awaited."""
        breaker = self.breaker
        if breaker.failures:
            self._ask_breaker()
        mux = await self._amux(deadline)
        if (left := deadline - time.monotonic()) <= 0.0:
            raise Lost("timeout", sent=False)
        try:
            async with asyncio.timeout(left):
                outcome = await mux.send_many(data, count)
        except TimeoutError:
            outcome = Lost("timeout")
        if isinstance(outcome, Lost):
            raise outcome
        if breaker.failures:
            breaker.succeeded()
        return outcome  # type: ignore[no-any-return]

    async def _amux(self, deadline: float) -> Mux:
        """The connection of the running loop; one task connects, all others wait for it. Raises SessionError."""
        loop = asyncio.get_running_loop()
        side = self._sides.get(loop) or await self._new_side(loop)
        if side.mux is None or not side.mux.open:
            task = side.connecting
            if task is None:
                task = side.connecting = loop.create_task(self._fill(loop, side))
            # A caller that is cancelled or has no more time leaves the task alone: others wait for it too.
            done, _ = await asyncio.wait({task}, timeout=max(0.0, deadline - time.monotonic()))
            if not done or task.cancelled():
                raise describe(self.address or Address(str(self), 0), TimeoutError())
            if (error := task.result()) is not None:
                raise type(error)(str(error))
            assert side.mux is not None
        self.fast = (loop, side.mux)
        return side.mux

    async def _new_side(self, loop: asyncio.AbstractEventLoop) -> Side:
        for other in list(self._sides):
            if other.is_closed() and (left := self._sides.pop(other, None)) is not None:
                left.close()
        side = self._sides[loop] = Side()
        side.keeper = self._keep(loop, side)
        await anext(side.keeper)
        return side

    async def _keep(self, loop: asyncio.AbstractEventLoop, side: Side) -> AsyncGenerator[None, None]:
        """Suspended as long as the loop lives: `asyncio.run` closes all such generators before it closes the loop,
        which is the one moment when connections that nobody closed can still be closed in good order."""
        try:
            yield
        finally:
            if self._sides.get(loop) is side:
                del self._sides[loop]
            if self.fast[0] is loop:
                self.fast = (None, None)
            side.close()

    async def _fill(self, loop: asyncio.AbstractEventLoop, side: Side) -> SessionError | None:
        """Connect the side. Returns what went wrong, so that no error is lost if nobody waits any more."""
        began = time.monotonic()
        try:
            side.mux = await self._aconnect(loop, lambda mux, reason: self._trouble(side, mux, reason))
        except SessionError as error:
            self._count(error, began)
            return error
        finally:
            side.connecting = None
        return None

    def _trouble(self, side: Side, mux: Mux, reason: str) -> None:
        if side.mux is mux:
            self._count(Lost(reason), time.monotonic() - self._timeout)

    async def _aconnect(self, loop: asyncio.AbstractEventLoop, trouble: Callable[[Mux, str], None]) -> Mux:
        address = self.address
        try:
            async with asyncio.timeout(self._timeout):
                deadline = time.monotonic() + self._timeout
                address = address or await self._aask_sentinels(loop, deadline)
                settings = self._source.settings
                credentials = await acredentials_of(settings)
                tracking = self._near is not None
                handshake = Handshake(settings, credentials, master=self.address is None, tracking=tracking)
                mux = await self._aopen(loop, address, settings, handshake, trouble)
                if self._near is not None:
                    mux.track(self._near)
                return mux
        except (OSError, Lost) as error:
            raise describe(address or self._sentinels[0], error) from None

    async def _aopen(
        self,
        loop: asyncio.AbstractEventLoop,
        address: Address,
        settings: Settings,
        handshake: Handshake,
        trouble: Callable[[Mux, str], None],
    ) -> Mux:
        failure: OSError = OSError("no address")
        for family, where in await _aresolve(loop, address):
            mux = Mux(loop, self._timeout, trouble)
            make = partial(_same, mux)
            try:
                if family == socket.AF_UNIX:
                    await loop.create_unix_connection(make, where)
                else:
                    name = address.host if settings.tls is not None else None
                    await loop.create_connection(
                        make, where[0], where[1], ssl=settings.tls, server_hostname=name
                    )
                    mux.tune(settings)
                replies = await mux.send_many(pack_many(handshake.commands), len(handshake.commands))
                if isinstance(replies, Lost):
                    raise replies
                handshake.judge(replies)
                return mux
            except OSError as error:
                mux.close()
                failure = error
            except BaseException:
                mux.close()
                raise
        raise failure

    async def _aask_sentinels(self, loop: asyncio.AbstractEventLoop, deadline: float) -> Address:
        settings = self._source.sentinel_settings
        for sentinel, until in self._shares(deadline):
            mux = None
            try:
                async with asyncio.timeout(max(0.0, until - time.monotonic())):
                    handshake = Handshake(settings, await acredentials_of(settings))
                    mux = await self._aopen(loop, sentinel, settings, handshake, lambda mux, reason: None)
                    reply = await mux.send(self._question())
            except (OSError, Lost, StorageUnavailable):
                continue
            finally:
                if mux is not None:
                    mux.close()
            if found := self._believe(sentinel, reply):
                return found
        raise self._no_master()

    # --- the near-cache -----------------------------------------------------------------------------------------

    def reader(self) -> Mux | None:
        """The running loop's connection, if there is one and nothing is wrong with it."""
        side = self._sides.get(asyncio.get_running_loop())
        if side is None or (mux := side.mux) is None or not mux.open or self.breaker.failures:
            return None
        return mux

    def nears(self) -> list[Near]:
        """Those of all loops."""
        muxes = [side.mux for side in list(self._sides.values())]
        return [mux.near for mux in muxes if mux is not None and mux.near is not None]

    # --- the end ------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Connect anew from now on: this server is no longer the right one."""
        self.pool.close()
        with contextlib.suppress(RuntimeError):
            side = self._sides.get(asyncio.get_running_loop())
            if side is not None and side.mux is not None:
                side.mux.close()

    def close(self) -> None:
        """Close the connections of the sync side, and those of all loops but running ones of other threads, which
        are told to do so themselves."""
        self.pool.close()
        self.fast = (None, None)
        for loop in list(self._sides):
            side = self._sides.pop(loop, None)
            if side is None:
                continue
            if loop.is_running() and loop is not _running():
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(side.close)
            else:
                side.close()

    async def aclose(self) -> None:
        """close, and what the running loop keeps for us ends too."""
        side = self._sides.pop(asyncio.get_running_loop(), None)
        self.close()
        if side is not None:
            side.close()
            if side.keeper is not None:
                await side.keeper.aclose()

    def forget(self) -> None:
        """After a fork, in the child: loops and connections are the parent's, and are left as they are."""
        _parents.append((self._sides, self.fast))
        self._sides = {}
        self.fast = (None, None)
        self._start_breaker()


def _running() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _same(mux: Mux) -> Mux:
    return mux


async def _aresolve(loop: asyncio.AbstractEventLoop, address: Address) -> Resolved:
    """link.resolve, awaited."""
    if (found := numeric(address)) is not None:
        return found
    answer: asyncio.Future[Resolved | OSError] = loop.create_future()

    def settle(result: Resolved | OSError) -> None:
        if not answer.done():
            answer.set_result(result)

    def done(result: Resolved | OSError) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, result)

    look_up(address, done)
    result = await answer
    if isinstance(result, OSError):
        raise result
    return result


_nodes: weakref.WeakSet[Node] = weakref.WeakSet()
# Objects of the parent's loops, kept from being finalized in the child: a finalizer would write to the parent's
# selector, or warn.
_parents: list[Any] = []


def _after_fork() -> None:
    for node in list(_nodes):
        node.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
