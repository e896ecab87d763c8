"""What the rules of the contract stand on: a storage of the test's own, a clock, and the steps of a request.

The rules are written once, in terms of `open`, `save`, `rotate` and so on. `Steps` carries these out on the
calling thread; `AsyncSteps` awaits the async twins on an event loop. That is the whole difference between the
two contracts.
"""

import multiprocessing
import sys
import threading
import warnings
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

import pytest

from ..ids import new_id
from ..manager import Manager, SessionInfo
from ..session import Delta, Record, Session
from ..storage import Storage
from .clock import FakeClock
from .faults import FaultyStorage

__all__ = ["TTL", "Kit", "Steps"]

T = TypeVar("T")

TTL: Final = 1000  # idle seconds of the kit's managers: whole, so that "at the deadline" is exact
PATIENCE: Final = 60.0  # seconds until a thread or a process that hangs is called a deadlock


class Steps:
    """The calls that may talk to a storage: those of a session, and the record protocol below them."""

    async def load(self, session: Session) -> None:
        session.load()

    async def save(self, session: Session) -> None:
        session.save()

    async def close(self, session: Session) -> None:
        session.close()

    async def destroy(self, session: Session) -> None:
        session.destroy()

    async def rotate(self, session: Session, delete_old: bool) -> str:
        return session.regenerate_id(delete_old)

    async def load_record(self, storage: Storage, session_id: str, ttl: int) -> Record | None:
        return storage.load_record(session_id, ttl)

    async def touch_record(self, storage: Storage, session_id: str, record: Record, ttl: int) -> bool:
        return storage.touch_record(session_id, record, ttl)

    async def create_record(self, storage: Storage, session_id: str, record: Record, ttl: int) -> bool:
        return storage.create_record(session_id, record, ttl)

    async def commit_record(
        self, storage: Storage, session_id: str, base: Record, delta: Delta, ttl: int
    ) -> Record | None:
        return storage.commit_record(session_id, base, delta, ttl)

    async def delete_record(self, storage: Storage, session_id: str) -> bool:
        return storage.delete_record(session_id)

    async def rename_record(
        self, storage: Storage, old_id: str, new_id: str, base: Record, ttl: int, grace: int
    ) -> Record | None:
        return storage.rename_record(old_id, new_id, base, ttl, grace)

    async def is_current(self, storage: Storage, session_id: str) -> bool:
        return storage.is_current(session_id)

    async def peek_record(self, storage: Storage, session_id: str, ttl: int) -> Record | None:
        return storage.peek_record(session_id, ttl)

    async def modify(self, session: Session, key: str, change: Callable[[Any], Any], default: Any) -> Any:
        return session.modify(key, change, default)

    async def sessions_of(self, manager: Manager, user: str) -> list[SessionInfo]:
        return manager.sessions_of(user)

    async def revoke(
        self, manager: Manager, user: str, handles: tuple[str, ...], keep: Session | None
    ) -> int:
        return manager.revoke(user, *handles, keep=keep)


@contextmanager
def _on_fire(storage: Storage) -> Iterator[None]:
    def fail(*_: object, **__: object) -> None:
        raise OSError("the disk is on fire")

    with pytest.MonkeyPatch.context() as patch:
        for name in storage.overrides:
            patch.setattr(storage, name, fail)
        yield


