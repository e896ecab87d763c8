"""Rules 4, 5 and 11 under real concurrency, and in every order that two clients can take their steps in."""

import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import ClassVar

import pytest

from ...errors import SessionGone
from ...session import Session
from ..kit import PATIENCE, TTL, Kit
from ..schedules import Schedule, Step, World, describe, schedules

__all__ = ["InterleavingRules", "ProcessRules", "ThreadRules"]


class InterleavingRules(Kit):
    """V5, R1, R2, S5: see schedules.py for what "every" means."""

    def test_every_interleaving_of_two_clients_ends_as_it_must(self) -> None:
        self.run(self._play_all(grace=False))

    def test_every_interleaving_with_grace_ends_as_it_must(self) -> None:
        self.needs_grace()
        self.run(self._play_all(grace=True))

    async def _play_all(self, *, grace: bool) -> None:
        for schedule in schedules(self.max_steps, grace=grace):
            await Play(self, schedule, grace).run()


class Play:
    """One schedule, carried out on the storage and on the reference model side by side."""

    def __init__(self, kit: Kit, schedule: Schedule, grace: bool) -> None:
        self.kit = kit
        self.schedule = schedule
        self.world = World(grace)
        self.ids: dict[int, str] = {}  # the model's name of an id -> the id
        self.sessions: list[Session | None] = [None, None]
        self.done = 0

    async def run(self) -> None:
        await self.begin()
        for number, step in enumerate(self.schedule, 1):
            self.done = number
            self.kit.clock.advance(1.5)  # long enough for a touch to be one, short enough for grace
            await self.take(step, number)
        await self.compare_what_is_stored()

    async def begin(self) -> None:
        session = self.kit.manager.new()
        session.set_map({"a": 0, "b": 0, "both": 0})
        await self.kit.steps.save(session)
        self.ids[0] = session.id

    async def take(self, step: Step, number: int) -> None:
        lives = self.world.step(step, number)
        client = self.world.clients[step.client]
        try:
            await self.act(step, number)
        except SessionGone:
            self.expect(not lives, "raised SessionGone, though the session lives")
        else:
            self.expect(lives, "did not raise SessionGone, though the session is gone")
        session = self.sessions[step.client]
        assert session is not None
        if client.name is not None and client.name not in self.ids:
            self.expect(session.id not in self.ids.values(), "was given an id that was used before")
            self.ids[client.name] = session.id
        self.expect(session.get_map() == client.view(), f"sees {session.get_map()}, not {client.view()}")
        self.expect(session.is_new == (client.base is None), f"calls its session new: {session.is_new}")

    async def act(self, step: Step, number: int) -> None:
        session = self.sessions[step.client]
        if step.op == "load" or session is None:
            cookie = self.cookies[step.client]
            session = self.sessions[step.client] = self.kit.manager.new(cookie)
        match step.op:
            case "load":
                await self.kit.steps.load(session)
            case "set":
                session.set_map(self.world.clients[step.client].pending)
            case "touch" | "save":
                await self.kit.steps.save(session)
            case "destroy":
                await self.kit.steps.destroy(session)
            case "regenerate":
                await self.kit.steps.rotate(session, not self.world.grace)

    @property
    def cookies(self) -> tuple[str, str]:
        first, second = (client.cookie for client in self.world.clients)
        return ("" if first is None else self.ids[first]), ("" if second is None else self.ids[second])

    async def compare_what_is_stored(self) -> None:
        """Every id that ever was finds what it must find; then all is destroyed, to make room."""
        kit = self.kit
        handles = []
        for name, session_id in self.ids.items():
            session = kit.manager.new(session_id)
            await kit.steps.load(session)
            found = None if session.is_new else session.get_map()
            wanted = self.world.stored(name)
            self.expect(found == wanted, f"left {found} under id {name}, not {wanted}")
            handles.append(session)
        for session in handles:
            if not session.is_new:
                await kit.steps.destroy(session)

    def expect(self, kept: bool, complaint: str) -> None:
        if not kept:
            played = self.schedule[: self.done]
            who = f"client {'AB'[played[-1].client]} in its last step " if played else ""
            pytest.fail(f"after [{describe(played)}] {who}{complaint}")


