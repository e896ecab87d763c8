"""URLs and objects of redis-py that say where Redis is."""

import ssl
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import redis.asyncio
import redis.sentinel

from cysession.errors import StorageMisconfigured, StorageUnavailable
from cysession.storage.redis.source import Address, open_source
from tests.redis.servers import Cluster, RedisServer, SentinelSetup, free_port, make_certificate
from tests.redis.sides import SIDES, Caller

pytestmark = pytest.mark.redis

SECRET = "s3cr3t%21"


def test_plain_urls() -> None:
    source = open_source(f"redis://anna:{SECRET}@example.org:7000/3?client_name=web")
    assert source.kind == "single"
    assert source.addresses == (Address("example.org", 7000),)
    assert source.settings.username == "anna"
    assert source.settings.password == "s3cr3t!"
    assert source.settings.db == 3
    assert source.settings.name == "web"
    assert source.settings.tls is None
    assert "s3cr3t" not in repr(source)
    assert open_source("redis://").addresses == (Address("localhost", 6379),)
    assert open_source("valkey://h:1/2").settings.db == 2
    assert open_source("unix:///run/redis.sock?db=4").addresses[0].path == "/run/redis.sock"
    assert str(open_source("redis://[::1]:7").addresses[0]) == "[::1]:7"


def test_tls_urls_verify_unless_told_otherwise() -> None:
    for url in ("rediss://h", "valkeys://h", "rediss+cluster://h", "rediss+sentinel://h/m"):
        context = open_source(url).settings.tls
        assert context is not None
        assert context.verify_mode == ssl.CERT_REQUIRED
        assert context.check_hostname
    context = open_source("rediss://h?ssl_cert_reqs=none").settings.tls
    assert context is not None
    assert context.verify_mode == ssl.CERT_NONE
    context = open_source("rediss://h?ssl_check_hostname=false").settings.tls
    assert context is not None
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert not context.check_hostname


def test_urls_of_many_hosts() -> None:
    source = open_source(f"redis+cluster://:{SECRET}@a:1,b,[::1]:3")
    assert source.kind == "cluster"
    assert source.addresses == (Address("a", 1), Address("b", 6379), Address("::1", 3))
    assert source.settings.password == "s3cr3t!"
    source = open_source(f"redis+sentinel://u:{SECRET}@a,b:2/main/5?sentinel_password=other&client_name=x")
    assert source.kind == "sentinel"
    assert source.service == "main"
    assert source.addresses == (Address("a", 26379), Address("b", 2))
    assert source.settings.db == 5
    assert source.settings.name == "x"
    assert source.settings.username == "u"
    assert source.sentinel_settings.password == "other"
    assert source.sentinel_settings.username is None
    assert "other" not in repr(source)


@pytest.mark.parametrize(
    "url",
    [
        "http://h",
        "",
        f"redis://:{SECRET}@a,b",
        f"redis://:{SECRET}@h?no_such_option=1",
        f"redis://:{SECRET}@h:port",
        f"redis://:{SECRET}@h?db=x",
        f"redis+cluster://:{SECRET}@",
        f"redis+cluster://:{SECRET}@h:x",
        f"redis+sentinel://:{SECRET}@h",
        f"redis+sentinel://:{SECRET}@h/m?sentinel_db=1",
        f"rediss://:{SECRET}@h?ssl_ca_certs=/no/such/file",
        f"rediss://:{SECRET}@h?ssl_cert_reqs=perhaps",
        f"rediss://:{SECRET}@h?ssl_validate_ocsp=1",
        f"redis://:{SECRET}@[::1",
    ],
)
def test_urls_that_say_nothing_useful(url: str) -> None:
    with pytest.raises(StorageMisconfigured) as caught:
        open_source(url)
    assert "s3cr3t" not in "".join(traceback.format_exception(caught.value))


def test_objects_of_redis_py() -> None:
    for module in (redis, redis.asyncio):
        client = module.Redis(host="h", port=1, db=2, password="p", username="u", client_name="n")
        for given in (client, client.connection_pool):
            source = open_source(given)
            assert source.addresses == (Address("h", 1),)
            assert (source.settings.db, source.settings.username, source.settings.name) == (2, "u", "n")
        assert open_source(module.Redis(unix_socket_path="/s")).addresses[0].path == "/s"
        tls = open_source(module.Redis(host="h", ssl=True)).settings.tls
        assert tls is not None
        assert tls.verify_mode == ssl.CERT_REQUIRED  # of the name redis-py decides, by its version
    with pytest.raises(StorageMisconfigured, match="URL"):
        open_source(object())

    class Own(redis.Connection):
        pass

    with pytest.raises(StorageMisconfigured, match="Own"):
        open_source(redis.ConnectionPool(connection_class=Own))
    sentinels = redis.sentinel.Sentinel([("h", 1)], password="p", sentinel_kwargs={"password": "q"})
    source = open_source(sentinels.master_for("main", db=3))
    assert (source.kind, source.service, source.addresses) == ("sentinel", "main", (Address("h", 1),))
    assert (source.settings.password, source.sentinel_settings.password, source.settings.db) == ("p", "q", 3)
    with pytest.raises(StorageMisconfigured, match="master_for"):
        open_source(sentinels.slave_for("main"))


