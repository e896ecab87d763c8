"""What does a command to Redis cost through our client layer, next to redis-py doing the same commands?

80 % GET and 20 % SET with an expiry, of 512 bytes, over 2,000 keys, as a site's sessions load and save. Bars, in
throughput: awaited 2.5, 10 and 10 times redis.asyncio with 1, 32 and 256 tasks; blocking 2 and 2.5 times redis-py with
1 and 16 threads. The same server for all. Nothing is pinned: on a virtual machine a processor that sleeps between two
commands costs more to wake than either client, and one task on a pair of pinned processors would measure only that.

Beside the times: CPU of the server for one command (its own account), and how many commands it read at once. hiredis
parses the replies of both. redis-py has connections enough for every task to keep its own. coredis and valkey-glide
(a core in Rust) share connections between tasks, as we do; a bare socket with hiredis is the floor of one thread.
"""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeAlias

import hiredis
import pytest
import redis
import redis.asyncio
import uvloop

from cysession.storage.redis.client import Client
from cysession.storage.redis.wire import Template
from tests.redis.servers import RedisServer

COMMANDS = 4096  # a round; a multiple of all numbers of tasks and threads
ROUNDS = 15
TTL = 3600
VALUE = b"x" * 512
KEYS = [b"session:%064x" % n for n in range(2000)]
GET = Template(b"GET", Template.KEY)
SET = Template(b"SET", Template.KEY, Template.VALUE, b"EX", TTL)
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
TASKS = (1, 32, 256)
THREADS = (1, 16)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as made:
        made.commands(*[("SET", key, VALUE, "EX", TTL) for key in KEYS])
        yield made


Plan: TypeAlias = list[tuple[bytes, bool]]
"""The keys that one task or thread asks for in a round, and whether it saves."""


