"""One connection for all tasks: nobody gets the reply of another, whoever is cancelled when."""

import asyncio
import gc
import os
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from cysession.errors import StorageUnavailable
from cysession.storage.redis import multiplex
from cysession.storage.redis.client import Client
from tests.redis.servers import Proxy, RedisServer, eventually
from tests.redis.sides import LOOPS

pytestmark = pytest.mark.redis


@pytest.fixture(params=LOOPS)
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    with asyncio.Runner(loop_factory=LOOPS[request.param]) as made:
        yield made


def connections(server: RedisServer) -> int:
    """Accepted so far, this question's among them."""
    return int(server.info("stats")["total_connections_received"])


@pytest.mark.stress
def test_R29_V11_ten_thousand_cancels(server: RedisServer, runner: asyncio.Runner) -> None:
    """Tasks with secrets of their own are cancelled at any moment, by cancel() and by wait_for; the others get
    theirs, and it is one connection from first to last."""
    wrong: list[Any] = []
    cancelled = answered = 0
    chance = random.Random(3)

    async def main() -> None:
        nonlocal cancelled, answered
        client = Client(server.url, timeout=5.0)
        secrets = {b"s%d" % n: os.urandom(chance.choice((10, 500, 3000))) for n in range(300)}
        for key, secret in secrets.items():
            await client.acall(key, b"SET", key, secret)
        before = connections(server)

        async def ask(key: bytes) -> None:
            nonlocal answered
            kind = chance.randrange(4)
            if kind == 0:
                reply = await client.acall(key, b"GET", key)
            elif kind == 1:
                first, second = await client.acall_many(key, [(b"GET", key), (b"GET", key)])
                reply = first if first == second else None
            elif kind == 2:
                reply = await asyncio.wait_for(client.acall(key, b"GET", key), chance.random() * 0.004)
            else:
                reply = await client.acall(key, b"GETRANGE", key, 0, -1)
            answered += 1
            if reply != secrets[key]:
                wrong.append(key)

        keys = list(secrets)
        while cancelled < 10_000:
            tasks = [asyncio.create_task(ask(chance.choice(keys))) for _ in range(400)]
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
            for task in tasks:
                if chance.random() < 0.5:
                    task.cancel()
                    if chance.random() < 0.05:
                        await asyncio.sleep(0)
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(result, asyncio.CancelledError | TimeoutError):
                    cancelled += 1
                elif result is not None:
                    wrong.append(result)
        for key, secret in secrets.items():
            assert await client.acall(key, b"GET", key) == secret
        assert connections(server) - before == 1  # the question itself
        await client.aclose()

    runner.run(main())
    assert wrong == []
    assert answered > 1000


def test_a_cancelled_caller_is_not_in_the_way_of_others(server: RedisServer, runner: asyncio.Runner) -> None:
    async def main() -> None:
        client = Client(server.url)
        await client.acall(b"k", b"SET", b"k", b"v")
        doomed = asyncio.create_task(client.acall(b"k", b"GET", b"k"))
        await asyncio.sleep(0)
        doomed.cancel()
        assert await client.acall(b"k", b"STRLEN", b"k") == 1
        with pytest.raises(asyncio.CancelledError):
            await doomed
        await client.aclose()

    runner.run(main())


def test_the_caller_who_connects_may_be_cancelled(
    server: RedisServer, proxy: Proxy, runner: asyncio.Runner
) -> None:
    """The others go on waiting for the same connection."""
    proxy.delay = 0.05

    async def main() -> None:
        client = Client(proxy.url, timeout=2.0)
        tasks = [asyncio.create_task(client.acall(b"k", b"ECHO", b"%d" % n)) for n in range(10)]
        await asyncio.sleep(0.01)
        tasks[0].cancel()
        tasks[5].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for n, result in enumerate(results):
            if n in (0, 5):
                assert isinstance(result, asyncio.CancelledError)
            else:
                assert result == b"%d" % n
        assert proxy.accepted == 1
        await client.aclose()

    runner.run(main())


def test_commands_of_one_turn_go_out_in_few_writes(server: RedisServer, runner: asyncio.Runner) -> None:
    """Counted by the server: reads of its socket, for a hundred commands of a hundred tasks."""

    async def main() -> None:
        client = Client(server.url)
        await client.acall(b"", b"PING")
        before = int(server.info("stats")["total_reads_processed"])
        replies = await asyncio.gather(*[client.acall(b"", b"ECHO", b"%d" % n) for n in range(100)])
        assert replies == [b"%d" % n for n in range(100)]
        assert int(server.info("stats")["total_reads_processed"]) - before <= 8
        await client.aclose()

    runner.run(main())


