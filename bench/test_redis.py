"""What does a command to Redis cost through our client layer, next to redis-py doing the same commands?

80 % GET and 20 % SET with an expiry, of 512 bytes, over 2,000 keys, as a site's sessions load and save. Bars, in
throughput: awaited 2.5, 10 and 10 times redis.asyncio with 1, 32 and 256 tasks; blocking 2 and 2.5 times redis-py with
1 and 16 threads. The same server for all. One task and one thread are measured twice. On processors of the system's
choice, client and server wake each other for every command, which on a virtual machine takes longer than any client
and which no client can spare: see how little the bare connection takes less than any other. On one processor there is
nothing to wake, and what differs is the clients.

Beside the times: CPU of the server for one command (its own account), and how many commands it read at once. hiredis
parses the replies of both. redis-py has connections enough for every task to keep its own. coredis and valkey-glide
(a core in Rust) share connections between tasks, as we do; a bare connection with hiredis is the floor of one task and
of one thread.
"""

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, contextmanager
from typing import Any, TypeAlias

import hiredis
import pytest
import redis
import redis.asyncio
import uvloop
from race import SHARE, Absent, Race, built

from cysession.storage.redis.client import Client
from cysession.storage.redis.wire import Template
from tests.redis.servers import RedisServer

COMMANDS = max(1, int(16 * min(1.0, SHARE))) * 256  # a round; a multiple of all numbers of tasks and threads
SECONDS = 2.0  # a client
ASKED = 2  # rounds that the server is asked about
BARE = "a bare connection with hiredis"
NOTES = {BARE: "pool, deadline, retry, errors, sharing"}
TTL = 3600
VALUE = b"x" * 512
KEYS = [b"session:%064x" % n for n in range(2000)]
GET = Template(b"GET", Template.HOLE)
SET = Template(b"SET", Template.HOLE, Template.HOLE, b"EX", TTL)
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
TOGETHER = ", client and server on one processor"
TASKS = {"1 task": 1, "1 task" + TOGETHER: 1, "32 tasks": 32, "256 tasks": 256}
THREADS = {"1 thread": 1, "1 thread" + TOGETHER: 1, "16 threads": 16}


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as made:
        made.commands(*[("SET", key, VALUE, "EX", TTL) for key in KEYS])
        yield made


@contextmanager
def placed(group: str, server: RedisServer) -> Iterator[None]:
    """On the processors that the name of the group asks for. Threads made meanwhile inherit them."""
    if TOGETHER not in group or not hasattr(os, "sched_setaffinity"):
        yield
        return
    assert server.process is not None
    all_of_them = os.sched_getaffinity(0)
    both = (0, server.process.pid)
    for pid in both:
        os.sched_setaffinity(pid, {max(all_of_them)})
    try:
        yield
    finally:
        for pid in both:
            os.sched_setaffinity(pid, all_of_them)


Plan: TypeAlias = list[tuple[bytes, bool]]
"""The keys that one task or thread asks for in a round, and whether it saves."""


