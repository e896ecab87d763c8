"""The servers that the other tests rely on do what they say."""

import socket

import hiredis
import pytest

from tests.redis.servers import Cluster, Proxy, RedisServer, SentinelSetup, eventually, slot_of

pytestmark = pytest.mark.redis


def test_password_restart_and_freeze() -> None:
    with RedisServer(password="open sesame", maxmemory="100mb") as server:
        assert server.ok("CONFIG", "GET", "maxmemory")[1] == b"104857600"
        with socket.create_connection((server.host, server.port)) as s:
            s.sendall(b"PING\r\n")
            assert s.recv(100).startswith(b"-NOAUTH")
        with server.frozen(), pytest.raises(TimeoutError):
            server.commands(("PING",), timeout=0.05)
        server.restart()
        assert server.ok("PING") == b"PONG"


def test_a_slot_moves_in_a_cluster(cluster: Cluster) -> None:
    slot = slot_of(b"{here}x")
    assert slot == slot_of(b"here") == cluster.nodes[0].ok("CLUSTER", "KEYSLOT", "{here}x")
    cluster.owner(slot).ok("SET", "{here}x", "1")
    source, target = cluster.begin_move(slot)
    assert isinstance(source.command("GET", "{here}y"), hiredis.ReplyError)  # ASK
    cluster.move_keys(slot, source, target)
    cluster.end_move(slot, source, target)
    assert target.ok("GET", "{here}x") == b"1"
    assert "MOVED" in str(source.command("GET", "{here}x"))


def test_sentinels_fail_over(sentinel: SentinelSetup) -> None:
    assert sentinel.current() == sentinel.master.port
    sentinel.master.kill()
    eventually(lambda: sentinel.current() == sentinel.replica.port, "the replica is promoted", 30)


def test_the_proxy_cuts_corrupts_and_delays(server: RedisServer, proxy: Proxy) -> None:
    def ask() -> bytes:
        with socket.create_connection((server.host, proxy.port)) as s:
            s.sendall(b"PING\r\n")
            return s.recv(100)

    assert ask() == b"+PONG\r\n"
    proxy.corrupt = lambda data: data.replace(b"O", b"X")
    assert ask() == b"+PXNG\r\n"
    proxy.corrupt = None
    proxy.cut_after = 3
    assert ask() == b"+PO"
    assert ask() == b"+PONG\r\n"
    with socket.create_connection((server.host, proxy.port)) as s:
        eventually(lambda: proxy.accepted == 5, "the proxy accepts")
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            s.recv(1)
