"""A storage that fails on demand: to test what a storage failure does to sessions, adapters and applications.

    storage = FaultyStorage(MemoryStorage())
    storage.fail("commit")                  # the next commit raises StorageUnavailable, nothing is stored
    storage.fail("commit", after=True)      # it is stored, but the answer is lost on the way back
    storage.fail(times=None)                # everything fails until heal()

It also writes down every step that reaches the storage (`steps`), and calls
`on_step(step, session_id)` before each: a test can let another client act between two steps, or count writes.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from ..errors import StorageUnavailable
from ..session import Delta, Record
from ..storage import Storage

__all__ = ["STEPS", "FaultyStorage", "Step"]

StepName = Literal["load", "touch", "create", "commit", "delete", "rename"]
STEPS: Final[tuple[StepName, ...]] = ("load", "touch", "create", "commit", "delete", "rename")
WRITES: Final[frozenset[StepName]] = frozenset({"create", "commit", "delete", "rename"})


class Step(NamedTuple):
    """One call of the record protocol."""

    name: StepName
    session_id: str


@dataclass
class _Fault:
    steps: frozenset[StepName]
    after: bool
    skip: int  # calls that still pass
    times: int | None  # calls that still fail; None: all of them
    error: Callable[[], Exception]


class FaultyStorage(Storage):
    """Passes the record protocol on to another storage, and fails where it is told to."""

    def __init__(self, storage: Storage) -> None:
        self.inner = storage
        self.any_object = storage.any_object
        self.does_io = storage.does_io
        self.steps: list[Step] = []
        self.on_step: Callable[[StepName, str], object] | None = None
        self.turns = 0  # of the event loop that an async step waits before it begins, as for a network
        self._faults: list[_Fault] = []

    # ---- what a test says --------------------------------------------------------------------------------

    def fail(
        self,
        *steps: StepName,
        after: bool = False,
        skip: int = 0,
        times: int | None = 1,
        error: Callable[[], Exception] = StorageUnavailable,
    ) -> None:
        """Let the next `times` calls of these steps (none named: any) raise `error()`; None: until `heal()`.

        `after`: the step is carried out first, as when a network breaks before the answer. `skip`: calls that
        pass before the first one fails.
        """
        unknown = set(steps) - set(STEPS)
        if unknown:
            raise ValueError(f"no such step: {', '.join(sorted(unknown))}; there are {', '.join(STEPS)}")
        self._faults.append(_Fault(frozenset(steps or STEPS), after, skip, times, error))

    def heal(self) -> None:
        """Forget all faults."""
        self._faults.clear()

    @property
    def writes(self) -> list[Step]:
        """The steps that change what is stored; a touch is none of them."""
        return [step for step in self.steps if step.name in WRITES]

    # ---- what happens to a step --------------------------------------------------------------------------

    def _begin(self, name: StepName, session_id: str) -> Exception | None:
        """Raise what has to fail before the step; return what has to be raised after it."""
        self.steps.append(Step(name, session_id))
        if self.on_step is not None:
            self.on_step(name, session_id)
        for fault in list(self._faults):
            if name not in fault.steps:
                continue
            if fault.skip:
                fault.skip -= 1
                continue
            if fault.times is not None:
                fault.times -= 1
                if fault.times <= 0:
                    self._faults.remove(fault)
            if fault.after:
                return fault.error()
            raise fault.error()
        return None

    async def _abegin(self, name: StepName, session_id: str) -> Exception | None:
        for _ in range(self.turns):
            await asyncio.sleep(0)
        return self._begin(name, session_id)

    @staticmethod
    def _end(error: Exception | None) -> None:
        if error is not None:
            raise error

    # ---- the record protocol -----------------------------------------------------------------------------

    def load_record(self, session_id: str, ttl: int) -> Record | None:
        lost = self._begin("load", session_id)
        record = self.inner.load_record(session_id, ttl)
        self._end(lost)
        return record

    def touch_record(self, session_id: str, record: Record, ttl: int) -> bool:
        lost = self._begin("touch", session_id)
        found = self.inner.touch_record(session_id, record, ttl)
        self._end(lost)
        return found

    def create_record(self, session_id: str, record: Record, ttl: int) -> bool:
        lost = self._begin("create", session_id)
        created = self.inner.create_record(session_id, record, ttl)
        self._end(lost)
        return created

    def commit_record(self, session_id: str, base: Record, delta: Delta, ttl: int) -> Record | None:
        lost = self._begin("commit", session_id)
        record = self.inner.commit_record(session_id, base, delta, ttl)
        self._end(lost)
        return record

    def delete_record(self, session_id: str) -> bool:
        lost = self._begin("delete", session_id)
        found = self.inner.delete_record(session_id)
        self._end(lost)
        return found

    def rename_record(self, old_id: str, new_id: str, base: Record, ttl: int, grace: int) -> Record | None:
        lost = self._begin("rename", old_id)
        record = self.inner.rename_record(old_id, new_id, base, ttl, grace)
        self._end(lost)
        return record

    def is_current(self, session_id: str) -> bool:
        lost = self._begin("load", session_id)  # what it is to whoever counts: one read
        current = self.inner.is_current(session_id)
        self._end(lost)
        return current

    def peek_record(self, session_id: str, ttl: int) -> Record | None:
        lost = self._begin("load", session_id)
        record = self.inner.peek_record(session_id, ttl)
        self._end(lost)
        return record

    # ---- the same on an event loop -----------------------------------------------------------------------

    async def aload_record(self, session_id: str, ttl: int) -> Record | None:
        lost = await self._abegin("load", session_id)
        record = await self.inner.aload_record(session_id, ttl)
        self._end(lost)
        return record

    async def atouch_record(self, session_id: str, record: Record, ttl: int) -> bool:
        lost = await self._abegin("touch", session_id)
        found = await self.inner.atouch_record(session_id, record, ttl)
        self._end(lost)
        return found

    async def acreate_record(self, session_id: str, record: Record, ttl: int) -> bool:
        lost = await self._abegin("create", session_id)
        created = await self.inner.acreate_record(session_id, record, ttl)
        self._end(lost)
        return created

    async def acommit_record(self, session_id: str, base: Record, delta: Delta, ttl: int) -> Record | None:
        lost = await self._abegin("commit", session_id)
        record = await self.inner.acommit_record(session_id, base, delta, ttl)
        self._end(lost)
        return record

    async def adelete_record(self, session_id: str) -> bool:
        lost = await self._abegin("delete", session_id)
        found = await self.inner.adelete_record(session_id)
        self._end(lost)
        return found

    async def arename_record(
        self, old_id: str, new_id: str, base: Record, ttl: int, grace: int
    ) -> Record | None:
        lost = await self._abegin("rename", old_id)
        record = await self.inner.arename_record(old_id, new_id, base, ttl, grace)
        self._end(lost)
        return record

    async def ais_current(self, session_id: str) -> bool:
        lost = await self._abegin("load", session_id)
        current = await self.inner.ais_current(session_id)
        self._end(lost)
        return current

    async def apeek_record(self, session_id: str, ttl: int) -> Record | None:
        lost = await self._abegin("load", session_id)
        record = await self.inner.apeek_record(session_id, ttl)
        self._end(lost)
        return record

    # ---- the rest is the other storage's: also how it keeps the indexes of users ---------------------------

    def note_user(self, user: str, session_id: str, ttl: int) -> None:
        self.inner.note_user(user, session_id, ttl)

    def user_sessions(self, user: str) -> list[tuple[str, Record]]:
        return self.inner.user_sessions(user)

    async def anote_user(self, user: str, session_id: str, ttl: int) -> None:
        await self.inner.anote_user(user, session_id, ttl)

    async def auser_sessions(self, user: str) -> list[tuple[str, Record]]:
        return await self.inner.auser_sessions(user)

    def locator(self, session_id: str) -> str:
        return self.inner.locator(session_id)

    def fingerprint(self, session_id: str) -> str:
        return self.inner.fingerprint(session_id)

    def listen(self, listener: Callable[[str, str], object]) -> None:
        self.inner.listen(listener)

    def wall(self, moment: int) -> float:
        return self.inner.wall(moment)

    def now_ns(self) -> int:
        return self.inner.now_ns()

    def use_clock(self, clock: Callable[[], float] | None) -> None:
        self.inner.use_clock(clock)

    def stats(self) -> dict[str, int]:
        return self.inner.stats()

    def close(self) -> None:
        self.inner.close()

    async def aclose(self) -> None:
        await self.inner.aclose()