class Kit:
    """One test: a storage from `make_storage`, managers over it, and a clock."""

    # ---- what a storage cannot do: overridden by its contract class --------------------------------------

    max_steps: ClassVar[int] = 8
    """Length of the interleavings of two clients. 8 makes 75,000 schedules, seconds for a storage in memory;
    6 makes 17,000 and 5 makes 5,000, for a storage that takes more than 20 us a step."""

    follows_clock: ClassVar[bool] = True
    """Deadlines are measured on `now_ns()`. False: on a clock of its own (a server's), which no test can
    turn; the rules about idle expiry are skipped then. `max_age` is checked all the same."""

    millisecond_expiry: ClassVar[bool] = True
    """Deadlines are kept to the millisecond. False: to the second."""

    slides_on_use: ClassVar[bool] = True
    """A read begins the idle time anew. False: idle time counts from the last write (no `update_ttl`)."""

    supports_grace: ClassVar[bool] = True
    """`regenerate_id(delete_old=False)` keeps the old id alive for the manager's `grace`."""

    shared_between_processes: ClassVar[bool] = False
    """Commits of several processes to one storage lose nothing."""

    # ---- what a contract class says ----------------------------------------------------------------------

    def make_storage(self) -> Storage:
        """A new, empty storage. `self.directory` is a fresh directory, if it needs one."""
        raise NotImplementedError("a storage contract needs make_storage()")

    def teardown_storage(self, storage: Storage) -> None:
        """The test is over."""
        storage.close()

    def raw_dump(self, storage: Storage) -> bytes | None:
        """All that the storage keeps outside this process, as bytes, to look for ids in; None: nothing.

        By default whatever `storage.raw_dump()` returns, if it has such a method.
        """
        dump = getattr(storage, "raw_dump", None)
        return None if dump is None else bytes(dump())

    def corrupt_record(self, storage: Storage, session_id: str) -> bool:
        """Damage the stored bytes of this session, if there are such bytes. False: cannot be done here."""
        return False

    def out_of_order(self, storage: Storage) -> AbstractContextManager[object] | None:
        """While this context lasts, whatever the storage reads or writes fails; None: cannot be done here.

        By default the methods of a storage that does not bring the record protocol itself raise OSError.
        """
        if type(storage).load_record is not Storage.load_record:
            return None
        return _on_fire(storage)

    # ---- the life of a test ------------------------------------------------------------------------------

    steps: Steps = Steps()
    clock: FakeClock
    storage: Storage
    manager: Manager

    @pytest.fixture(autouse=True)
    def _storage_contract(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        with self.running(lambda: tmp_path_factory.mktemp("storage")):
            yield

    @contextmanager
    def running(self, make_directory: Callable[[], Path]) -> Iterator[None]:
        """Everything a rule needs, for as long as it runs."""
        self._make_directory = make_directory
        self.clock = FakeClock()
        self.clock.advance(0.5)  # a storage that counts whole seconds is to be found out
        self.storage = self.make_storage()
        try:
            self.manager = self.new_manager()
            yield
        finally:
            self.teardown_storage(self.storage)

    _make_directory: Callable[[], Path]

    @cached_property
    def directory(self) -> Path:
        """A fresh directory of this test's own, made when it is first asked for."""
        return self._make_directory()

    def new_manager(
        self,
        *,
        ttl: float | timedelta = TTL,
        storage: Storage | None = None,
        max_age: float | None = None,
        strict: bool = True,
        id_func: Callable[[], str] | None = None,
        max_bytes: int = 65536,
        grace: float = 30,
        max_per_user: int = 0,
    ) -> Manager:
        """A manager over the storage under test, or a wrapper of it, on the test's clock."""
        return Manager(
            ttl,
            storage if storage is not None else self.storage,
            max_age=max_age,
            strict=strict,
            id_func=id_func,
            max_bytes=max_bytes,
            grace=grace,
            clock=self.clock,
            max_per_user=max_per_user,
        )

    def spy(self) -> FaultyStorage:
        """The storage under test behind one that counts its steps and can fail: the same sessions."""
        return FaultyStorage(self.storage)

    # ---- steps of a request ------------------------------------------------------------------------------

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Carry out a coroutine of `Steps`: here it never waits for anything."""
        try:
            work.send(None)
        except StopIteration as end:
            value: T = end.value
            return value
        work.close()
        raise RuntimeError("a synchronous step waited")

    def open(self, session_id: str = "", manager: Manager | None = None) -> Session:
        """A started session: what a request that presents this id works with."""
        session = (manager or self.manager).new(session_id)
        self.load(session)
        return session

    def load(self, session: Session) -> None:
        self.run(self.steps.load(session))

    def save(self, session: Session) -> None:
        self.run(self.steps.save(session))

    def close(self, session: Session) -> None:
        self.run(self.steps.close(session))

    def destroy(self, session: Session) -> None:
        self.run(self.steps.destroy(session))

    def rotate(self, session: Session, *, delete_old: bool = True) -> str:
        return self.run(self.steps.rotate(session, delete_old))

    def stored(
        self, data: Mapping[str, Any] | None = None, manager: Manager | None = None, **more: Any
    ) -> str:
        """The id of a new stored session with these data."""
        session = self.open(manager=manager)
        session.set_map({**(data or {}), **more})
        self.save(session)
        return session.id

    def stored_as(self, session_id: str, **data: Any) -> None:
        """Store a session under an id that the server chose."""
        session = self.manager.new()
        session.set_id(session_id)
        self.load(session)
        session.set_map(data)
        self.save(session)

    def read(self, session_id: str, manager: Manager | None = None) -> dict[str, Any] | None:
        """What the next request that presents this id finds; None: no such session."""
        session = self.open(session_id, manager)
        data = session.get_map()
        if session.is_new:
            assert data == {}, "a session without a record shows data"
            return None
        return data

    def record(self, session_id: str) -> Record:
        """The stored record of a session that lives."""
        record = self.run(self.steps.load_record(self.storage, session_id, TTL * 1_000_000_000))
        assert record is not None, "the session is gone"
        return record

    def is_current(self, session_id: str) -> bool:
        """Whether a client that presents this id may be told to keep it."""
        return self.run(self.steps.is_current(self.storage, session_id))

    def exists(self, session_id: str) -> bool:
        return self.read(session_id) is not None

    def write(self, session_id: str, **data: Any) -> None:
        """One request that changes these keys."""
        session = self.open(session_id)
        session.set_map(data)
        self.save(session)

    # ---- time --------------------------------------------------------------------------------------------

    @property
    def tick(self) -> int:
        """The resolution of deadlines, in milliseconds."""
        return 1 if self.millisecond_expiry else 1000

    def wait_almost(self, seconds: float) -> None:
        """Until the last moment at which a deadline in `seconds` has certainly not come."""
        self.clock.advance(seconds, ms=-self.tick)

    def wait_out(self, seconds: float) -> None:
        """Until the first moment at which it certainly has come: then and there, where milliseconds count."""
        self.clock.advance(seconds, ms=0 if self.millisecond_expiry else self.tick)

    def needs_clock(self) -> None:
        if not self.follows_clock:
            pytest.skip("follows_clock = False: its time cannot be turned")

    def needs_sliding(self) -> None:
        self.needs_clock()
        if not self.slides_on_use:
            pytest.skip("slides_on_use = False: only writes begin the idle time anew")

    def needs_grace(self) -> None:
        if not self.supports_grace:
            pytest.skip("supports_grace = False")

    def needs_made_reads(self) -> None:
        """The rule is about direct reads that are made of records, by the base class or by the storage."""
        native = type(self.storage).load_record is not Storage.load_record
        if not native and "get_map" in self.storage.overrides:
            pytest.skip("get_map() is what this storage is made of: it shows what stands beside the data")

    def needs_checked_types(self) -> None:
        if self.storage.any_object:
            pytest.skip("this storage takes any object by reference")

    # ---- threads and processes ---------------------------------------------------------------------------

    def in_threads(self, *jobs: Callable[[], object]) -> None:
        """Run all jobs at once; re-raise what they raise, and call it a deadlock if they do not end."""
        gate = threading.Barrier(len(jobs))
        errors: list[BaseException] = []

        def work(job: Callable[[], object]) -> None:
            try:
                gate.wait(PATIENCE)
                job()
            except BaseException as error:
                errors.append(error)
            finally:
                self.end_of_thread()

        threads = [threading.Thread(target=work, args=(job,), daemon=True) for job in jobs]
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(PATIENCE)
        finally:
            sys.setswitchinterval(interval)
        if errors:
            raise errors[0]
        assert not any(thread.is_alive() for thread in threads), "deadlock: a thread does not come to an end"

    def end_of_thread(self) -> None:
        """Give back what the calling thread needed for its steps."""

    def in_processes(self, *jobs: Callable[[], object]) -> None:
        """Run every job in a forked child of its own, all at once; fail if one of them fails."""
        if "fork" not in multiprocessing.get_all_start_methods():
            pytest.skip("no fork on this platform")
        context = multiprocessing.get_context("fork")
        children = [context.Process(target=self._child, args=(job,), daemon=True) for job in jobs]
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # other threads at a fork: what storages must stand
            for child in children:
                child.start()
        for child in children:
            child.join(PATIENCE)
        stuck = [child for child in children if child.is_alive()]
        for child in stuck:
            child.kill()
            child.join()
        assert not stuck, "deadlock: a child process does not come to an end"
        assert [child.exitcode for child in children] == [0] * len(children), (
            "a child process failed, see its output"
        )

    def _child(self, job: Callable[[], object]) -> None:
        self.begin_child()
        job()

    def begin_child(self) -> None:
        """A forked child starts: what belonged to the parent's threads is not its own."""

    # ---- ids ---------------------------------------------------------------------------------------------

    @staticmethod
    def unknown_id() -> str:
        """An id that looks right and that nobody issued."""
        return new_id()
