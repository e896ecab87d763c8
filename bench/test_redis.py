"""What does a command to Redis cost through our client layer, next to redis-py doing the same commands?

80 % GET and 20 % SET with an expiry, of 512 bytes, over 2,000 keys, as a site's sessions load and save. Bars, in
throughput: awaited 2.5, 10 and 10 times redis.asyncio with 1, 32 and 256 tasks; blocking 2 and 2.5 times redis-py with
1 and 16 threads. The same server for all. Nothing is pinned: on a virtual machine a processor that sleeps between two
commands costs more to wake than either client, and one task on a pair of pinned processors would measure only that.

Beside the times: CPU of the server for one command (its own account), and how many commands it read at once. hiredis
parses the replies of both. redis-py has connections enough for every task to keep its own.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

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


def plan(worker: int, workers: int) -> list[tuple[bytes, bool]]:
    """The keys that one task or thread asks for in a round, and whether it saves."""
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


def awaited(loop: str, tasks: int) -> str:
    return f"{tasks} task{'s' * (tasks > 1)} on {loop}"


@pytest.mark.parametrize("tasks", TASKS)
@pytest.mark.parametrize("loop", LOOPS)
def test_cysession_awaited(benchmark: Any, server: RedisServer, loop: str, tasks: int) -> None:
    client = Client(server.url, timeout=5.0)

    async def worker(keys: list[tuple[bytes, bool]]) -> None:
        for key, save in keys:
            if save:
                await client.acall_packed(key, SET(key, VALUE), retry=True)
            else:
                await client.acall_packed(key, GET(key), retry=True)

    plans = [plan(number, tasks) for number in range(tasks)]

    async def one_round() -> None:
        await asyncio.gather(*[worker(keys) for keys in plans])

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        measure(benchmark, server, awaited(loop, tasks), lambda: runner.run(one_round()))
        runner.run(client.aclose())


@pytest.mark.parametrize("tasks", TASKS)
@pytest.mark.parametrize("loop", LOOPS)
def test_redis_asyncio(benchmark: Any, server: RedisServer, loop: str, tasks: int) -> None:
    client = redis.asyncio.Redis.from_url(server.url, max_connections=300)

    async def worker(keys: list[tuple[bytes, bool]]) -> None:
        for key, save in keys:
            if save:
                await client.set(key, VALUE, ex=TTL)
            else:
                await client.get(key)

    plans = [plan(number, tasks) for number in range(tasks)]

    async def one_round() -> None:
        await asyncio.gather(*[worker(keys) for keys in plans])

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        measure(benchmark, server, awaited(loop, tasks), lambda: runner.run(one_round()))
        runner.run(client.aclose())


# ---- blocking ----------------------------------------------------------------------------------------------


class Crew:
    """Threads that do a round each time they are told to; starting threads is not measured."""

    def __init__(self, threads: int, work: Callable[[list[tuple[bytes, bool]]], None]) -> None:
        self.go = threading.Barrier(threads + 1)
        self.done = threading.Barrier(threads + 1)
        self.over = False
        self.work = work
        self.threads = [threading.Thread(target=self._run, args=(plan(n, threads),)) for n in range(threads)]
        for thread in self.threads:
            thread.start()

    def _run(self, keys: list[tuple[bytes, bool]]) -> None:
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

    def work(keys: list[tuple[bytes, bool]]) -> None:
        for key, save in keys:
            if save:
                client.call_packed(key, SET(key, VALUE), retry=True)
            else:
                client.call_packed(key, GET(key), retry=True)

    crew = Crew(threads, work)
    measure(benchmark, server, blocking(threads), crew.one_round)
    crew.dismiss()
    client.close()


@pytest.mark.parametrize("threads", THREADS)
def test_redis_py(benchmark: Any, server: RedisServer, threads: int) -> None:
    client = redis.Redis.from_url(server.url)

    def work(keys: list[tuple[bytes, bool]]) -> None:
        for key, save in keys:
            if save:
                client.set(key, VALUE, ex=TTL)
            else:
                client.get(key)

    crew = Crew(threads, work)
    measure(benchmark, server, blocking(threads), crew.one_round)
    crew.dismiss()
    client.close()
