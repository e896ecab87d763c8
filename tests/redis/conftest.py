"""Fixtures of the Redis suite: servers that live as long as the session and are emptied for every test."""

from collections.abc import Iterator

import pytest

from tests.redis.servers import Cluster, Proxy, RedisServer, SentinelSetup


@pytest.fixture(scope="session")
def shared_server() -> Iterator[RedisServer]:
    with RedisServer(unix=True) as made:
        yield made


@pytest.fixture
def server(shared_server: RedisServer) -> RedisServer:
    """An empty server that the test leaves as it is: up, with its configuration."""
    shared_server.flush()
    shared_server.ok("SCRIPT", "FLUSH")
    return shared_server


@pytest.fixture
def own_server() -> Iterator[RedisServer]:
    """A server of the test's own, to be stopped, frozen and configured at will."""
    with RedisServer() as made:
        yield made


@pytest.fixture
def proxy(server: RedisServer) -> Iterator[Proxy]:
    with Proxy(server) as made:
        yield made


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[Cluster]:
    with Cluster() as made:
        yield made


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Cluster:
    """Three empty masters."""
    shared_cluster.flush()
    return shared_cluster


@pytest.fixture
def sentinel() -> Iterator[SentinelSetup]:
    with SentinelSetup() as made:
        yield made
