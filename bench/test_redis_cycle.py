"""What does a whole request cycle on Redis cost (load, get, set, commit), next to the Python peers on the same server?

    python bench/test_redis_cycle.py            the table: cycles a second, round trips, bytes, CPU of the server
    python bench/test_redis_cycle.py --seconds 3 --rounds 5

Sessions hold about 512 bytes; every cycle loads one of 2,000, reads a key and changes another. 32 tasks, each with its
own share of the sessions; the two peers that know no event loop run in 32 threads, and alone in one, whichever is
faster. Only the session layer is timed: no HTTP, no cookies. All ways run in alternation in one process, pinned to one
processor with the server on another, and the best round of each counts. The bar is four times the best peer. On a
machine that does other things as well, the CPU time of a cycle says more than the time that it took.

Peers do less in a cycle: none checks that the session was not destroyed or changed meanwhile, and all write it whole.

Round trips and bytes are counted by a relay between client and server, over cycles one after the other: once the
direction turns towards the server again, a round trip has begun. Connection set-up is not counted.
"""

import argparse
import asyncio
import contextlib
import functools
import itertools
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import django.conf
import pytest
import redis.asyncio
import uvloop
from race import Absent, Race, built

from cysession import Manager, RedisHashStorage, RedisStorage
from tests.redis.servers import RedisServer

TASKS = 32
CYCLES = 640  # a round
SESSIONS = 2000
TTL = 3600
FRESH = itertools.count()  # so that every write changes something

Loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


def contents(number: int) -> dict[str, str]:
    return {
        "uid": f"u{number:08d}",
        "name": f"user number {number:09d}",
        "csrf": f"{number:032x}",
        "preferences": "abcdefgh" * 49,
    }


# ---- ours ------------------------------------------------------------------------------------------------


class Ours:
    """cysession, one string a session."""

    threads = False
    storage: ClassVar[type[RedisStorage]] = RedisStorage

    def __init__(self, url: str) -> None:
        self.manager = Manager(TTL, self.storage(url, timeout=60.0))

    async def fill(self) -> list[str]:
        return [await self._made(number) for number in range(SESSIONS)]

    async def _made(self, number: int) -> str:
        async with self.manager.new() as session:
            session.set_map(contents(number))
        return session.id

    async def cycle(self, key: str) -> None:
        session = self.manager.new(key)
        await session.aload()
        session.get("uid")
        session.set("name", f"user number {next(FRESH):09d}")
        await session.aclose()

    async def close(self) -> None:
        await self.manager.aclose()


class OursInHashes(Ours):
    """cysession, one hash a session."""

    storage = RedisHashStorage


class OursInThreads(Ours):
    """cysession, one string a session, blocking calls."""

    threads = True

    def cycle_now(self, key: str) -> None:
        session = self.manager.new(key)
        session.load()
        session.get("uid")
        session.set("name", f"user number {next(FRESH):09d}")
        session.close()


# ---- peers -----------------------------------------------------------------------------------------------


class Peer:
    threads = False

    def __init__(self, url: str) -> None:
        self.url = url
        self.redis = redis.asyncio.Redis.from_url(url)
        self.ids = [f"{number:032x}" for number in range(SESSIONS)]
        self.setup()

    def setup(self) -> None: ...

    async def fill(self) -> list[str]:
        for number, key in enumerate(self.ids):
            await self.put(key, contents(number))
        return self.ids

    async def put(self, key: str, data: dict[str, str]) -> None: ...

    async def cycle(self, key: str) -> None: ...

    def cycle_now(self, key: str) -> None: ...

    async def close(self) -> None:
        await self.redis.aclose()


class Starsessions(Peer):
    """starsessions, RedisStore"""

    def setup(self) -> None:
        from starlette.requests import HTTPConnection
        from starsessions.serializers import JsonSerializer
        from starsessions.session import SessionHandler
        from starsessions.stores.redis import RedisStore

        store, serializer = RedisStore(connection=self.redis), JsonSerializer()
        self.handler = lambda key: SessionHandler(
            HTTPConnection({"type": "http"}), key, store, serializer, TTL
        )

    async def put(self, key: str, data: dict[str, str]) -> None:
        handler = self.handler(key)
        await handler.load()
        handler.connection.scope["session"].update(data)
        await handler.save(TTL)

    async def cycle(self, key: str) -> None:
        handler = self.handler(key)
        await handler.load()
        session = handler.connection.session
        session["uid"]
        session["name"] = f"user number {next(FRESH):09d}"
        await handler.save(TTL)


