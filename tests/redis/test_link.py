"""The short way over a link, in one call of the core, and the long way when that does not do."""

import _socket
import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from cysession._core import limit_socket, trade
from cysession.errors import StorageUnavailable
from cysession.storage.redis import link as link_module
from cysession.storage.redis.client import Client
from cysession.storage.redis.link import Link, Lost
from tests.redis.servers import RedisServer

pytestmark = pytest.mark.redis

Pair = tuple[socket.socket, socket.socket]
NEVER = 60.0  # seconds; whoever waits for so long has missed what should have ended the wait


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert limit_socket(ours.fileno(), NEVER)
        yield ours, theirs


@pytest.fixture
def alarms() -> Iterator[list[int]]:
    """A signal every 10 ms whose handler only takes note, as a profiler's does."""
    noted: list[int] = []
    old = signal.signal(signal.SIGALRM, lambda number, _: noted.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
    try:
        yield noted
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def trade_on(sock: socket.socket) -> None:
    """Again as often as a signal comes in: whoever stops and continues this process sends some."""
    while trade(sock.fileno(), b"?", bytearray(8)) < 0:
        pass


def link_of(client: Client) -> Link:
    """The one that rests."""
    (node,) = client.nodes
    return node.pool._idle[-1]


# ---- one exchange ------------------------------------------------------------------------------------------


def test_trade_writes_all_and_reads_what_there_is(pair: Pair) -> None:
    ours, theirs = pair
    theirs.sendall(b"answer")
    buffer = bytearray(64)
    assert trade(ours.fileno(), b"question", buffer) == 6
    assert buffer[:6] == b"answer"
    assert theirs.recv(64) == b"question"


def test_trade_reads_no_more_than_there_is_room_for(pair: Pair) -> None:
    ours, theirs = pair
    theirs.sendall(b"a long answer")
    buffer = bytearray(6)
    assert trade(ours.fileno(), b"?", buffer) == 6
    assert bytes(buffer) == b"a long"


def test_trade_answers_0_at_the_end_of_the_stream(pair: Pair) -> None:
    ours, theirs = pair
    theirs.shutdown(socket.SHUT_WR)
    assert trade(ours.fileno(), b"?", bytearray(8)) == 0


def test_trade_raises_what_the_system_says(pair: Pair) -> None:
    ours, theirs = pair
    theirs.close()
    with pytest.raises(BrokenPipeError):
        trade_on(ours)
    with pytest.raises(OSError, match=r"[Bb]ad file descriptor"):
        trade(-1, b"?", bytearray(8))


def test_trade_gives_up_when_the_time_is_over(pair: Pair) -> None:
    ours, _ = pair
    assert limit_socket(ours.fileno(), 0.05)
    with pytest.raises(TimeoutError):
        trade_on(ours)


def test_trade_gives_up_on_a_peer_that_reads_nothing(pair: Pair) -> None:
    ours, _ = pair
    assert limit_socket(ours.fileno(), 0.05)
    large = bytes(1 << 24)
    assert -1 - len(large) < trade(ours.fileno(), large, bytearray(8)) < -1
    with pytest.raises(TimeoutError):
        trade_on(ours)


@pytest.mark.parametrize("seconds", [1e-9, 0.0])
def test_no_time_at_all_does_not_mean_for_ever(pair: Pair, seconds: float) -> None:
    ours, _ = pair
    assert limit_socket(ours.fileno(), seconds)
    with pytest.raises(TimeoutError):
        trade_on(ours)


def test_what_is_no_socket_has_no_time_limit() -> None:
    read, write = os.pipe()
    try:
        assert not limit_socket(read, 1.0)
    finally:
        os.close(read)
        os.close(write)


def test_a_signal_ends_the_wait_and_says_how_far_it_came(pair: Pair, alarms: list[int]) -> None:
    ours, theirs = pair
    assert trade(ours.fileno(), b"question", bytearray(8)) == -1 - len(b"question")
    large = bytes(range(256)) * 16384  # more than a socket takes before its peer reads
    sent = -1 - trade(ours.fileno(), large, bytearray(8))
    assert 0 < sent < len(large)
    assert alarms
    theirs.setblocking(False)
    got = b""
    with contextlib.suppress(BlockingIOError):
        while True:
            got += theirs.recv(1 << 20)
    assert got == b"question" + large[:sent]


def test_a_handler_that_raises_is_heard(pair: Pair) -> None:
    ours, _ = pair

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(KeyboardInterrupt):
            trade(ours.fileno(), b"?", bytearray(8))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


# ---- a link ------------------------------------------------------------------------------------------------


def test_R21_signals_do_not_extend_the_deadline(own_server: RedisServer, alarms: list[int]) -> None:
    client = Client(own_server.url, timeout=0.4)
    client.call(b"", b"PING")
    with own_server.frozen():
        start = time.monotonic()
        with pytest.raises(StorageUnavailable, match="did not answer"):
            client.call(b"", b"PING")
        assert 0.3 < time.monotonic() - start < 10
    assert len(alarms) > 10
    client.close()


def test_an_exchange_outlasts_signals(own_server: RedisServer, alarms: list[int]) -> None:
    """What is under way when a signal comes in is finished, and so are those that come after it."""
    client = Client(own_server.url, timeout=NEVER)
    client.call(b"", b"PING")
    own_server.freeze()
    threading.Timer(0.1, own_server.thaw).start()
    assert client.call(b"", b"ECHO", b"late") == b"late"
    assert len(alarms) > 5
    large = os.urandom(200_000)
    for n in range(50):
        assert client.call(b"", b"ECHO", b"%d" % n) == b"%d" % n
        assert client.call(b"", b"ECHO", large) == large
    assert own_server.clients() == 1
    client.close()


def test_a_plain_link_goes_the_short_way_again_after_the_long_one(server: RedisServer) -> None:
    client = Client(server.url, timeout=NEVER)
    client.call(b"", b"PING")
    link = link_of(client)
    large = os.urandom(100_000)
    for _ in range(2):
        assert client.call(b"", b"ECHO", large) == large  # too large for the short way
        assert link.sock.gettimeout() is not None
        assert client.call(b"", b"ECHO", b"small") == b"small"
        assert link.sock.gettimeout() is None
    assert server.clients() == 1
    client.close()


def test_a_server_that_goes_away_is_noticed_on_the_short_way(own_server: RedisServer) -> None:
    client = Client(own_server.url, timeout=NEVER)
    client.call(b"", b"PING")
    own_server.ok("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    with pytest.raises(StorageUnavailable, match="closed the connection"):
        client.call(b"", b"PING")
    assert client.call(b"", b"PING") == b"PONG"
    client.close()


def test_sockets_of_greenlets_go_the_long_way(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """gevent and eventlet put a class in place of socket.socket that wraps a real one; only it may wait."""

    class Green:
        def __init__(self, *args: Any) -> None:
            self._real = _socket.socket(*args)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

    def unexpected(*_: object) -> int:
        raise AssertionError("blocks all greenlets")

    monkeypatch.setattr(link_module, "trade", unexpected)
    monkeypatch.setattr(socket, "socket", Green)
    client = Client(server.url)
    for n in range(3):
        assert client.call(b"", b"ECHO", b"%d" % n) == b"%d" % n
    assert isinstance(link_of(client).sock, Green)
    client.close()


def test_R29_a_closed_link_writes_to_nobody(server: RedisServer) -> None:
    """Its number is given to the next file that is opened."""
    client = Client(server.url)
    for _ in range(2):  # the second time on the short way
        client.call(b"", b"PING")
    link = link_of(client)
    number = link.sock.fileno()
    link.close()
    pairs = [socket.socketpair() for _ in range(8)]
    try:
        assert number in {one.fileno() for pair in pairs for one in pair}
        with pytest.raises(Lost, match="closed"):
            link.exchange(b"*1\r\n$4\r\nPING\r\n", 1, time.monotonic() + 1.0, True)
        for one in (one for pair in pairs for one in pair):
            one.setblocking(False)
            with pytest.raises(BlockingIOError):
                one.recv(1)
    finally:
        for one in (one for pair in pairs for one in pair):
            one.close()
    client.close()