@pytest.mark.parametrize("side", SIDES)
def test_clients_that_the_application_has_already(server: RedisServer, cluster: Cluster, side: str) -> None:
    """Their settings are taken over, whichever side they are for."""
    given = [
        redis.Redis(port=server.port),
        redis.asyncio.Redis(port=server.port),
        redis.RedisCluster(host="127.0.0.1", port=cluster.nodes[1].port),
        redis.asyncio.RedisCluster(host="127.0.0.1", port=cluster.nodes[1].port),
    ]
    for source in given:
        with Caller(side, source) as caller:
            assert caller.call(b"SET", b"k", b"v") == b"OK"
            assert caller.call(b"GET", b"k") == b"v"
    given[0].close()
    given[2].close()


class Provider(redis.CredentialProvider):
    """Credentials that change, as tokens do."""

    def __init__(self) -> None:
        self.password = "first"
        self.fail = False

    def get_credentials(self) -> tuple[str, str]:
        if self.fail:
            raise RuntimeError(f"cannot renew {self.password}")
        return "default", self.password

    async def get_credentials_async(self) -> tuple[str, str]:
        return self.get_credentials()


@pytest.mark.parametrize("side", SIDES)
def test_credentials_of_a_provider(side: str) -> None:
    """Asked for each connection anew; what it raises is not repeated."""
    provider = Provider()
    with RedisServer(password="first") as server:
        with Caller(side, redis.Redis(port=server.port, credential_provider=provider)) as caller:
            assert caller.call(b"PING") == b"PONG"
            server.ok("CONFIG", "SET", "requirepass", "second")
            server.password = provider.password = "second"
            server.ok("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            assert caller.call(b"ECHO", b"x", retry=True) == b"x"
            provider.fail = True
            server.ok("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            with pytest.raises(StorageUnavailable) as caught:
                caller.call(b"ECHO", b"x", retry=True)
            assert "second" not in "".join(traceback.format_exception(caught.value))


@pytest.fixture(scope="module")
def tls_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RedisServer, Path]]:
    certificate, key = make_certificate(tmp_path_factory.mktemp("tls"))
    with RedisServer() as plain:
        port = free_port()
        files = {"tls-cert-file": certificate, "tls-key-file": key, "tls-ca-cert-file": certificate}
        named = [str(word) for pair in files.items() for word in pair]
        plain.ok("CONFIG", "SET", *named, "tls-auth-clients", "no")
        plain.ok("CONFIG", "SET", "tls-port", port)
        plain.options["tls_port"] = port
        yield plain, certificate


@pytest.mark.parametrize("side", SIDES)
def test_tls(tls_server: tuple[RedisServer, Path], side: str) -> None:
    """Encrypted and verified; a certificate that is not trusted is a misconfiguration."""
    server, certificate = tls_server
    port = server.options["tls_port"]
    for host in ("127.0.0.1", "localhost"):
        with Caller(side, f"rediss://{host}:{port}?ssl_ca_certs={certificate}") as caller:
            big = b"x" * 1_000_000
            assert caller.call(b"SET", b"k", big) == b"OK"
            assert caller.call(b"GET", b"k") == big
            replies = caller.together([(b"ECHO", b"%d" % n) for n in range(50)])
            assert replies == [b"%d" % n for n in range(50)]
    with (
        Caller(side, f"rediss://127.0.0.1:{port}") as caller,
        pytest.raises(StorageMisconfigured, match="cert"),
    ):
        caller.call(b"PING")
    with Caller(side, f"rediss://127.0.0.1:{port}?ssl_cert_reqs=none") as caller:
        assert caller.call(b"PING") == b"PONG"
    with Caller(side, f"rediss://127.0.0.1:{server.port}") as caller, pytest.raises(StorageUnavailable):
        caller.call(b"PING")
    with Caller(side, f"redis://127.0.0.1:{port}") as caller, pytest.raises(StorageUnavailable):
        caller.call(b"PING")


def test_sentinel_objects(sentinel: SentinelSetup) -> None:
    hosts = [(s.host, s.port) for s in sentinel.sentinels]
    for module in (redis.sentinel, redis.asyncio.sentinel):
        given = module.Sentinel(hosts).master_for(sentinel.name)
        for side in SIDES:
            with Caller(side, given) as caller:
                assert caller.call(b"SET", b"k", b"v") == b"OK"