class ThreadRules(Kit):
    threads: ClassVar[int] = 4
    rounds: ClassVar[int] = 10
    """Commits of each thread."""

    def writer(self, session_id: str, name: str) -> Callable[[], None]:
        """A job: one key of its own after the other, each in a request of its own."""

        def write() -> None:
            for number in range(self.rounds):
                self.write(session_id, **{f"{name}-{number}": number})

        return write

    def written(self, *names: str) -> dict[str, int]:
        return {f"{name}-{number}": number for name in names for number in range(self.rounds)}

    def test_threads_that_write_different_keys_lose_none(self) -> None:
        """R2, R32"""
        session_id = self.stored(user="anna")
        names = [f"thread-{number}" for number in range(self.threads)]
        self.in_threads(*(self.writer(session_id, name) for name in names))
        assert self.read(session_id) == {"user": "anna", **self.written(*names)}

    def test_threads_with_sessions_of_their_own_see_only_those(self) -> None:
        """V11, R32"""
        ids = [self.stored(owner=number) for number in range(self.threads)]

        def own(number: int) -> None:
            for turn in range(self.rounds):
                self.write(ids[number], turn=turn)
                assert self.read(ids[number]) == {"owner": number, "turn": turn}

        self.in_threads(*(partial(own, number) for number in range(self.threads)))

    def test_threads_that_share_one_session_object_lose_no_write(self) -> None:
        """Rule 11"""
        session = self.open(self.stored(user="anna"))

        def work(name: str) -> None:
            for number in range(self.rounds):
                session[f"{name}-{number}"] = number

        names = [f"thread-{number}" for number in range(self.threads)]
        self.in_threads(*(partial(work, name) for name in names))
        self.save(session)
        assert self.read(session.id) == {"user": "anna", **self.written(*names)}

    def test_of_threads_that_begin_one_session_none_is_lost(self) -> None:
        """R1: one creates it, the others join."""
        for turn in range(self.rounds):
            chosen = f"a-chosen-id-{turn}"
            self.in_threads(*(partial(self.stored_as, chosen, **{f"by-{n}": n}) for n in range(self.threads)))
            assert self.read(chosen) == {f"by-{n}": n for n in range(self.threads)}

    def test_no_thread_brings_back_what_another_destroyed(self) -> None:
        """V5, R1, R32"""
        for _ in range(2 * self.rounds):
            session_id = self.stored(user="anna")
            begun = threading.Event()
            late = partial(self.write_until_gone, session_id, begun)
            self.in_threads(late, late, partial(self.destroy_when, begun, session_id))
            assert self.read(session_id) is None

    def write_until_gone(self, session_id: str, begun: threading.Event) -> None:
        with suppress(SessionGone):
            for number in range(1000):
                session = self.open(session_id)
                if session.is_new:
                    return
                session["page"] = number
                self.save(session)
                begun.set()
        begun.set()

    def destroy_when(self, begun: threading.Event, session_id: str) -> None:
        begun.wait(PATIENCE)
        self.destroy(self.manager.new(session_id))

    def test_one_of_many_rotations_wins(self) -> None:
        """S5, R32: one session never becomes two."""
        for _ in range(self.rounds):
            session_id = self.stored(user="anna")
            sessions = [self.open(session_id) for _ in range(self.threads)]
            fresh: list[str] = []
            self.in_threads(*(partial(self.note_rotation, session, fresh) for session in sessions))
            assert len(fresh) == 1
            assert self.read(fresh[0]) == {"user": "anna"}
            assert self.read(session_id) is None

    def note_rotation(self, session: Session, fresh: list[str]) -> None:
        with suppress(SessionGone):
            fresh.append(self.rotate(session))

    def test_a_commit_beside_a_rotation_is_kept_or_refused(self) -> None:
        """R2, S5, R32: never reported as done and lost."""
        for _ in range(self.rounds):
            session_id = self.stored(user="anna")
            writer, rotating = self.open(session_id), self.open(session_id)
            writer["page"] = 1
            kept: list[bool] = []
            self.in_threads(partial(self.note_commit, writer, kept), partial(self.rotate, rotating))
            left = {"user": "anna", "page": 1} if kept == [True] else {"user": "anna"}
            assert self.read(rotating.id) == left

    def note_commit(self, session: Session, kept: list[bool]) -> None:
        try:
            self.save(session)
            kept.append(True)
        except SessionGone:
            kept.append(False)

    def test_a_destroy_beside_a_rotation_with_grace_ends_the_session(self) -> None:
        """V5, S23: whichever comes first, the old id leads to the session, so a logout by it is one."""
        self.needs_grace()
        for _ in range(5 * self.rounds):
            session_id = self.stored(user="anna")
            rotating, leaving = self.open(session_id), self.open(session_id)
            self.in_threads(partial(self.rotate_if_there, rotating), partial(self.destroy, leaving))
            assert self.read(rotating.id) is None
            assert self.read(session_id) is None

    def rotate_if_there(self, session: Session) -> None:
        with suppress(SessionGone):
            self.rotate(session, delete_old=False)


