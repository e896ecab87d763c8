"""The near-cache: what awaited loads have read is read again without asking, and never for longer than it is true.

That the storages keep their contract with it is proved by tests/contract/test_redis.py.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from unittest.mock import MagicMock

import pytest

from cysession import (
    Manager,
    RedisHashStorage,
    RedisStorage,
    Session,
    StorageMisconfigured,
    StorageUnavailable,
)
from cysession.ids import storage_key
from cysession.storage.redis.multiplex import Mux
from cysession.storage.redis.near import Bounds
from tests.redis.servers import Cluster, Proxy, RedisServer, eventually, slot_of
from tests.redis.sides import LOOPS

pytestmark = pytest.mark.redis

KINDS = {"string": RedisStorage, "hash": RedisHashStorage}
READS = {RedisStorage: "get", RedisHashStorage: "hgetall"}
LONG = 1000.0  # seconds; a max_stale that plays no part

Node = Callable[..., Manager]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> type[RedisStorage]:
    return KINDS[request.param]


@pytest.fixture
def node(server: RedisServer, kind: type[RedisStorage]) -> Iterator[Node]:
    """node(): another process of the site, as far as Redis can tell."""
    made: list[Manager] = []

    def make(url: str = server.url, ttl: float = 1000, **options: Any) -> Manager:
        options = {"near_cache": 100, "max_stale": LONG, "timeout": 5.0} | options
        made.append(Manager(ttl, kind(url, **options)))
        storage = made[-1].storage
        assert isinstance(storage, RedisStorage)
        storage._every = 3600.0  # uses are written when a test says so
        return made[-1]

    yield make
    for manager in made:
        manager.close()


@pytest.fixture(params=LOOPS)
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    with asyncio.Runner(loop_factory=LOOPS[request.param]) as made:
        yield made


@pytest.fixture
def plain_runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as made:
        yield made


async def new(manager: Manager, **data: Any) -> str:
    async with manager.new() as session:
        session.set_map(data)
    return session.id


async def opened(manager: Manager, session_id: str) -> Session:
    session = manager.new(session_id)
    await session.aload()
    return session


async def read(manager: Manager, session_id: str) -> dict[str, Any] | None:
    """What a request finds; None: no such session."""
    session = await opened(manager, session_id)
    return None if session.is_new else session.get_map()


async def keep(manager: Manager, session_id: str) -> dict[str, Any] | None:
    """Read it until the near-cache has it; the reads that open connections are not kept."""
    for _ in range(3):
        before = hits(manager)
        found = await read(manager, session_id)
        if hits(manager) > before:
            return found
    raise AssertionError("the near-cache keeps nothing")


async def write(manager: Manager, session_id: str, **data: Any) -> None:
    async with manager.new(session_id) as session:
        session.set_map(data)


async def hear(manager: Manager) -> None:
    """What the server had to announce until now has been read: it comes before the answer to this."""
    await client_of(manager).acall(b"", b"ECHO", b"", retry=True)


def client_of(manager: Manager) -> Any:
    storage = manager.storage
    assert isinstance(storage, RedisStorage)
    return storage._client


def loads(server: RedisServer) -> int:
    """Sessions that were asked for since the last time this was asked."""
    stats = server.info("commandstats")
    server.ok("CONFIG", "RESETSTAT")
    named = [stats.get(f"cmdstat_{verb}", "") for verb in READS.values()]
    return sum(int(text.split(",")[0][6:]) for text in named if text)


def hits(manager: Manager) -> int:
    storage = manager.storage
    assert isinstance(storage, RedisStorage)
    return storage.stats()["near_hits"]


# ---- replies and announcements, as they stand in the stream --------------------------------------------

VALUE, LEFT, OTHER = b"$5\r\nvalue\r\n", b":50000\r\n", b">2\r\n$10\r\ninvalidate\r\n*1\r\n$2\r\nk2\r\n"
CHANGED, EMPTIED = OTHER.replace(b"k2", b"k1"), b">2\r\n$10\r\ninvalidate\r\n_\r\n"


@pytest.mark.parametrize(
    ("stream", "kept"),
    [
        pytest.param(VALUE + LEFT, True, id="none"),
        pytest.param(CHANGED + VALUE + LEFT, True, id="before it"),  # the value is the one after the change
        pytest.param(VALUE + OTHER + LEFT, True, id="of another key"),
        pytest.param(VALUE + CHANGED + LEFT, False, id="between its replies"),
        pytest.param(VALUE + EMPTIED + LEFT, False, id="of all keys"),
        pytest.param(VALUE + LEFT + CHANGED, False, id="after it"),
        pytest.param(VALUE + CHANGED + LEFT + VALUE + LEFT, True, id="before a second read"),
    ],
)
@pytest.mark.parametrize("piece", [1, 7, 1000], ids=lambda size: f"in pieces of {size}")
def test_a_change_that_is_announced_within_a_read_is_not_covered_up(
    stream: bytes, kept: bool, piece: int, plain_runner: asyncio.Runner
) -> None:
    async def main() -> None:
        mux = Mux(asyncio.get_running_loop(), 5.0, lambda *_: None)
        mux.connection_made(MagicMock(spec=asyncio.Transport))
        mux.track(Bounds(10, LONG))
        assert (near := mux.near) is not None
        reads = [mux.read(near, b"k1", b"GET and PTTL") for _ in range(stream.count(VALUE))]
        for start in range(0, len(stream), piece):
            part = stream[start : start + piece]
            mux.get_buffer(-1)[: len(part)] = part
            mux.buffer_updated(len(part))
        assert await asyncio.gather(*reads) == [[b"value", 50000]] * len(reads)
        assert near.get(b"k1") == (b"value" if kept else None)
        mux.close()

    plain_runner.run(main())


# ---- what it saves -------------------------------------------------------------------------------------


def test_a_session_that_was_read_is_read_again_without_asking(
    server: RedisServer, node: Node, runner: asyncio.Runner
) -> None:
    async def scenario() -> None:
        manager = node()
        session_id = await new(manager, user="anna")
        await read(manager, session_id)
        loads(server)
        assert [await read(manager, session_id) for _ in range(10)] == [{"user": "anna"}] * 10
        assert loads(server) == 0
        assert hits(manager) == 10
        await manager.aclose()

    runner.run(scenario())


def test_it_is_off_unless_asked_for(
    server: RedisServer, kind: type[RedisStorage], plain_runner: asyncio.Runner
) -> None:
    async def scenario() -> None:
        manager = Manager(1000, kind(server.url, timeout=5.0))
        session_id = await new(manager, user="anna")
        loads(server)
        await read(manager, session_id)
        await read(manager, session_id)
        assert loads(server) == 2
        assert hits(manager) == 0
        assert b"flags=t" not in server.ok("CLIENT", "LIST", "TYPE", "normal")
        await manager.aclose()

    plain_runner.run(scenario())


def test_V8_an_unknown_id_is_not_remembered(
    server: RedisServer, node: Node, plain_runner: asyncio.Runner
) -> None:
    """Else visitors could fill it with ids that they make up."""

    async def scenario() -> None:
        manager = node()
        await read(manager, await new(manager, user="anna"))
        loads(server)
        for _ in range(3):
            assert await read(manager, "A" * 43) is None
        assert loads(server) == 3
        await manager.aclose()

    plain_runner.run(scenario())


def test_V8_R40_what_is_kept_is_bounded(
    server: RedisServer, node: Node, plain_runner: asyncio.Runner
) -> None:

    async def scenario() -> None:
        manager = node(near_cache=8)
        ids = [await new(manager, number=number) for number in range(40)]
        for session_id in ids:
            await read(manager, session_id)
        (near,) = [near for known in client_of(manager).nodes for near in known.nears()]
        assert len(near) == 8
        loads(server)
        assert [await read(manager, session_id) for session_id in ids[-8:]] == [
            {"number": number} for number in range(32, 40)
        ]
        assert loads(server) == 0
        await manager.aclose()

    plain_runner.run(scenario())


def test_the_read_of_a_cancelled_request_is_kept_for_the_next(
    server: RedisServer, node: Node, runner: asyncio.Runner
) -> None:
    async def scenario() -> None:
        manager = node()
        session_id = await new(manager, user="anna")
        request = asyncio.ensure_future(read(manager, session_id))
        await asyncio.sleep(0)
        request.cancel()
        await hear(manager)
        loads(server)
        assert await read(manager, session_id) == {"user": "anna"}
        assert loads(server) == 0
        await manager.aclose()

    runner.run(scenario())


# ---- changes of others ---------------------------------------------------------------------------------


async def log_out(manager: Manager, session_id: str) -> None:
    await (await opened(manager, session_id)).adestroy()


async def rotate(manager: Manager, session_id: str) -> None:
    await (await opened(manager, session_id)).aregenerate_id()


async def change(manager: Manager, session_id: str) -> None:
    await write(manager, session_id, user="bert")


OTHERS: dict[str, tuple[Callable[[Manager, str], Awaitable[None]], dict[str, Any] | None]] = {
    "V14 log out": (log_out, None),
    "S5 rotate": (rotate, None),
    "R2 change": (change, {"user": "bert"}),
}


@pytest.mark.parametrize("doing", OTHERS)
def test_V14_S5_R2_what_another_node_does_is_seen(node: Node, runner: asyncio.Runner, doing: str) -> None:
    """Without asking for it: the server announces it, and the entry is gone when the loop has read that."""
    act, found = OTHERS[doing]

    async def scenario() -> None:
        here, elsewhere = node(), node()
        session_id = await new(elsewhere, user="anna")
        assert await keep(here, session_id) == {"user": "anna"}
        await act(elsewhere, session_id)
        for _ in range(500):  # no PING, no command: only turns of the loop
            if await read(here, session_id) == found:
                break
            await asyncio.sleep(0.01)
        else:
            pytest.fail("the change of another node is never seen")
        for manager in (here, elsewhere):
            await manager.aclose()

    runner.run(scenario())


def test_V14_R21_a_log_out_is_seen_although_the_announcement_is_lost(
    server: RedisServer, node: Node, proxy: Proxy, runner: asyncio.Runner
) -> None:
    """The network brings nothing any more, and nothing says so. After max_stale nobody believes the cache."""

    async def scenario() -> None:
        here, elsewhere = node(proxy.url, max_stale=0.4, timeout=0.6), node()
        session_id = await new(elsewhere, user="anna")
        await keep(here, session_id)
        proxy.swallow = True
        await log_out(elsewhere, session_id)
        await asyncio.sleep(0.5)
        before = hits(here)
        with pytest.raises(StorageUnavailable):
            await read(here, session_id)
        assert hits(here) == before
        proxy.swallow = False
        proxy.cut()
        for _ in range(500):
            try:
                assert await read(here, session_id) is None
                break
            except StorageUnavailable:
                await asyncio.sleep(0.01)
        else:
            pytest.fail("it does not recover")
        for manager in (here, elsewhere):
            await manager.aclose()

    runner.run(scenario())


def test_R21_a_server_that_hangs_is_not_covered_up_for_longer_than_max_stale(
    own_server: RedisServer, kind: type[RedisStorage], runner: asyncio.Runner
) -> None:
    async def scenario() -> None:
        manager = Manager(1000, kind(own_server.url, near_cache=100, max_stale=0.4, timeout=0.6))
        session_id = await new(manager, user="anna")
        await keep(manager, session_id)
        with own_server.frozen():
            await asyncio.sleep(0.5)
            before = hits(manager)
            with pytest.raises(StorageUnavailable):
                await read(manager, session_id)
            assert hits(manager) == before
        await manager.aclose()

    runner.run(scenario())


def test_a_quiet_connection_is_believed_as_long_as_it_answers(
    server: RedisServer, node: Node, runner: asyncio.Runner
) -> None:
    """And when nobody asks any more, the server is not asked for a sign of life either."""

    async def scenario() -> None:
        manager = node(max_stale=0.6)
        session_id = await new(manager, user="anna")
        await read(manager, session_id)
        loads(server)
        for _ in range(20):
            await asyncio.sleep(0.1)
            await read(manager, session_id)
        # Nearly: a machine that is busy elsewhere may be late with the PING, and then the server is asked.
        assert hits(manager) >= 10
        (near,) = [near for known in client_of(manager).nodes for near in known.nears()]
        for _ in range(100):
            if near._timer is None:
                break
            await asyncio.sleep(0.1)
        else:
            pytest.fail("the server is asked for signs of life for ever")
        await manager.aclose()

    runner.run(scenario())


def test_R8_a_session_ends_in_time_though_the_server_says_nothing(
    server: RedisServer, node: Node, runner: asyncio.Runner
) -> None:
    """Redis announces the end of a key when it comes by to delete it; here it never does."""

    async def scenario() -> None:
        manager = node(ttl=0.5)
        session_id = await new(manager, user="anna")
        assert await keep(manager, session_id) == {"user": "anna"}
        await asyncio.sleep(0.6)
        assert await read(manager, session_id) is None
        await manager.aclose()

    server.ok("DEBUG", "SET-ACTIVE-EXPIRE", 0)
    try:
        runner.run(scenario())
    finally:
        server.ok("DEBUG", "SET-ACTIVE-EXPIRE", 1)


def test_a_lost_connection_takes_all_along(server: RedisServer, node: Node, runner: asyncio.Runner) -> None:
    async def scenario() -> None:
        manager = node()
        session_id = await new(manager, user="anna")
        await keep(manager, session_id)
        server.ok("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        key = client_key(manager, session_id)
        server.ok("DEL", key)  # nobody is there to hear of it
        for _ in range(500):
            if await read(manager, session_id) is None:
                break
            await asyncio.sleep(0.01)
        else:
            pytest.fail("what was read over the old connection is still believed")
        await manager.aclose()

    runner.run(scenario())


def client_key(manager: Manager, session_id: str) -> bytes:
    storage = manager.storage
    assert isinstance(storage, RedisStorage)
    return storage._prefix + storage_key(session_id).encode()


def test_a_database_that_is_emptied_leaves_nothing(
    server: RedisServer, node: Node, runner: asyncio.Runner
) -> None:
    async def scenario() -> None:
        manager = node()
        ids = [await new(manager, number=number) for number in range(5)]
        for session_id in ids:
            await keep(manager, session_id)
        server.flush()
        await hear(manager)
        assert [await read(manager, session_id) for session_id in ids] == [None] * 5
        await manager.aclose()

    runner.run(scenario())


def test_an_answer_that_comes_too_late_for_its_caller_is_kept_right(
    node: Node, proxy: Proxy, runner: asyncio.Runner
) -> None:
    async def scenario() -> None:
        manager, elsewhere = node(proxy.url, timeout=0.3), node()
        first, second = await new(elsewhere, number=1), await new(elsewhere, number=2)
        await keep(manager, first)
        await write(elsewhere, first, changed=True)
        await hear(manager)
        proxy.delay = 0.5
        waiting = asyncio.gather(
            *(read(manager, session_id) for session_id in (first, second)), return_exceptions=True
        )
        assert {type(outcome) for outcome in await waiting} == {StorageUnavailable}
        proxy.delay = 0.0
        for _ in range(500):
            try:
                assert await read(manager, first) == {"number": 1, "changed": True}
                assert await read(manager, second) == {"number": 2}
                break
            except StorageUnavailable:
                await asyncio.sleep(0.01)
        else:
            pytest.fail("it does not recover")
        for each in (manager, elsewhere):
            await each.aclose()

    runner.run(scenario())


# ---- changes of one's own ------------------------------------------------------------------------------


def test_a_node_sees_what_it_did_itself_at_once(node: Node, runner: asyncio.Runner) -> None:
    """Whichever connection it took: not even a turn of the loop lies between."""

    async def scenario() -> None:
        manager = node()
        session_id = await new(manager, count=0)
        for count in range(1, 50):
            await keep(manager, session_id)
            if count % 2:
                with manager.new(session_id) as session:  # a blocking connection
                    session["count"] = count
            else:
                await write(manager, session_id, count=count)
            assert await read(manager, session_id) == {"count": count}
        await keep(manager, session_id)
        with manager.new(session_id) as session:
            session.destroy()
        assert await read(manager, session_id) is None
        await manager.aclose()

    runner.run(scenario())


def test_a_write_on_another_loop_of_the_process_is_seen_at_once(node: Node, runner: asyncio.Runner) -> None:
    manager = node()

    async def scenario() -> None:
        session_id = await new(manager, count=0)
        for count in range(1, 20):
            await keep(manager, session_id)

            def other_loop(number: int = count) -> None:
                asyncio.run(write(manager, session_id, count=number))

            thread = threading.Thread(target=other_loop)
            thread.start()
            thread.join()  # blocks this loop: it hears nothing meanwhile
            assert await read(manager, session_id) == {"count": count}
        await manager.aclose()

    runner.run(scenario())


# ---- uses ----------------------------------------------------------------------------------------------


def test_R7_uses_of_many_nodes_do_not_defeat_it(
    server: RedisServer, node: Node, runner: asyncio.Runner
) -> None:
    """A use that one node writes is announced to all others. They read once more, and learn that theirs is written."""

    async def scenario() -> None:
        nodes = [node() for _ in range(4)]
        session_id = await new(nodes[0], user="anna")
        server.ok("PEXPIRE", client_key(nodes[0], session_id), 600_000)  # unused for a while: of 1000 s
        for manager in nodes:
            assert await keep(manager, session_id) == {"user": "anna"}
        for manager in nodes[1:]:
            assert stats_of(manager)["touches_waiting"] == 1
        await storage_of(nodes[1]).aflush()
        for manager in nodes:
            await hear(manager)
        loads(server)
        late = node()
        await read(late, session_id)  # connects
        for _ in range(10):
            for manager in [*nodes, late]:
                assert await read(manager, session_id) == {"user": "anna"}
        assert loads(server) == 6
        assert stats_of(late)["touches_waiting"] == 0  # somebody else's use is as good
        for manager in [*nodes, late]:
            await manager.aclose()

    runner.run(scenario())


def test_R7_a_session_that_is_only_read_here_stays_alive(
    server: RedisServer, node: Node, plain_runner: asyncio.Runner
) -> None:
    async def scenario() -> None:
        manager = node(ttl=3)  # a use is written at most every 150 ms
        session_id = await new(manager, user="anna")
        for _ in range(45):
            assert await read(manager, session_id) == {"user": "anna"}
            await asyncio.sleep(0.1)
        assert hits(manager) > 0
        await manager.aclose()

    plain_runner.run(scenario())


def storage_of(manager: Manager) -> RedisStorage:
    assert isinstance(manager.storage, RedisStorage)
    return manager.storage


def stats_of(manager: Manager) -> dict[str, int]:
    return storage_of(manager).stats()


# ---- many at once --------------------------------------------------------------------------------------


class Site:
    """Two nodes with a loop each, whose workers read and write the same few sessions."""

    WORKERS, TURNS, SESSIONS = 16, 150, 12

    def __init__(self, managers: list[Manager], loop: str) -> None:
        self.managers = managers
        self.loop = loop
        self.problems: list[str] = []
        self.quiet = threading.Barrier(len(managers))
        with managers[0].new() as probe:
            probe["start"] = 0
        self.ids = []
        for _ in range(self.SESSIONS):
            with managers[0].new() as session:
                session["written"] = {}
            self.ids.append(session.id)

    def run(self) -> None:
        threads = [threading.Thread(target=self.node, args=(n,)) for n in range(len(self.managers))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def node(self, number: int) -> None:
        with asyncio.Runner(loop_factory=LOOPS[self.loop]) as runner:
            runner.run(self.work(number))

    async def work(self, number: int) -> None:
        manager = self.managers[number]
        await asyncio.gather(*(self.worker(manager, f"{number}-{n}") for n in range(self.WORKERS)))
        await asyncio.get_running_loop().run_in_executor(None, self.quiet.wait)
        await hear(manager)
        before = loads_of = hits(manager)
        for session_id in self.ids:
            seen = await read(manager, session_id)
            true = manager_truth(self.managers[0], session_id)
            if seen != true:
                self.problems.append(f"node {number}: stale after all is quiet")
        assert before == loads_of
        await storage_of(manager).aclose()

    async def worker(self, manager: Manager, name: str) -> None:
        """Every seventh turn it writes; its own writes it must see, and those of others never go back."""
        own: dict[str, int] = {}
        highest: dict[tuple[str, str], int] = {}
        for turn in range(self.TURNS):
            session_id = self.ids[(hash(name) + turn * 7) % len(self.ids)]
            session = await opened(manager, session_id)
            for other, count in session.items():
                if other == "written":
                    continue
                if count < highest.get((session_id, other), 0):
                    self.problems.append(f"{name}: {other} went back")
                highest[session_id, other] = count
            if session.get(name, 0) != own.get(session_id, 0):
                self.problems.append(f"{name}: does not see its own write")
            if turn % 7 == 0:
                session[name] = own[session_id] = turn
                await session.asave()
            await asyncio.sleep(0)


def manager_truth(manager: Manager, session_id: str) -> dict[str, Any]:
    return manager.new(session_id).get_map()  # a blocking load: it knows no near-cache


@pytest.mark.parametrize("loop", LOOPS)
def test_V11_two_nodes_and_many_workers_see_nothing_stale(node: Node, loop: str) -> None:
    managers = [node(), node()]
    site = Site(managers, loop)
    site.run()
    assert site.problems == []
    assert all(hits(manager) > 0 for manager in managers)


# ---- clusters ------------------------------------------------------------------------------------------


def test_every_node_of_a_cluster_announces_its_own(
    cluster: Cluster, kind: type[RedisStorage], runner: asyncio.Runner
) -> None:
    async def scenario() -> None:
        here, elsewhere = (
            Manager(1000, kind(cluster.url, near_cache=100, max_stale=LONG, timeout=5.0)) for _ in range(2)
        )
        ids = [await new(here, number=number) for number in range(12)]
        for _ in range(3):
            assert [await read(here, session_id) for session_id in ids] == [
                {"number": number} for number in range(12)
            ]
        assert hits(here) >= 12
        for session_id in ids:
            await log_out(elsewhere, session_id)
        for known in client_of(here).nodes:
            await known.aexchange(b"*1\r\n$4\r\nPING\r\n", 1, asyncio.get_running_loop().time() + 5)
        assert [await read(here, session_id) for session_id in ids] == [None] * 12
        for manager in (here, elsewhere):
            await manager.aclose()

    runner.run(scenario())


def test_R28_a_slot_that_moves_takes_its_sessions_along(
    cluster: Cluster, kind: type[RedisStorage], runner: asyncio.Runner
) -> None:
    async def scenario() -> None:
        here, elsewhere = (
            Manager(1000, kind(cluster.url, near_cache=100, max_stale=LONG, timeout=5.0)) for _ in range(2)
        )
        session_id = await new(here, count=0)
        for count in range(1, 4):
            await keep(here, session_id)
            await asyncio.to_thread(cluster.move, slot_of(client_key(here, session_id)))
            await write(elsewhere, session_id, count=count)
            for _ in range(500):
                if await read(here, session_id) == {"count": count}:
                    break
                await asyncio.sleep(0.01)
            else:
                pytest.fail("what was read before the move is still believed")
        for manager in (here, elsewhere):
            await manager.aclose()

    runner.run(scenario())


# ---- how it is asked for -------------------------------------------------------------------------------


def test_a_url_may_ask_for_it(server: RedisServer, plain_runner: asyncio.Runner) -> None:
    async def scenario() -> None:
        manager = Manager.from_url(f"{server.url}?near_cache=50&max_stale=30&timeout=5", ttl=1000)
        session_id = await new(manager, user="anna")
        await read(manager, session_id)
        await read(manager, session_id)
        assert hits(manager) == 1
        await manager.aclose()

    plain_runner.run(scenario())


@pytest.mark.parametrize("options", [{"near_cache": -1}, {"max_stale": 0.0}, {"max_stale": float("nan")}])
def test_bounds_that_are_none_are_refused(server: RedisServer, options: dict[str, Any]) -> None:
    with pytest.raises(StorageMisconfigured, match="max_stale"):
        RedisStorage(server.url, **options)


def test_blocking_calls_ask_the_server(server: RedisServer, node: Node) -> None:
    manager = node()
    with manager.new() as session:
        session["user"] = "anna"
    loads(server)
    for _ in range(3):
        assert manager.new(session.id).get_map() == {"user": "anna"}
    assert loads(server) == 3


def test_R24_a_user_who_may_not_track_is_told_at_once(plain_runner: asyncio.Runner) -> None:
    with RedisServer() as server:
        server.ok("ACL", "SETUSER", "app", "on", ">secret", "~cysession:*", "+@all", "-client|tracking")
        url = f"redis://app:secret@{server.host}:{server.port}/0"

        async def scenario() -> None:
            manager = Manager(1000, RedisStorage(url, near_cache=100))
            with pytest.raises(StorageMisconfigured, match="near_cache") as refused:
                await new(manager, user="anna")
            assert "secret" not in str(refused.value)
            await manager.aclose()

        plain_runner.run(scenario())


def test_a_server_that_forgets_nobody_is_told_of_keys_that_are_gone_from_here(
    server: RedisServer, node: Node, plain_runner: asyncio.Runner
) -> None:
    """What is pushed out here is still tracked there: announcements of it do no harm."""

    async def scenario() -> None:
        here, elsewhere = node(near_cache=1), node()
        ids = [await new(here, number=number) for number in range(5)]
        for session_id in ids:
            await read(here, session_id)
        for session_id in ids:
            await write(elsewhere, session_id, seen=True)
        await hear(here)
        assert [await read(here, session_id) for session_id in ids] == [
            {"number": number, "seen": True} for number in range(5)
        ]
        eventually(lambda: int(server.info("stats")["tracking_total_keys"]) >= 1, "keys are tracked")
        for manager in (here, elsewhere):
            await manager.aclose()

    plain_runner.run(scenario())
