"""The blocking side: threads that share links, and whatever may interrupt one between writing and reading."""

import contextlib
import ctypes
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from cysession.errors import StorageUnavailable
from cysession.storage.redis.client import Client
from tests.redis.servers import Proxy, RedisServer, eventually

pytestmark = pytest.mark.redis


class Killed(BaseException):
    """What gevent.Timeout, GreenletExit or a signal handler raise: no Exception."""


@pytest.fixture
def client(server: RedisServer) -> Iterator[Client]:
    made = Client(server.url, links=3, timeout=2.0)
    yield made
    made.close()


def pool_is_whole(client: Client, server: RedisServer) -> None:
    """Every link can still be had at once, none is lost, and all answer their own caller."""
    (node,) = client.nodes
    assert node.pool.size <= 3
    assert server.clients() <= 3
    results: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda n=n: results.update({n: client.call(b"", b"ECHO", b"%d" % n)}))
        for n in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: b"%d" % n for n in range(20)}
    assert node.pool.size <= 3


@pytest.mark.parametrize("threads", [1, 3, 8, 32])
def test_every_thread_gets_its_own_replies(server: RedisServer, client: Client, threads: int) -> None:
    wrong: list[Any] = []
    secrets = {b"k%d" % n: os.urandom(20 * (n + 1)) for n in range(threads)}
    for key, secret in secrets.items():
        server.ok("SET", key, secret)

    def work(key: bytes) -> None:
        for n in range(100):
            if client.call(key, b"GET", key) != secrets[key]:
                wrong.append(key)
            if client.call_many(key, [(b"ECHO", b"%d" % n), (b"GET", key)]) != [b"%d" % n, secrets[key]]:
                wrong.append(key)

    workers = [threading.Thread(target=work, args=(key,)) for key in secrets]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []
    assert server.clients() <= 3


def test_threads_share_writes_when_links_are_few(server: RedisServer) -> None:
    """Flat combining: with one link and sixteen threads the server reads its socket less often than commands come."""
    client = Client(server.url, links=1, timeout=5.0)
    client.call(b"", b"PING")
    before = server.info("stats")
    threads = [
        threading.Thread(target=lambda: [client.call(b"", b"PING") for _ in range(200)]) for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    after = server.info("stats")
    commands = int(after["total_commands_processed"]) - int(before["total_commands_processed"])
    reads = int(after["total_reads_processed"]) - int(before["total_reads_processed"])
    assert commands >= 3200
    assert reads < commands / 2
    client.close()


# A socket that is made but has not got its name yet when the signal comes, is closed by the collector, with a warning.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.stress
def test_R29_signals_that_raise(server: RedisServer, client: Client) -> None:
    """A handler raises at any point of a call; the link it was on is dropped, and no reply is left in any."""
    values = {b"k%d" % n: b"<%d>" % n * 50 for n in range(50)}
    for key, value in values.items():
        server.ok("SET", key, value)
    chance = random.Random(5)
    interrupted = 0

    def interrupt(*_: object) -> None:
        raise Killed

    old = signal.signal(signal.SIGALRM, interrupt)
    try:
        while interrupted < 300:
            key = chance.choice(sorted(values))
            try:
                signal.setitimer(signal.ITIMER_REAL, chance.random() * 0.0002 + 1e-6)
                reply = client.call(key, b"GET", key)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Killed:
                interrupted += 1
                continue
            assert reply == values[key]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    pool_is_whole(client, server)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # as above
@pytest.mark.stress
def test_R29_exceptions_thrown_into_threads(server: RedisServer, client: Client) -> None:
    """As greenlets are killed: leaders and riders of shared writes too."""
    values = {b"k%d" % n: b"<%d>" % n * 50 for n in range(50)}
    for key, value in values.items():
        server.ok("SET", key, value)
    wrong: list[Any] = []
    killed = threading.Semaphore(0)
    stop = threading.Event()

    def work(seed: int) -> None:
        chance = random.Random(seed)
        keys = sorted(values)
        while not stop.is_set():
            # Thrown in anywhere, also outside of a call; all that counts is what comes out of one.
            with contextlib.suppress(Killed):
                key = chance.choice(keys)
                try:
                    reply = client.call(key, b"GET", key, retry=True)
                    if reply != values[key]:
                        wrong.append((key, reply))
                except StorageUnavailable:
                    pass
                except Killed:
                    killed.release()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    chance = random.Random(1)
    try:
        for _ in range(400):
            time.sleep(0.001)
            target = chance.choice(threads).ident
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(target), ctypes.py_object(Killed))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert killed.acquire(blocking=False)
    assert wrong == []
    pool_is_whole(client, server)