def test_the_command_of_a_task_that_is_alone_does_not_wait_for_the_end_of_its_turn(
    server: RedisServer,
) -> None:
    """asyncio's transports write at once; uvloop's wait for that end themselves."""

    async def main() -> None:
        client = Client(server.url)
        for _ in range(2):
            await client.acall(b"", b"PING")
        alone = asyncio.create_task(client.acall(b"", b"SET", b"alone", b"1"))
        await asyncio.sleep(0)  # its turn, which ends only after ours
        assert eventually(lambda: server.command("GET", "alone") == b"1", "the command is on its way", 5)
        both = [asyncio.create_task(client.acall(b"", b"INCR", b"alone")) for _ in range(2)]
        await asyncio.sleep(0)
        assert not alone.done()  # so these two are not alone, and wait
        assert server.command("GET", "alone") == b"1"
        assert await asyncio.gather(alone, *both) == [b"OK", 2, 3]
        await client.aclose()

    asyncio.run(main())


def test_a_reply_that_never_comes_shifts_no_others(
    server: RedisServer, proxy: Proxy, runner: asyncio.Runner
) -> None:
    """A proxy loses one; whoever asks in the meantime gets his own reply or an error, until a new connection."""

    async def main() -> None:
        client = Client(proxy.url, timeout=0.3)
        await client.acall(b"", b"PING")
        proxy.swallow = True
        lost = asyncio.create_task(client.acall(b"", b"ECHO", b"lost"))
        with pytest.raises(StorageUnavailable):
            await lost
        proxy.swallow = False
        answered = 0
        for n in range(10_000):
            try:
                assert await client.acall(b"", b"ECHO", b"%d" % n) == b"%d" % n
                answered += 1
            except StorageUnavailable:
                assert not answered
            if answered == 100:
                break
            await asyncio.sleep(0.001)
        assert answered == 100
        assert proxy.accepted == 2
        await client.aclose()

    runner.run(main())


def test_a_loop_that_is_busy_elsewhere_does_not_blame_redis(
    server: RedisServer, runner: asyncio.Runner
) -> None:
    """Other work holds the loop for longer than the timeout while replies wait in the socket."""

    async def main() -> None:
        client = Client(server.url, timeout=0.1)
        await client.acall(b"", b"PING")
        for _ in range(3):
            tasks = [asyncio.create_task(client.acall(b"", b"ECHO", b"%d" % n)) for n in range(5)]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            time.sleep(0.3)
            assert await asyncio.gather(*tasks) == [b"%d" % n for n in range(5)]
        await client.aclose()

    runner.run(main())