def plan(worker: int, workers: int) -> Plan:
    return [(KEYS[(worker * 7919 + n * 31) % len(KEYS)], n % 5 == 4) for n in range(COMMANDS // workers)]


def measure(
    race: Race, server: RedisServer, group: str, one_round: Mapping[str, Callable[[], object] | Absent]
) -> None:
    """In turn; afterwards, untimed, what the server says of some rounds of each."""
    said = race(group, one_round, operations=COMMANDS, seconds=SECONDS, rounds=(5, 40), notes=NOTES)
    for name, extra in said.items():
        run = one_round[name]
        assert not isinstance(run, Absent)
        before = _account(server)
        for _ in range(ASKED):
            run()
        cpu, reads = (after - was for after, was in zip(_account(server), before, strict=True))
        extra["server CPU, us a command"] = round(1e6 * cpu / (COMMANDS * ASKED), 2)
        extra["commands a read of the server"] = round(COMMANDS * ASKED / reads, 1)


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


@asynccontextmanager
async def open_ours(server: RedisServer) -> AsyncIterator[Worker]:
    client = Client(server.url, timeout=60.0)

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
    client = await glide.GlideClient.create(glide.GlideClientConfiguration(where, request_timeout=60000))
    expiry = glide.ExpirySet(glide.ExpiryType.SEC, TTL)

    async def worker(keys: Plan) -> None:
        for key, save in keys:
            if save:
                await client.set(key, VALUE, expiry=expiry)
            else:
                await client.get(key)

    yield worker
    await client.close()


class BareConnection(asyncio.Protocol):
    """The floor of one task: commands packed by hand, a transport of the loop, hiredis."""

    reply: "asyncio.Future[Any]"

    def __init__(self) -> None:
        self.reader = hiredis.Reader()

    def data_received(self, data: bytes) -> None:
        self.reader.feed(data)
        reply = self.reader.gets()
        if reply is not False:
            self.reply.set_result(reply)


@asynccontextmanager
async def open_bare(server: RedisServer) -> AsyncIterator[Worker]:
    loop = asyncio.get_running_loop()
    transport, wire = await loop.create_connection(BareConnection, server.host, server.port)

    async def worker(keys: Plan) -> None:
        for key, save in keys:
            wire.reply = loop.create_future()
            transport.write(SET(key, VALUE) if save else GET(key))
            await wire.reply

    yield worker
    transport.close()


AWAITED: dict[str, Opened] = {
    "cysession": open_ours,
    "redis-py": open_redis_py,
    "coredis": open_coredis,
    "valkey-glide": open_glide,
    BARE: open_bare,
}


@pytest.mark.parametrize("at_once", TASKS)
@pytest.mark.parametrize("loop", LOOPS)
def test_awaited(race: Race, server: RedisServer, loop: str, at_once: str) -> None:
    """What one task does in a round is written out for each client: none pays for a common layer."""
    with placed(at_once, server):
        first, comma, rest = at_once.partition(",")
        race_awaited(race, server, LOOPS[loop], f"{first} on {loop}{comma}{rest}", TASKS[at_once])


def race_awaited(race: Race, server: RedisServer, loop: Callable[[], Any], group: str, tasks: int) -> None:
    plans = [plan(number, tasks) for number in range(tasks)]

    async def together(worker: Worker) -> None:
        await asyncio.gather(*[worker(keys) for keys in plans])

    def rounds(worker: Worker) -> Callable[[], object]:
        return lambda: runner.run(together(worker))

    with asyncio.Runner(loop_factory=loop) as runner:
        held = {
            name: Held(opened(server))
            for name, opened in AWAITED.items()
            if tasks == 1 or name != BARE  # which is for one
        }
        workers = {name: built(lambda one=one: runner.run(one.open())) for name, one in held.items()}  # type: ignore[misc]
        contenders = {
            name: worker if isinstance(worker, Absent) else rounds(worker) for name, worker in workers.items()
        }
        measure(race, server, group, contenders)
        for name, one in held.items():
            if not isinstance(workers[name], Absent):
                runner.run(one.close())


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


@contextmanager
def ours_blocking(server: RedisServer) -> Iterator[Callable[[Plan], None]]:
    client = Client(server.url, timeout=60.0)

    def work(keys: Plan) -> None:
        for key, save in keys:
            if save:
                client.call_packed(key, SET(key, VALUE), retry=True)
            else:
                client.call_packed(key, GET(key), retry=True)

    yield work
    client.close()


@contextmanager
def redis_py_blocking(server: RedisServer) -> Iterator[Callable[[Plan], None]]:
    client = redis.Redis.from_url(server.url)

    def work(keys: Plan) -> None:
        for key, save in keys:
            if save:
                client.set(key, VALUE, ex=TTL)
            else:
                client.get(key)

    yield work
    client.close()


@contextmanager
def bare_socket(server: RedisServer) -> Iterator[Callable[[Plan], None]]:
    """The floor of one thread: commands packed by hand, a socket, hiredis."""
    with socket.create_connection((server.host, server.port)) as wire:
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reader = hiredis.Reader()

        def work(keys: Plan) -> None:
            for key, save in keys:
                wire.sendall(SET(key, VALUE) if save else GET(key))
                reader.feed(wire.recv(65536))
                while reader.gets() is False:
                    reader.feed(wire.recv(65536))

        yield work


BLOCKING = {"cysession": ours_blocking, "redis-py": redis_py_blocking, BARE: bare_socket}


@pytest.mark.parametrize("at_once", THREADS)
def test_blocking(race: Race, server: RedisServer, at_once: str) -> None:
    threads = THREADS[at_once]
    with placed(at_once, server), ExitStack() as open_ones:
        crews = {}
        for name, opened in BLOCKING.items():
            if threads == 1 or name != BARE:  # which has one connection
                crews[name] = Crew(threads, open_ones.enter_context(opened(server)))
                open_ones.callback(crews[name].dismiss)
        measure(race, server, at_once, {name: crew.one_round for name, crew in crews.items()})
