"""What does a near-cache save a site that mostly reads, and what does it cost one that writes?

2,000 sessions of 512 bytes, and two kinds of request: one that only looks (load, get), by one task and by 32 at once,
and one that changes a key (load, get, set, commit). The near-cache answers the first without a round trip: what it
saves is the network, which is short here, and the server's work. The second is announced to us too, so the next load
of that session asks the server, for its time to live as well. The same server for all.
"""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import uvloop
from test_redis_cycle import Ours

from cysession import Manager, RedisStorage
from tests.redis.servers import RedisServer

CYCLES = 1920


class Plain(Ours):
    near_cache = 0

    def __init__(self, url: str) -> None:
        self.manager = Manager(3600, RedisStorage(url, timeout=5.0, near_cache=self.near_cache))

    async def look(self, key: str) -> None:
        session = self.manager.new(key)
        await session.aload()
        session.get("uid")
        await session.aclose()


class Near(Plain):
    near_cache = 10_000


KINDS = {"without": Plain, "with a near-cache": Near}


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as made:
        yield made


@pytest.mark.parametrize(
    ("tasks", "writes"), [(1, False), (32, False), (32, True)], ids=["one looks", "32 look", "32 change"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_requests(benchmark: Any, server: RedisServer, kind: str, tasks: int, writes: bool) -> None:
    server.flush()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        site = KINDS[kind](server.url)
        shares = [ids[number::tasks] for ids in [runner.run(site.fill())] for number in range(tasks)]

        async def task(share: list[str]) -> None:
            request = site.cycle if writes else site.look
            for turn in range(CYCLES // tasks):
                await request(share[turn % len(share)])

        async def one_round() -> None:
            await asyncio.gather(*map(task, shares))

        for _ in range(3):
            runner.run(one_round())
        benchmark.name = f"cysession, {kind}"
        benchmark.group = (
            f"{'load, get, set, commit' if writes else 'load, get'}: {tasks} at once, per {CYCLES} requests"
        )
        before = int(server.info("stats")["total_commands_processed"])
        benchmark.pedantic(lambda: runner.run(one_round()), rounds=15)
        asked = int(server.info("stats")["total_commands_processed"]) - before
        benchmark.extra_info["commands a request"] = round(asked / (15 * CYCLES), 2)
        runner.run(site.close())