class Litestar(Peer):
    """Litestar, ServerSideSessionBackend over RedisStore"""

    def setup(self) -> None:
        from litestar.middleware.session.server_side import ServerSideSessionConfig
        from litestar.stores.redis import RedisStore

        self.backend = ServerSideSessionConfig(max_age=TTL)._backend_class(
            ServerSideSessionConfig(max_age=TTL)
        )
        self.store = RedisStore(self.redis)

    async def put(self, key: str, data: dict[str, str]) -> None:
        await self.backend.set(key, self.backend.serialize_data(data), self.store)

    async def cycle(self, key: str) -> None:
        backend = self.backend
        session = backend.deserialize_data(await backend.get(key, self.store))
        session["uid"]
        session["name"] = f"user number {next(FRESH):09d}"
        await backend.set(key, backend.serialize_data(session), self.store)


class AiohttpSession(Peer):
    """aiohttp-session, RedisStorage"""

    def setup(self) -> None:
        from aiohttp_session.redis_storage import RedisStorage as TheirStorage

        self.storage = TheirStorage(self.redis, max_age=TTL)
        self.response: Any = SimpleNamespace(set_cookie=lambda *_, **__: None)

    async def put(self, key: str, data: dict[str, str]) -> None:
        stored = json.dumps({"created": int(time.time()), "session": data})
        await self.redis.set(f"AIOHTTP_SESSION_{key}", stored, ex=TTL)

    async def cycle(self, key: str) -> None:
        request: Any = SimpleNamespace(cookies={"AIOHTTP_SESSION": key})
        session = await self.storage.load_session(request)
        session["uid"]
        session["name"] = f"user number {next(FRESH):09d}"
        await self.storage.save_session(request, self.response, session)


class FlaskSession(Peer):
    """Flask-Session, RedisSessionInterface"""

    threads = True

    def setup(self) -> None:
        import flask
        from flask_session.redis import RedisSessionInterface

        self.app = flask.Flask("bench", root_path=str(Path(__file__).parent))
        self.interface = RedisSessionInterface(self.app, client=redis.Redis.from_url(self.url))
        self.response: Any = SimpleNamespace(vary=set(), set_cookie=lambda *_, **__: None)

    async def put(self, key: str, data: dict[str, str]) -> None:
        session = self.interface.session_class(data, sid=key)
        self.interface.save_session(self.app, session, self.response)

    def cycle_now(self, key: str) -> None:
        request: Any = SimpleNamespace(cookies={"session": key})
        session = self.interface.open_session(self.app, request)
        session["uid"]
        session["name"] = f"user number {next(FRESH):09d}"
        self.interface.save_session(self.app, session, self.response)


class Django(Peer):
    """Django, the cache backend over its Redis cache"""

    threads = True

    def setup(self) -> None:
        if not django.conf.settings.configured:
            django.conf.settings.configure(SECRET_KEY="s" * 50, SESSION_COOKIE_AGE=TTL)
        caches = {"default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": self.url}}
        django.conf.settings.CACHES = caches
        from django.core import cache

        cache.caches = cache.CacheHandler()
        from django.contrib.sessions.backends.cache import SessionStore

        self.made = SessionStore
        self.caches = cache.caches

    def session(self, key: str | None = None) -> Any:
        session = self.made(key)
        session._cache = self.caches["default"]
        return session

    async def fill(self) -> list[str]:
        def fill() -> list[str]:
            ids = []
            for number in range(SESSIONS):
                session = self.session()
                session.update(contents(number))
                session.create()
                ids.append(session.session_key)
            return ids

        return await asyncio.to_thread(fill)

    def cycle_now(self, key: str) -> None:
        session = self.session(key)
        session["uid"]
        session["name"] = f"user number {next(FRESH):09d}"
        session.save()