def plan(worker: int, workers: int) -> Plan:
    return [(KEYS[(worker * 7919 + n * 31) % len(KEYS)], n % 5 == 4) for n in range(COMMANDS // workers)]


def measure(benchmark: Any, server: RedisServer, group: str, one_round: Callable[[], object]) -> None:
    benchmark.group = f"{group}, per {COMMANDS} commands"
    one_round()
    before = _account(server)
    benchmark.pedantic(one_round, rounds=ROUNDS, iterations=1)
    cpu, reads = (after - was for after, was in zip(_account(server), before, strict=True))
    benchmark.extra_info["server CPU, us a command"] = round(1e6 * cpu / (COMMANDS * ROUNDS), 2)
    benchmark.extra_info["commands a read of the server"] = round(COMMANDS * ROUNDS / reads, 1)


def _account(server: RedisServer) -> tuple[float, float]:
    cpu, stats = server.info("cpu"), server.info("stats")
    used = float(cpu["used_cpu_user"]) + float(cpu["used_cpu_sys"])
    return used, float(stats["total_reads_processed"])


# ---- awaited -----------------------------------------------------------------------------------------------

Worker = Callable[[Plan], Coroutine[Any, Any, None]]
Opened = Callable[[RedisServer], AbstractAsyncContextManager[Worker]]


class Held:
    """A client between two runs of a loop: some want to be opened and closed by one task."""

    def __init__(self, opened: AbstractAsyncContextManager[Worker]) -> None:
        self.opened = opened
        self.ready = asyncio.Event()
        self.over = asyncio.Event()

    async def open(self) -> Worker:
        self.holder = asyncio.ensure_future(self._hold())
        waiting = asyncio.ensure_future(self.ready.wait())
        await asyncio.wait({self.holder, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if self.holder.done():
            waiting.cancel()
            await self.holder
        return self.worker

    async def _hold(self) -> None:
        async with self.opened as self.worker:
            self.ready.set()
            await self.over.wait()

    async def close(self) -> None:
        self.over.set()
        await self.holder


def measure_awaited(benchmark: Any, server: RedisServer, loop: str, tasks: int, opened: Opened) -> None:
    """`opened` yields what one task does in a round, written out for each client: none pays for a common layer."""
    plans = [plan(number, tasks) for number in range(tasks)]

    async def one_round(worker: Worker) -> None:
        await asyncio.gather(*[worker(keys) for keys in plans])

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        held = Held(opened(server))
        worker = runner.run(held.open())
        group = f"{tasks} task{'s' * (tasks > 1)} on {loop}"
        measure(benchmark, server, group, lambda: runner.run(one_round(worker)))
        runner.run(held.close())


def on_loops(test: Any) -> Any:
    for name, values in (("tasks", TASKS), ("loop", LOOPS)):
        test = pytest.mark.parametrize(name, values)(test)
    return test


@asynccontextmanager
async def open_ours(server: RedisServer) -> AsyncIterator[Worker]:
    client = Client(server.url, timeout=5.0)

    async def worker(keys: Plan) -> None:
        for key, save in keys:
            if save:
                await client.acall_packed(key, SET(key, VALUE), retry=True)
            else:
                await client.acall_packed(key, GET(key), retry=True)

    yield worker
    await client.aclose()


@asynccontextmanager
async def open_redis_py(server: RedisServer) -> AsyncIterator[Worker]:
    client = redis.asyncio.Redis.from_url(server.url, max_connections=300)

    async def worker(keys: Plan) -> None:
        for key, save in keys:
            if save:
                await client.set(key, VALUE, ex=TTL)
            else:
                await client.get(key)

    yield worker
    await client.aclose()


@asynccontextmanager
async def open_coredis(server: RedisServer) -> AsyncIterator[Worker]:
    import coredis

    async with coredis.Redis(host=server.host, port=server.port) as client:

        async def worker(keys: Plan) -> None:
            for key, save in keys:
                if save:
                    await client.set(key, VALUE, ex=TTL)
                else:
                    await client.get(key)

        yield worker


@asynccontextmanager
async def open_glide(server: RedisServer) -> AsyncIterator[Worker]:
    import glide

    where = [glide.NodeAddress(server.host, server.port)]
    client = await glide.GlideClient.create(glide.GlideClientConfiguration(where, request_timeout=5000))
    expiry = glide.ExpirySet(glide.ExpiryType.SEC, TTL)

    async def worker(keys: Plan) -> None:
        for key, save in keys:
            if save:
                await client.set(key, VALUE, expiry=expiry)
            else:
                await client.get(key)

    yield worker
    await client.close()


@on_loops
def test_cysession_awaited(benchmark: Any, server: RedisServer, loop: str, tasks: int) -> None:
    measure_awaited(benchmark, server, loop, tasks, open_ours)


@on_loops
def test_redis_asyncio(benchmark: Any, server: RedisServer, loop: str, tasks: int) -> None:
    measure_awaited(benchmark, server, loop, tasks, open_redis_py)


@on_loops
def test_coredis(benchmark: Any, server: RedisServer, loop: str, tasks: int) -> None:
    measure_awaited(benchmark, server, loop, tasks, open_coredis)


@on_loops
def test_valkey_glide(benchmark: Any, server: RedisServer, loop: str, tasks: int) -> None:
    measure_awaited(benchmark, server, loop, tasks, open_glide)


# ---- blocking ----------------------------------------------------------------------------------------------


class Crew:
    """Threads that do a round each time they are told to; starting threads is not measured."""

    def __init__(self, threads: int, work: Callable[[Plan], None]) -> None:
        self.go = threading.Barrier(threads + 1)
        self.done = threading.Barrier(threads + 1)
        self.over = False
        self.work = work
        self.threads = [threading.Thread(target=self._run, args=(plan(n, threads),)) for n in range(threads)]
        for thread in self.threads:
            thread.start()

    def _run(self, keys: Plan) -> None:
        while True:
            self.go.wait()
            if self.over:
                return
            self.work(keys)
            self.done.wait()

    def one_round(self) -> None:
        self.go.wait()
        self.done.wait()

    def dismiss(self) -> None:
        self.over = True
        self.go.wait()
        for thread in self.threads:
            thread.join()


def blocking(threads: int) -> str:
    return f"{threads} thread{'s' * (threads > 1)}"


@pytest.mark.parametrize("threads", THREADS)
def test_cysession_blocking(benchmark: Any, server: RedisServer, threads: int) -> None:
    client = Client(server.url, timeout=5.0)

    def work(keys: Plan) -> None:
        for key, save in keys:
            if save:
                client.call_packed(key, SET(key, VALUE), retry=True)
            else:
                client.call_packed(key, GET(key), retry=True)

    crew = Crew(threads, work)
    measure(benchmark, server, blocking(threads), crew.one_round)
    crew.dismiss()
    client.close()


def test_a_bare_socket(benchmark: Any, server: RedisServer) -> None:
    """The floor of one thread: commands packed by hand, a socket, hiredis; no pool, no deadline, no errors."""
    with socket.create_connection((server.host, server.port)) as wire:
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reader, keys = hiredis.Reader(), plan(0, 1)

        def work() -> None:
            for key, save in keys:
                wire.sendall(SET(key, VALUE) if save else GET(key))
                reader.feed(wire.recv(65536))
                while reader.gets() is False:
                    reader.feed(wire.recv(65536))

        measure(benchmark, server, blocking(1), work)


@pytest.mark.parametrize("threads", THREADS)
def test_redis_py(benchmark: Any, server: RedisServer, threads: int) -> None:
    client = redis.Redis.from_url(server.url)

    def work(keys: Plan) -> None:
        for key, save in keys:
            if save:
                client.set(key, VALUE, ex=TTL)
            else:
                client.get(key)

    crew = Crew(threads, work)
    measure(benchmark, server, blocking(threads), crew.one_round)
    crew.dismiss()
    client.close()