def test_a_leader_that_dies_fails_those_who_ride_along(own_server: RedisServer) -> None:
    """They learn at once that it is lost, rather than waiting for their deadlines."""
    client = Client(own_server.url, links=1, timeout=30.0)
    client.call(b"", b"PING")
    own_server.freeze()
    first = threading.Thread(target=lambda: outcome(client, b"first"))
    results: list[Any] = []

    def outcome(client: Client, text: bytes) -> None:
        try:
            results.append(client.call(b"", b"ECHO", text))
        except BaseException as error:
            results.append(error)

    first.start()
    time.sleep(0.05)
    others = [threading.Thread(target=outcome, args=(client, b"%d" % n)) for n in range(5)]
    for thread in others:
        thread.start()
    time.sleep(0.05)
    own_server.kill()  # the first is reset; the next connects, is refused, and so on through the queue
    for thread in (first, *others):
        thread.join(20)
    assert len(results) == 6
    assert {type(r) for r in results} == {StorageUnavailable}


def test_a_restart_leaves_no_dead_links_for_the_retry(own_server: RedisServer) -> None:
    """All links that rest are dead; one retry is enough."""
    client = Client(own_server.url, links=4, timeout=5.0)
    own_server.freeze()  # so that four threads need four links
    threads = [threading.Thread(target=lambda: client.call(b"", b"PING")) for _ in range(4)]
    for thread in threads:
        thread.start()
    eventually(lambda: client.nodes[0].pool.size == 4, "four links are being opened")
    own_server.thaw()
    for thread in threads:
        thread.join()
    own_server.restart()
    assert client.call(b"", b"PING", retry=True) == b"PONG"
    client.close()


def test_a_link_closed_by_the_server_while_it_rested(own_server: RedisServer) -> None:
    """An idle link is looked at before it is used: even what may not be sent twice meets no dead link."""
    from cysession.storage.redis import link

    client = Client(own_server.url)
    client.call(b"", b"PING")
    own_server.ok("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(link, "STALE", -1.0)
        eventually(lambda: own_server.clients() == 0, "the server has closed it")
        assert client.call(b"n", b"INCR", b"n") == 1
    client.close()


def test_R30_fork(server: RedisServer, client: Client) -> None:
    """Children do not touch the parent's connections, nor it theirs; with threads in the middle of calls."""
    stop = threading.Event()
    wrong: list[Any] = []

    def work(n: int) -> None:
        while not stop.is_set():
            if client.call(b"", b"ECHO", b"%d" % n) != b"%d" % n:
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(10):
            pid = os.fork()
            if not pid:
                status = 1
                try:
                    for n in range(50):
                        assert client.call(b"", b"ECHO", b"child %d" % n) == b"child %d" % n
                    client.close()
                    status = 0
                finally:
                    os._exit(status)
            _, status = os.waitpid(pid, 0)
            assert os.waitstatus_to_exitcode(status) == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    pool_is_whole(client, server)


def test_a_reset_in_the_middle_of_a_shared_write(server: RedisServer, proxy: Proxy) -> None:
    client = Client(proxy.url, links=1, timeout=2.0)
    for n in range(12):
        server.ok("SET", f"k{n}", f"v{n}" * 100)
    results: list[Any] = [None] * 12

    def work(n: int) -> None:
        for _ in range(30):
            results[n] = client.call(b"", b"GET", b"k%d" % n, retry=True)
            assert results[n] == b"v%d" % n * 100

    threads = [threading.Thread(target=work, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [b"v%d" % n * 100 for n in range(12)]
    client.close()
    assert sys.getrefcount(client) < 10


def test_R29_a_link_that_is_lost_with_its_thread_gives_its_place_back(server: RedisServer) -> None:
    """Killed between taking the only link and using it; the next caller opens another, in time."""
    client = Client(server.url, links=1, timeout=1.0)
    client.call(b"", b"PING")
    pool = client.nodes[0].pool
    for _ in range(3):
        pool._idle.pop()  # and that was the last that anybody knew of it

        def works() -> bool:
            try:
                return bool(client.call(b"", b"PING") == b"PONG")
            except StorageUnavailable:
                return False

        eventually(works, "a new link is opened")
        assert pool.size == 1
    eventually(lambda: server.clients() == 1, "the lost ones are closed")
    client.close()