WAYS: dict[str, Any] = {
    "cysession": Ours,
    "cysession, hashes": OursInHashes,
    "cysession, threads": OursInThreads,
    "starsessions": Starsessions,
    "Litestar": Litestar,
    "aiohttp-session": AiohttpSession,
    "Flask-Session": FlaskSession,
    "Django": Django,
}


# ---- running cycles ------------------------------------------------------------------------------------


class Running:
    """One way, filled, on its loop or in its threads."""

    def __init__(self, way: str, url: str, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.way = WAYS[way](url)
        self.ids: list[str] = self.run(self.way.fill())

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    def cycles(self, count: int, tasks: int = TASKS) -> None:
        """`count` cycles, shared by so many tasks or threads."""
        shares = [self.ids[number::tasks] for number in range(tasks)]
        each = max(1, count // tasks)
        if self.way.threads:
            threads = [threading.Thread(target=self._in_thread, args=(share, each)) for share in shares]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        else:
            self.run(self._in_tasks(shares, each))

    def _in_thread(self, share: list[str], each: int) -> None:
        cycle = self.way.cycle_now
        for key in itertools.islice(itertools.cycle(share), each):
            cycle(key)

    async def _in_tasks(self, shares: list[list[str]], each: int) -> None:
        async def work(share: list[str]) -> None:
            cycle = self.way.cycle
            for key in itertools.islice(itertools.cycle(share), each):
                await cycle(key)

        await asyncio.gather(*map(work, shares))

    def close(self) -> None:
        self.run(self.way.close())
        self.loop.close()


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as made:
        yield made


@pytest.mark.parametrize("loop", Loops)
def test_cycle(race: Race, server: RedisServer, loop: str) -> None:
    """Those that work in threads know no event loop; they are beside the others on asyncio."""
    ways = [way for way in WAYS if loop == "asyncio" or not WAYS[way].threads]
    running = {way: built(Running, way, server.url, Loops[loop]()) for way in ways}
    told = race(
        f"load, get, set, commit on Redis: {TASKS} at once, {loop}",
        {
            way: one if isinstance(one, Absent) else functools.partial(one.cycles, CYCLES)
            for way, one in running.items()
        },
        operations=CYCLES,
        seconds=1.0,
        rounds=(5, 30),
    )
    for way, facts in told.items():
        before = server_cpu(server)
        running[way].cycles(4 * CYCLES)
        facts["server CPU, us a cycle"] = round(1e6 * (server_cpu(server) - before) / (4 * CYCLES), 1)
        trips, sent, received = on_the_wire(server, way)
        facts.update({"round trips": round(trips, 2), "bytes out": round(sent), "bytes in": round(received)})
    for one in running.values():
        if not isinstance(one, Absent):
            one.close()


# ---- the table -------------------------------------------------------------------------------------------


class Relay:
    """Counts what goes between clients and a server."""

    def __init__(self, port: int) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.server = port
        self.reset()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def reset(self) -> None:
        self.trips = self.sent = self.received = 0

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:  # closed
                return
            upstream = socket.create_connection(("127.0.0.1", self.server))
            for end in (client, upstream):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            turned = [True]  # whether the server had the last word
            for pair in ((client, upstream, True), (upstream, client, False)):
                threading.Thread(target=self._pass_on, args=(*pair, turned), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, up: bool, turned: list[bool]) -> None:
        """Both threads of a connection end with it, and each closes the end that it read from."""
        with source, contextlib.suppress(OSError):
            while data := source.recv(65536):
                if up:
                    self.trips += turned[0]
                    self.sent += len(data)
                else:
                    self.received += len(data)
                turned[0] = not up
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


def on_the_wire(server: RedisServer, way: str, count: int = 200) -> tuple[float, float, float]:
    """(round trips, bytes sent, bytes received) of a cycle."""
    relay = Relay(server.port)
    running = Running(way, server.url_to(relay.port), asyncio.new_event_loop())
    running.cycles(50, tasks=1)
    relay.reset()
    running.cycles(count, tasks=1)
    found = relay.trips / count, relay.sent / count, relay.received / count
    running.close()
    relay.close()
    return found


def pin(server: RedisServer) -> None:
    """This process on one processor, the server on another, for all that is measured."""
    processors = sorted(os.sched_getaffinity(0))
    assert server.process is not None
    if len(processors) > 1:
        os.sched_setaffinity(server.process.pid, {processors[1]})
        os.sched_setaffinity(0, {processors[0]})


class Figures(NamedTuple):
    """The best of all rounds, each figure for itself."""

    rate: float = 0.0  # cycles a second
    client: float = float("inf")  # us of this process's CPU a cycle
    server: float = float("inf")

    def best(self, other: "Figures") -> "Figures":
        return Figures(
            max(self.rate, other.rate), min(self.client, other.client), min(self.server, other.server)
        )


def server_cpu(server: RedisServer) -> float:
    spent = server.info("cpu")
    return float(spent["used_cpu_user"]) + float(spent["used_cpu_sys"])


def measure(running: Running, server: RedisServer, seconds: float, tasks: int) -> Figures:
    count, batch = 0, 640
    busy, own, begin = server_cpu(server), time.process_time(), time.perf_counter()
    while (taken := time.perf_counter() - begin) < seconds:
        running.cycles(batch, tasks)
        count += max(1, batch // tasks) * tasks
    own = time.process_time() - own
    return Figures(count / taken, own / count * 1e6, (server_cpu(server) - busy) / count * 1e6)


def table(server: RedisServer, seconds: float, rounds: int) -> None:
    pin(server)
    rows: dict[str, tuple[Running, int]] = {}
    for way, made in WAYS.items():
        if made.threads:
            one = Running(way, server.url, asyncio.new_event_loop())
            rows[f"{way}, {TASKS} threads"] = one, TASKS
            rows[f"{way}, 1 thread"] = one, 1
        else:
            for name, loop in Loops.items():
                rows[f"{way}, {name}"] = Running(way, server.url, loop()), TASKS
    best = dict.fromkeys(rows, Figures())
    for _ in range(rounds):
        for name, (running, tasks) in rows.items():
            running.cycles(64, tasks)
            best[name] = best[name].best(measure(running, server, seconds, tasks))
    print(f"{'':34}{'cycles/s':>10}{'us':>8}{'CPU us':>8}{'server CPU us':>15}")
    for name, (rate, own, others) in best.items():
        print(f"{name:34}{rate:10,.0f}{1e6 / rate:8.1f}{own:8.1f}{others:15.1f}")
    for loop in Loops:
        compare(best, loop)
    print(f"\n{'a cycle, one after the other':34}{'trips':>8}{'sent':>8}{'received':>10}{'bytes':>8}")
    for way in WAYS:
        trips, sent, received = on_the_wire(server, way)
        print(f"{way:34}{trips:8.2f}{sent:8.0f}{received:10.0f}{sent + received:8.0f}")
    for running in {id(running): running for running, _ in rows.values()}.values():
        running.close()


def compare(best: dict[str, Figures], loop: str) -> None:
    ours = best[f"cysession, {loop}"]
    peers = {
        name: figures
        for name, figures in best.items()
        if not name.startswith("cysession") and not name.endswith(_other(loop))
    }
    fastest = max(peers, key=lambda name: peers[name].rate)
    leanest = min(peers, key=lambda name: peers[name].client)
    print(
        f"on {loop}: {ours.rate / peers[fastest].rate:.1f} times the cycles of {fastest}; "
        f"{peers[leanest].client / ours.client:.1f} times those of {leanest} in the same CPU time; the bar is 4"
    )


def _other(loop: str) -> str:
    return next(name for name in Loops if name != loop)


def main() -> None:
    parser = argparse.ArgumentParser(description="Request cycles on Redis, ours and others'")
    parser.add_argument("--seconds", type=float, default=1.0, help="of one measurement (default 1)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each way (default 3)")
    options = parser.parse_args()
    with RedisServer() as server:
        table(server, options.seconds, options.rounds)


if __name__ == "__main__":
    main()
