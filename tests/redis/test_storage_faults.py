"""The Redis storages over a network that fails: nobody sees another's session, and what was acknowledged is there."""

import asyncio
import contextlib
import random
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import uvloop

from cysession import Manager, RedisHashStorage, RedisStorage, SessionError, StorageFull, StorageUnavailable
from tests.redis.servers import Proxy, RedisServer

pytestmark = pytest.mark.redis

KINDS = {"string": RedisStorage, "hash": RedisHashStorage}
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
TASKS, TURNS = 24, 40


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> type[RedisStorage]:
    return KINDS[request.param]


class Storm:
    """Tasks with a session of their own each, whose requests are cut off, held up and cancelled."""

    def __init__(self, manager: Manager, proxy: Proxy) -> None:
        self.manager = manager
        self.proxy = proxy
        self.random = random.Random(7)
        self.acknowledged = [0] * TASKS
        self.tried = [0] * TASKS
        self.failures = 0

    async def run(self) -> None:
        ids = [await self.begin(number) for number in range(TASKS)]
        chaos = asyncio.ensure_future(self.chaos())
        await asyncio.gather(*(self.work(number, session_id) for number, session_id in enumerate(ids)))
        chaos.cancel()
        self.proxy.delay = 0.0
        for number, session_id in enumerate(ids):
            found = await self.read(session_id)
            assert found["owner"] == number
            assert self.acknowledged[number] <= found["count"] <= self.tried[number]
        await self.manager.aclose()

    async def begin(self, number: int) -> str:
        async with self.manager.new() as session:
            session.set_map({"owner": number, "count": 0})
        return session.id

    async def chaos(self) -> None:
        while True:
            await asyncio.sleep(self.random.uniform(0.005, 0.03))
            self.proxy.delay = self.random.choice([0.0, 0.0, 0.002])
            if self.random.random() < 0.5:
                self.proxy.cut()

    async def work(self, number: int, session_id: str) -> None:
        for _ in range(TURNS):
            self.tried[number] += 1
            cycle = self.cycle(number, session_id)
            try:
                if self.random.random() < 0.3:
                    await asyncio.wait_for(cycle, self.random.uniform(0.0, 0.004))
                else:
                    await cycle
            except (StorageUnavailable, TimeoutError):
                self.failures += 1
                continue
            self.acknowledged[number] += 1

    async def cycle(self, number: int, session_id: str) -> None:
        session = self.manager.new(session_id)
        await session.aload()
        assert session["owner"] == number
        await session.amodify("count", lambda count: count + 1)

    async def read(self, session_id: str) -> dict[str, Any]:
        for _ in range(100):
            with contextlib.suppress(StorageUnavailable):
                session = self.manager.new(session_id)
                await session.aload()
                return session.get_map()
            await asyncio.sleep(0.05)
        raise AssertionError("the storage does not recover")


@pytest.mark.parametrize("loop", LOOPS)
def test_R2_R5_V11_cuts_delays_and_cancellations_mix_up_nothing(
    kind: type[RedisStorage], proxy: Proxy, loop: str
) -> None:
    """Every acknowledged change is there once, and every session is its owner's."""
    storm = Storm(Manager(1000, kind(proxy.url, timeout=2.0)), proxy)
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(storm.run())
    assert storm.failures > 0
    assert sum(storm.acknowledged) > 0


@pytest.mark.parametrize(
    "operate",
    [
        lambda session: session.get_map(),
        lambda session: session.regenerate_id(),
        lambda session: session.destroy(),
        lambda session: (session.set("page", 1), session.save()),
    ],
    ids=["load", "rotate", "destroy", "commit"],
)
def test_R20_R21_a_hung_server_is_an_error_and_no_empty_session(
    kind: type[RedisStorage], own_server: RedisServer, operate: Callable[[Any], object]
) -> None:
    with Manager(1000, kind(own_server.url)) as manager:
        with manager.new() as made:
            made["user"] = "anna"
        session = manager.new(made.id)
        with own_server.frozen(), pytest.raises(StorageUnavailable):
            operate(session)
        assert session.cookie_state != "drop"


