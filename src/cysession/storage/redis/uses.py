"""Uses: those that were noted are written, together and within a second; see touches.py."""

import asyncio
import atexit
import contextlib
import logging
import weakref
from collections.abc import Iterable
from typing import Any

from cysession.errors import StorageMisconfigured, StorageUnavailable
from cysession.storage import users
from cysession.storage.driver import Driver

from .asking import Flow
from .index import UserIndex
from .records import Request, command
from .touches import EVERY, Touch

__all__ = ["Uses"]

log = logging.getLogger("cysession.storage")


class Uses(UserIndex):
    """The writing of noted uses, by a thread or by a timer of an event loop."""

    _every = EVERY

    def __init__(self, source: Any, **options: Any) -> None:
        self._driver = Driver("cysession-redis", self._write_touches)
        self._inspected = False
        super().__init__(source, **options)
        _writers.add(self)

    def _forget(self) -> None:
        super()._forget()
        self._timers: dict[asyncio.AbstractEventLoop, asyncio.TimerHandle] = {}
        self._writing: set[asyncio.Task[None]] = set()

    def _arrange_writing(self) -> None:
        """Within a second: by a timer of the running event loop, or by a thread where there is none."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._driver.start()
            return
        if loop not in self._timers:
            for other in list(self._timers):  # loops of other threads come and go meanwhile
                if other.is_closed():
                    self._timers.pop(other, None)
            self._timers[loop] = loop.call_later(self._every, self._begin_writing, loop)

    def _begin_writing(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timers.pop(loop, None)
        task = loop.create_task(self._awrite_quietly())
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def _awrite_quietly(self) -> None:
        try:
            await self._arun(self._write_all())
        except (StorageUnavailable, StorageMisconfigured):
            self._arrange_writing()
            return
        with contextlib.suppress(StorageUnavailable, StorageMisconfigured):
            await self._arun(self._inspect())

    def _inspect(self) -> Flow[None]:
        """Look once whether the server may throw sessions away; not every user may ask that."""
        if self._inspected:
            return
        self._inspected = True
        reply = yield command(self._prefix, b"INFO", b"memory")
        lines = reply.split(b"\r\n") if type(reply) is bytes else []
        told = {name: value for name, _, value in (line.partition(b":") for line in lines)}
        policy = told.get(b"maxmemory_policy", b"").decode("ascii", "replace")
        if policy not in ("", "noeviction") and told.get(b"maxmemory") != b"0":
            log.warning(
                "Redis may evict live sessions and log users out: its maxmemory-policy is %s; "
                "sessions need noeviction, on a server of their own if other data are to be evicted",
                policy,
            )

    def _write_touches(self) -> float:
        """A step of the thread."""
        wait = self._touches.due_in(self._every)
        if wait > 0:
            return wait
        with contextlib.suppress(StorageUnavailable, StorageMisconfigured):
            self._run(self._write_all())
            self._run(self._inspect())
        return self._every

    def flush(self) -> None:
        """Write the noted uses now."""
        self._run(self._write_all())

    async def aflush(self) -> None:
        await self._arun(self._write_all())

    def _write_all(self) -> Flow[None]:
        while touches := self._touches.take():
            try:
                yield from self._touch_now(touches)
            except BaseException:
                self._touches.put_back(touches)
                raise

    def _touch_now(self, touches: Iterable[Touch]) -> Flow[None]:
        now, asked = self.now_ns(), list[Request]()
        for place, stored, used, ttl in touches:
            life = self._life(stored, ttl, now, used)
            if life <= 0:
                continue
            asked.append(self._layout.touch(place, stored, life, None if self.clock is None else used))
            user = stored.record.get(users.USER_KEY)
            if isinstance(user, str):
                idle = stored.record.ttl or ttl
                asked.append(self._note_request(self._index(user), place.name, used, idle))
        if asked:
            yield asked
            self._touches.written += len(asked)

    # ---- the end -----------------------------------------------------------------------------------------

    def close(self) -> None:
        """Write the noted uses and close the connections. A server that is away loses them; nothing is raised."""
        self._driver.stop()
        with contextlib.suppress(StorageUnavailable, StorageMisconfigured):
            self.flush()
        self._client.close()

    async def aclose(self) -> None:
        self._driver.stop()
        loop = asyncio.get_running_loop()
        if (timer := self._timers.pop(loop, None)) is not None:
            timer.cancel()
        if under_way := {task for task in list(self._writing) if task.get_loop() is loop}:
            await asyncio.wait(under_way)
        with contextlib.suppress(StorageUnavailable, StorageMisconfigured):
            await self.aflush()
        await self._client.aclose()


_writers: "weakref.WeakSet[Uses]" = weakref.WeakSet()


def _write_at_exit() -> None:
    for storage in list(_writers):
        if len(storage._touches):
            with contextlib.suppress(Exception):
                storage.flush()


atexit.register(_write_at_exit)