def test_an_interruption_while_replies_are_read(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal handler raises between a reply and its caller: all learn that it is lost, nobody waits for ever."""

    class Killed(BaseException):
        pass

    async def main() -> None:
        client = Client(server.url, timeout=5.0)
        await client.acall(b"", b"PING")
        _, mux = client.nodes[0].fast
        gets, left = mux._gets, [3]

        def interrupted() -> Any:
            left[0] -= 1
            if not left[0]:
                raise Killed
            return gets()

        mux._gets = interrupted
        tasks = [asyncio.create_task(client.acall(b"", b"ECHO", b"%d" % n)) for n in range(5)]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for n, result in enumerate(results):
            assert result == b"%d" % n or type(result) is StorageUnavailable
        assert sum(isinstance(result, StorageUnavailable) for result in results) >= 3
        assert await client.acall(b"", b"PING") == b"PONG"
        await client.aclose()

    reported: list[Any] = []
    with asyncio.Runner() as runner:
        runner.get_loop().set_exception_handler(lambda loop, context: reported.append(context["exception"]))
        runner.run(main())
    assert [type(error) for error in reported] == [Killed]


def test_too_many_that_wait_fail_at_once(
    own_server: RedisServer, runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue is bounded, in commands and in bytes."""

    async def main() -> None:
        client = Client(own_server.url, timeout=1.0)
        await client.acall(b"", b"PING")
        monkeypatch.setattr(multiplex, "MAX_WAITING", 50)
        with own_server.frozen():
            tasks = [asyncio.create_task(client.acall(b"", b"ECHO", b"%d" % n)) for n in range(60)]
            await asyncio.sleep(0.05)
            crowded = [t for t in tasks if t.done()]
            assert len(crowded) == 10
            for task in crowded:
                assert "too many requests" in str(task.exception())
        assert await asyncio.gather(*tasks[:50]) == [b"%d" % n for n in range(50)]
        monkeypatch.setattr(multiplex, "MAX_WAITING", 10_000)
        monkeypatch.setattr(multiplex, "MAX_BYTES", 2_000_000)
        big = os.urandom(500_000)
        with own_server.frozen():
            tasks = [asyncio.create_task(client.acall(b"k", b"SET", b"k", big)) for _ in range(40)]
            later = []
            for _ in range(5):
                await asyncio.sleep(0.01)
                later.append(asyncio.create_task(client.acall(b"k", b"SET", b"k", big)))
            await asyncio.sleep(0.01)
            assert any(t.done() and "too many requests" in str(t.exception()) for t in later)
        await asyncio.gather(*tasks, *later, return_exceptions=True)
        await client.aclose()

    runner.run(main())


def test_R36_loops_come_and_go(server: RedisServer) -> None:
    """asyncio.run again and again with one client, without any farewell: each loop has its connection, and takes it
    along; nothing warns (warnings are errors here)."""
    client = Client(server.url)
    for turn in range(6):
        name = list(LOOPS)[turn % 2]

        async def main(turn: int = turn) -> bytes:
            return await client.acall(b"k", b"ECHO", b"%d" % turn)  # type: ignore[no-any-return]

        with asyncio.Runner(loop_factory=LOOPS[name]) as runner:
            assert runner.run(main()) == b"%d" % turn
        gc.collect()
        assert client.call(b"k", b"ECHO", b"sync") == b"sync"
    eventually(lambda: server.clients() <= 1, "only the sync side's connection is left")
    client.close()


def test_R36_several_loops_and_threads_at_once(server: RedisServer) -> None:
    client = Client(server.url, timeout=5.0)
    wrong: list[Any] = []

    def work(name: str, number: int) -> None:
        async def ask(n: int) -> None:
            text = b"%d-%d" % (number, n)
            if await client.acall(b"", b"ECHO", text) != text:
                wrong.append(text)

        async def main() -> None:
            for _ in range(20):
                await asyncio.gather(*[ask(n) for n in range(20)])

        with asyncio.Runner(loop_factory=LOOPS[name]) as runner:
            runner.run(main())

    def work_sync(number: int) -> None:
        for n in range(200):
            text = b"%d-%d" % (number, n)
            if client.call(b"", b"ECHO", text) != text:
                wrong.append(text)

    threads = [threading.Thread(target=work, args=(name, n)) for n, name in enumerate((*LOOPS, *LOOPS))]
    threads += [threading.Thread(target=work_sync, args=(n,)) for n in range(4, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    client.close()
    assert wrong == []
    eventually(lambda: server.clients() == 0, "all connections are closed")


def test_close_from_another_thread(server: RedisServer, runner: asyncio.Runner) -> None:
    client = Client(server.url)

    async def main() -> None:
        await client.acall(b"", b"PING")
        await asyncio.to_thread(client.close)
        await asyncio.sleep(0.01)
        eventually(lambda: server.clients() == 0, "the loop has closed its connection")
        assert await client.acall(b"", b"PING") == b"PONG"  # a closed client opens again when it is used
        await client.aclose()

    runner.run(main())


@pytest.mark.stress
def test_R42_a_herd_at_a_restart(own_server: RedisServer) -> None:
    """Many clients, a server that is away for a while: few attempts each, and all recover by themselves."""
    with Proxy(own_server) as proxy:
        clients = [Client(proxy.url) for _ in range(100)]

        async def one(client: Client, until: float) -> int:
            failures = 0
            while True:
                try:
                    assert await client.acall(b"", b"PING", retry=True) == b"PONG"
                    if time.monotonic() > until:
                        return failures
                except StorageUnavailable:
                    failures += 1
                await asyncio.sleep(0.01)

        async def main() -> list[int]:
            for client in clients:
                await client.acall(b"", b"PING")
            proxy.refuse = True
            proxy.cut()
            tasks = [asyncio.create_task(one(client, time.monotonic() + 1.0)) for client in clients]
            await asyncio.sleep(1.0)
            proxy.refuse = False
            failures = await asyncio.wait_for(asyncio.gather(*tasks), 20)
            for client in clients:
                await client.aclose()
            return failures

        failures = asyncio.run(main())
        assert sum(failures) > 1000  # most without an attempt
        assert proxy.refused < 1200  # of 100 clients in a second: a dozen each