def test_R22_R23_a_stopped_server_executes_late_what_was_given_up_and_counts_it_once(
    kind: type[RedisStorage], own_server: RedisServer
) -> None:
    """The commit and its retry lie in the buffers of the server while it is stopped; nobody waits for them any more."""
    storage = kind(own_server.url, timeout=0.25)
    patient = kind(own_server.url, timeout=5.0)
    with Manager(1000, storage) as manager, Manager(1000, patient) as other:
        with manager.new() as made:
            made["count"] = 0
        before = 0
        for _ in range(5):
            session = recovered(manager, made.id)
            with own_server.frozen(), pytest.raises(StorageUnavailable):
                session.modify("count", lambda count: count + 1)
            own_server.ok("PING")  # by now it has executed all that it will
            found = other.new(made.id)["count"]
            assert found - before in (0, 1)
            assert other.new(made.id).modify("count", lambda count: count + 1) == found + 1
            before = found + 1
        assert recovered(manager, made.id)["count"] == before


def test_R23_V5_what_was_given_up_revives_no_destroyed_session(
    kind: type[RedisStorage], own_server: RedisServer
) -> None:
    with (
        Manager(1000, kind(own_server.url, timeout=0.25)) as manager,
        Manager(1000, kind(own_server.url, timeout=5.0)) as other,
    ):
        with manager.new() as made:
            made["user"] = "anna"
        session = manager.new(made.id)
        session["page"] = 1
        session.load()
        with own_server.frozen(), pytest.raises(StorageUnavailable):
            session.save()
        other.new(made.id).destroy()
        own_server.ok("PING")
        assert other.new(made.id).is_new
        assert own_server.ok("KEYS", "*") == []


def recovered(manager: Manager, session_id: str) -> Any:
    """The session, once the server can be reached again."""
    for _ in range(100):
        with contextlib.suppress(StorageUnavailable):
            session = manager.new(session_id)
            session.load()
            return session
        time.sleep(0.05)
    raise AssertionError("the storage does not recover")


def test_R37_a_process_ends_though_the_server_hangs(
    kind: type[RedisStorage], own_server: RedisServer
) -> None:
    """With a use that is still to be written."""
    with Manager(1000, kind(own_server.url, timeout=5.0)) as manager, manager.new() as made:
        made["user"] = "anna"
    code = f"""
import sys
from cysession import Manager, {kind.__name__}
storage = {kind.__name__}({own_server.url!r})
storage._every = 3600.0
assert Manager(1000, storage).new({made.id!r})["user"] == "anna"
assert storage.stats()["touches_waiting"] == 1
print("ready", flush=True)
sys.stdin.readline()
"""
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    with own_server.frozen():
        _, errors = child.communicate(b"\n", timeout=30)
    assert (child.returncode, errors) == (0, b"")


def test_R27_a_server_that_forgets_scripts_and_sessions_is_used_on(
    kind: type[RedisStorage], own_server: RedisServer
) -> None:
    with Manager(1000, kind(own_server.url, timeout=5.0)) as manager:
        for _ in range(3):
            session = manager.new()
            session["page"] = 0
            session.save()
            own_server.ok("SCRIPT", "FLUSH")
            session["page"] = 1
            session.save()
            own_server.restart()
            assert manager.new(session.id).is_new
            with pytest.raises(SessionError):
                session["page"] = 2
                session.save()


def test_R25_a_full_server_refuses_writes_and_still_reads_touches_and_destroys(
    kind: type[RedisStorage], own_server: RedisServer
) -> None:
    storage = kind(own_server.url, timeout=5.0)
    with Manager(1000, storage) as manager:
        with manager.new() as made:
            made["user"] = "anna"
        own_server.ok("CONFIG", "SET", "maxmemory", 1)
        late = manager.new(made.id)
        late["page"] = 1
        with pytest.raises(StorageFull):
            late.save()
        fresh = manager.new()
        fresh["user"] = "bert"
        with pytest.raises(StorageFull):
            fresh.save()
        other = kind(own_server.url, timeout=5.0)
        session = Manager(1000, other).new(made.id)
        assert session.get_map() == {"user": "anna"}
        other.flush()
        assert other.stats()["touches"] == 1
        session.destroy()
        assert manager.new(made.id).is_new
        other.close()
