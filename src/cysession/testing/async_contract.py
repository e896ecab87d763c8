"""The storage contract on an event loop: the same rules by the async twins, and a few that only it has."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar, TypeVar

import pytest

from ..errors import SessionGone
from ..manager import Manager, SessionInfo
from ..session import Delta, Record, Session
from ..storage import Storage
from .contract import StorageContract
from .kit import Steps

__all__ = ["AsyncStorageContract"]

T = TypeVar("T")

_left_to_the_parent: list[object] = []


class AsyncSteps(Steps):
    """The async twins of the steps."""

    async def load(self, session: Session) -> None:
        await session.aload()

    async def save(self, session: Session) -> None:
        await session.asave()

    async def close(self, session: Session) -> None:
        await session.aclose()

    async def destroy(self, session: Session) -> None:
        await session.adestroy()

    async def rotate(self, session: Session, delete_old: bool) -> str:
        return await session.aregenerate_id(delete_old)

    async def load_record(self, storage: Storage, session_id: str, ttl: int) -> Record | None:
        return await storage.aload_record(session_id, ttl)

    async def touch_record(self, storage: Storage, session_id: str, record: Record, ttl: int) -> bool:
        return await storage.atouch_record(session_id, record, ttl)

    async def create_record(self, storage: Storage, session_id: str, record: Record, ttl: int) -> bool:
        return await storage.acreate_record(session_id, record, ttl)

    async def commit_record(
        self, storage: Storage, session_id: str, base: Record, delta: Delta, ttl: int
    ) -> Record | None:
        return await storage.acommit_record(session_id, base, delta, ttl)

    async def delete_record(self, storage: Storage, session_id: str) -> bool:
        return await storage.adelete_record(session_id)

    async def rename_record(
        self, storage: Storage, old_id: str, new_id: str, base: Record, ttl: int, grace: int
    ) -> Record | None:
        return await storage.arename_record(old_id, new_id, base, ttl, grace)

    async def is_current(self, storage: Storage, session_id: str) -> bool:
        return await storage.ais_current(session_id)

    async def peek_record(self, storage: Storage, session_id: str, ttl: int) -> Record | None:
        return await storage.apeek_record(session_id, ttl)

    async def modify(self, session: Session, key: str, change: Callable[[Any], Any], default: Any) -> Any:
        return await session.amodify(key, change, default)

    async def sessions_of(self, manager: Manager, user: str) -> list[SessionInfo]:
        return await manager.asessions_of(user)

    async def revoke(
        self, manager: Manager, user: str, handles: tuple[str, ...], keep: Session | None
    ) -> int:
        return await manager.arevoke(user, *handles, keep=keep)


class AsyncStorageContract(StorageContract):
    """Every rule of StorageContract through aload, asave, aclose, adestroy and aregenerate_id.

    Each thread of a test has an event loop of its own: the rules about threads are about several loops here.
    """

    max_steps: ClassVar[int] = 6
    tasks: ClassVar[int] = 16
    cancelled_after: ClassVar[int] = 12
    """Cancellation is tried after 0 to this many turns of the loop."""

    steps = AsyncSteps()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop().run_until_complete(work)

    def _loop(self) -> asyncio.AbstractEventLoop:
        loops = self.__dict__.setdefault("_loops", threading.local())
        if not hasattr(loops, "loop"):
            loops.loop = asyncio.new_event_loop()
        loop: asyncio.AbstractEventLoop = loops.loop
        return loop

    def end_of_thread(self) -> None:
        loop = self._loop()
        loop.run_until_complete(loop.shutdown_asyncgens())  # as asyncio.run does: storages may wait for it
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
        del self.__dict__["_loops"].loop

    def begin_child(self) -> None:
        # Not closed, not even by the collector: the selector in it is still the parent's too.
        _left_to_the_parent.append(self.__dict__.pop("_loops", None))

    def teardown_storage(self, storage: Storage) -> None:
        self.run(storage.aclose())
        self.end_of_thread()

    # ---- what only an event loop has ---------------------------------------------------------------------

    async def _write(self, session_id: str, **data: object) -> None:
        async with self.manager.new(session_id) as session:
            await session.aload()
            session.set_map(data)

    def test_tasks_that_write_different_keys_lose_none(self) -> None:
        """R2"""
        session_id = self.stored(user="anna")

        async def all_at_once() -> None:
            await asyncio.gather(*(self._write(session_id, **{f"task-{n}": n}) for n in range(self.tasks)))

        self.run(all_at_once())
        assert self.read(session_id) == {"user": "anna", **{f"task-{n}": n for n in range(self.tasks)}}

    def test_tasks_with_sessions_of_their_own_see_only_those(self) -> None:
        """V11"""

        async def own(number: int) -> None:
            session = self.manager.new()
            await session.aload()
            session["owner"] = number
            await session.asave()
            again = self.manager.new(session.id)
            await again.aload()
            assert again.get_map() == {"owner": number}

        async def all_at_once() -> None:
            await asyncio.gather(*map(own, range(self.tasks)))

        self.run(all_at_once())

    def test_no_task_brings_back_what_another_destroyed(self) -> None:
        """V5, R1"""
        session_id = self.stored(user="anna")

        async def late(number: int) -> None:
            session = self.manager.new(session_id)
            await session.aload()
            if not session.is_new:
                session["page"] = number
                await session.asave()

        async def all_at_once() -> None:
            destroying = self.manager.new(session_id)
            tasks = [late(number) for number in range(self.tasks)]
            results = await asyncio.gather(
                *tasks[::2], destroying.adestroy(), *tasks[1::2], return_exceptions=True
            )
            for result in results:
                assert result is None or isinstance(result, SessionGone), result

        self.run(all_at_once())
        assert self.read(session_id) is None

    def test_two_saves_of_one_session_at_once_store_it_once(self) -> None:
        """Rule 11: and the id that the client gets is the one that lasts."""
        spy = self.spy()
        spy.turns = 3
        session = self.open(manager=self.new_manager(storage=spy))
        session["user"] = "anna"

        async def both() -> None:
            await asyncio.gather(session.asave(), session.asave())

        self.run(both())
        created = {step.session_id for step in spy.steps if step.name == "create"}
        assert [self.read(session_id) for session_id in created if self.exists(session_id)] == [
            {"user": "anna"}
        ]
        assert self.read(session.id) == {"user": "anna"}

    def test_a_change_while_a_save_is_awaited_is_saved_by_the_next(self) -> None:
        """Rule 11"""
        spy = self.spy()
        spy.turns = 3
        session = self.open(self.stored(user="anna"), self.new_manager(storage=spy))
        session["first"] = 1

        async def change_meanwhile() -> None:
            saving = asyncio.ensure_future(session.asave())
            await asyncio.sleep(0)
            session["second"] = 2
            await saving
            await session.asave()

        self.run(change_meanwhile())
        assert self.read(session.id) == {"user": "anna", "first": 1, "second": 2}

    def test_an_async_with_block_commits(self) -> None:
        session_id = self.stored(user="anna")
        self.run(self._write(session_id, page=1))
        assert self.read(session_id) == {"user": "anna", "page": 1}

    def test_an_exception_in_an_async_with_block_discards(self) -> None:
        """R4"""
        session_id = self.stored(user="anna")

        async def fail() -> None:
            async with self.manager.new(session_id) as session:
                await session.aload()
                session["user"] = "bert"
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            self.run(fail())
        assert self.read(session_id) == {"user": "anna"}

    def test_a_cancelled_commit_is_stored_or_not_and_nothing_in_between(self) -> None:
        """R5: and the next request of the session goes through."""
        for turns in range(self.cancelled_after + 1):
            session_id = self.stored(user="anna")
            session = self.open(session_id)
            session.set_map({"user": "bert", "page": 1})
            self.run(self._cancelled(session, turns))
            assert self.read(session_id) in ({"user": "anna"}, {"user": "bert", "page": 1})
            self.write(session_id, lang="en")
            found = self.read(session_id) or {}
            assert found["lang"] == "en"

    async def _cancelled(self, session: Session, turns: int) -> None:
        task = asyncio.ensure_future(session.asave())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])

    def test_sessions_of_several_event_loops_share_one_storage(self) -> None:
        """Rule 11: each thread of this test runs a loop of its own."""
        session_id = self.stored(user="anna")
        self.in_threads(
            lambda: self.write(session_id, first=1),
            lambda: self.write(session_id, second=2),
        )
        assert self.read(session_id) == {"user": "anna", "first": 1, "second": 2}