class ProcessRules(Kit):
    processes: ClassVar[int] = 4
    keys: ClassVar[int] = 10
    """Commits of each process."""

    def test_a_forked_child_can_use_the_storage(self) -> None:
        """Rule 11, R30: locks, threads, connections and random ids are its own."""
        self.stored(user="anna")

        def child() -> None:
            session_id = self.stored(user="bert")
            self.write(session_id, page=1)
            assert self.read(session_id) == {"user": "bert", "page": 1}

        self.in_processes(child)
        assert self.read(self.stored(user="carl")) == {"user": "carl"}

    def needs_processes(self) -> None:
        if not self.shared_between_processes:
            pytest.skip("shared_between_processes = False")

    def test_processes_that_write_different_keys_lose_none(self) -> None:
        """R2, R31"""
        self.needs_processes()
        session_id = self.stored(user="anna")

        def child(number: int) -> None:
            for key in range(self.keys):
                self.write(session_id, **{f"{number}-{key}": key})

        self.in_processes(*(partial(child, number) for number in range(self.processes)))
        wanted = {f"{number}-{key}": key for number in range(self.processes) for key in range(self.keys)}
        assert self.read(session_id) == {"user": "anna", **wanted}

    def test_a_process_sees_what_another_committed(self) -> None:
        """R31"""
        self.needs_processes()
        session_id = self.stored(user="anna")
        assert self.read(session_id) == {"user": "anna"}
        self.in_processes(partial(self.write, session_id, user="bert"))
        assert self.read(session_id) == {"user": "bert"}

    def test_a_process_does_not_bring_back_what_another_destroyed(self) -> None:
        """V5, R31"""
        self.needs_processes()
        session = self.open(self.stored(user="anna"))
        session["page"] = 1
        self.in_processes(lambda: self.destroy(self.open(session.id)))
        with pytest.raises(SessionGone):
            self.save(session)
        assert self.read(session.id) is None

    def test_a_process_does_not_revive_a_rotated_id_of_another(self) -> None:
        """S5, R31"""
        self.needs_processes()
        session = self.open(self.stored(user="anna"))
        session["page"] = 1
        self.in_processes(lambda: self.rotate(self.open(session.id)))
        with pytest.raises(SessionGone):
            self.save(session)
        assert self.read(session.id) is None

    def test_a_touch_of_one_process_keeps_the_session_alive_for_all(self) -> None:
        """S6, R31"""
        self.needs_processes()
        self.needs_sliding()
        session_id = self.stored(user="anna")
        self.clock.advance(TTL / 2)

        def child() -> None:
            assert self.exists(session_id)
            self.storage.close()  # what touches are still to be written, is written now

        self.in_processes(child)
        self.clock.advance(TTL * 0.75)
        assert self.read(session_id) == {"user": "anna"}
