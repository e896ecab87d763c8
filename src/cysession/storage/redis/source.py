"""Source: where the servers are and how one gets in: read from a URL, or from a client or pool of redis-py.

redis-py reads the URLs, makes the TLS context and provides credentials. The handshake is ours, and so is what is
asked of sentinels and clusters: redis-py makes three to five round trips of a new connection, each with a timeout of
its own, so that no total deadline holds; ours is one write, and any order of hangs ends in time.
"""

import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from cysession.errors import SessionError, StorageMisconfigured, StorageUnavailable

from .wire import Argument, ErrorReply, Reply, explain

__all__ = ["Address", "Handshake", "Settings", "Source", "open_source"]


class Address(NamedTuple):
    """Of one server: a host and port, or the path of a Unix socket."""

    host: str
    port: int
    path: str = ""

    def __str__(self) -> str:
        return self.path or (f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}")


@dataclass(frozen=True)
class Settings:
    """How to get into one server; its text holds no secret."""

    db: int = 0
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    provider: Any = field(default=None, repr=False)  # a redis-py CredentialProvider
    name: str | None = None  # as CLIENT LIST shows it
    tls: ssl.SSLContext | None = None
    keepalive: dict[int, int] = field(default_factory=dict)  # socket option at IPPROTO_TCP: value


@dataclass(frozen=True)
class Source:
    """Where the servers are. kind: "single", "sentinel" or "cluster"."""

    kind: str
    addresses: tuple[Address, ...]  # of the server, of the sentinels, of some nodes of the cluster
    settings: Settings
    service: str = ""  # what the sentinels call the master
    sentinel_settings: Settings = field(default_factory=Settings)
    remap: Callable[[tuple[str, int]], tuple[str, int]] | None = (
        None  # what a cluster announces -> what is reached
    )


# --- the handshake ----------------------------------------------------------------------------------------------


class Handshake:
    """The first commands of a connection, sent in one write, and the judgement of their replies."""

    def __init__(
        self,
        settings: Settings,
        credentials: Sequence[str] | None,
        *,
        master: bool = False,
        tracking: bool = False,
    ) -> None:
        """master: the server must be one. tracking: it shall push changes of what is read, for a near-cache."""
        self.commands: list[Sequence[Argument]] = []
        secret = [c.encode() for c in credentials or ()]
        if secret:
            self.commands.append((b"AUTH", *secret))
        if tracking:
            self.commands.append((b"HELLO", 3))
        if settings.name:
            self.commands.append((b"CLIENT", b"SETNAME", settings.name))
        if settings.db:
            self.commands.append((b"SELECT", settings.db))
        if tracking:
            self.commands.append((b"CLIENT", b"TRACKING", b"ON"))
        self._role = len(self.commands) if master else None
        # A server that cannot serve yet says so here already, and one that is full before it takes a command.
        self.commands.append((b"ROLE",) if master else (b"PING",))

    def judge(self, replies: Sequence[Reply]) -> None:
        """Raise what the replies mean, if they do not mean that we are in."""
        for number, reply in enumerate(replies):
            if isinstance(reply, ErrorReply):
                if reply.code == "NOPERM" and self.commands[number][0] == b"PING":
                    continue  # who may only what sessions need
                if self.commands[number][:2] == (b"CLIENT", b"TRACKING"):
                    raise StorageMisconfigured(
                        "the near-cache needs CLIENT TRACKING, which this Redis refuses; "
                        "allow the user +client|tracking or leave near_cache out"
                    ) from None
                raise explain(reply) from None
        if self._role is not None:
            role = replies[self._role]
            if not isinstance(role, list) or role[:1] != [b"master"]:
                raise StorageUnavailable("the sentinels name a Redis that is no master yet; try again")


def credentials_of(settings: Settings) -> Sequence[str] | None:
    """(password,) or (username, password), or None; asks the provider, whose errors are not repeated."""
    if settings.provider is not None:
        try:
            return tuple(str(c) for c in settings.provider.get_credentials())
        except Exception:
            raise StorageUnavailable("the credential provider for Redis failed") from None
    return _fixed_credentials(settings)


async def acredentials_of(settings: Settings) -> Sequence[str] | None:
    """credentials_of, awaited."""
    if settings.provider is not None:
        try:
            return tuple(str(c) for c in await settings.provider.get_credentials_async())
        except Exception:
            raise StorageUnavailable("the credential provider for Redis failed") from None
    return _fixed_credentials(settings)


def _fixed_credentials(settings: Settings) -> Sequence[str] | None:
    if settings.username:
        return settings.username, settings.password or ""
    return (settings.password,) if settings.password else None


# --- from a URL -------------------------------------------------------------------------------------------------

_SCHEMES = {
    "redis": "single",
    "rediss": "single",
    "unix": "single",
    "valkey": "single",
    "valkeys": "single",
    "redis+cluster": "cluster",
    "rediss+cluster": "cluster",
    "redis+sentinel": "sentinel",
    "rediss+sentinel": "sentinel",
}
# Of redis-py's many settings those that reach the wire; the others concern machinery that is not used here.
_READ = {
    "host",
    "port",
    "path",
    "db",
    "username",
    "password",
    "client_name",
    "connection_class",
    "credential_provider",
}
_KEEPALIVE = {"socket_keepalive", "socket_keepalive_options"}
_IGNORED_IN_URLS = {
    "protocol",
    "decode_responses",
    "health_check_interval",
    "max_connections",
    "socket_timeout",
}
_TLS = {
    "ssl_keyfile": "keyfile",
    "ssl_certfile": "certfile",
    "ssl_cert_reqs": "cert_reqs",
    "ssl_include_verify_flags": "include_verify_flags",
    "ssl_exclude_verify_flags": "exclude_verify_flags",
    "ssl_ca_certs": "ca_certs",
    "ssl_ca_data": "ca_data",
    "ssl_ca_path": "ca_path",
    "ssl_check_hostname": "check_hostname",
    "ssl_min_version": "min_version",
    "ssl_ciphers": "ciphers",
    "ssl_password": "password",
}
_OCSP = ("ssl_validate_ocsp", "ssl_validate_ocsp_stapled", "ssl_ocsp_context", "ssl_ocsp_expected_cert")


def open_source(source: Any) -> Source:
    """What a URL, a client or a pool says. Raises StorageMisconfigured, without a password in it.

    redis://[[user]:password@]host[:port][/db]        rediss:// with TLS; valkey:// and valkeys:// are the same
    unix://[[user]:password@]/path/to/socket[?db=0]
    redis+cluster://[[user]:password@]host:port[,host:port...]                    rediss+cluster:// with TLS
    redis+sentinel://[[user]:password@]host:port[,host:port...]/service[/db]      rediss+sentinel:// with TLS
        ?sentinel_username=...&sentinel_password=...  if the sentinels want one; user and password are the master's
    Options after "?" are those of redis-py: client_name, ssl_ca_certs, ssl_cert_reqs ...
    """
    if isinstance(source, str):
        return _from_url(source)
    if isinstance(source, Source):
        return source
    return _from_object(source)


def _from_url(url: str) -> Source:
    try:
        parts = urlsplit(url)
    except ValueError:
        raise StorageMisconfigured("the Redis URL cannot be read") from None
    kind = _SCHEMES.get(parts.scheme)
    if kind is None:
        raise StorageMisconfigured(f"no Redis URL; known are {', '.join(s + '://' for s in _SCHEMES)}")
    tls = parts.scheme.startswith(("rediss", "valkeys"))
    scheme = "unix" if parts.scheme == "unix" else "rediss" if tls else "redis"
    user, at, hosts = parts.netloc.rpartition("@")
    names = [name for name in hosts.split(",") if name]
    path, query = parts.path, parts.query
    if kind == "single":
        if len(names) > 1:
            raise StorageMisconfigured(
                "a Redis URL names one host; several belong to redis+cluster:// or +sentinel://"
            )
        kwargs = _parse(f"{scheme}://{parts.netloc}{path}?{query}")
        return Source("single", (_address(kwargs),), _settings(kwargs, scheme == "rediss"))

    if not names:
        raise StorageMisconfigured(f"a {parts.scheme}:// URL names at least one host:port")
    service = ""
    options = dict(parse_qsl(query, keep_blank_values=True))
    sentinel = {k.removeprefix("sentinel_"): options.pop(k) for k in [*options] if k.startswith("sentinel_")}
    if kind == "sentinel":
        service, _, db = unquote(path.strip("/")).partition("/")
        if not service:
            raise StorageMisconfigured(f"a {parts.scheme}:// URL names the service: .../mymaster")
        path = f"/{db}"
    kwargs = _parse(f"{scheme}://{user}{at}host{path}?{urlencode(options)}")
    settings = _settings(kwargs, tls)
    port = 26379 if kind == "sentinel" else 6379
    try:
        addresses = tuple(_split_address(name, port) for name in names)
    except ValueError:
        raise StorageMisconfigured("the Redis URL has a host:port that cannot be read") from None
    if unknown := sorted(set(sentinel) - {"username", "password"}):
        raise StorageMisconfigured(f"a Redis URL has no option sentinel_{unknown[0]}")
    theirs = Settings(
        username=sentinel.get("username"),
        password=sentinel.get("password"),
        tls=settings.tls,
        keepalive=settings.keepalive,
    )
    return Source(kind, addresses, settings, service, theirs)


def _split_address(name: str, port: int) -> Address:
    parts = urlsplit(f"//{name}")
    if not parts.hostname:
        raise ValueError
    return Address(parts.hostname, parts.port or port)


def _parse(url: str) -> dict[str, Any]:
    from redis.connection import parse_url

    try:
        kwargs: dict[str, Any] = dict(parse_url(url))  # type: ignore[no-untyped-call]
    except ValueError:
        raise StorageMisconfigured("the Redis URL has an option or a port that cannot be read") from None
    known = _READ | _KEEPALIVE | _IGNORED_IN_URLS | set(_TLS) | set(_OCSP) | {"socket_connect_timeout"}
    if unknown := sorted(set(kwargs) - known):
        raise StorageMisconfigured(f"a Redis URL has no option {unknown[0]}")
    return kwargs


# --- from objects of redis-py -----------------------------------------------------------------------------------


def _from_object(given: Any) -> Source:
    if hasattr(given, "nodes_manager"):  # RedisCluster of either side
        manager = given.nodes_manager
        kwargs = getattr(given, "connection_kwargs", None) or manager.connection_kwargs
        nodes = [*manager.startup_nodes.values()]
        tls = bool(kwargs.get("ssl")) or "SSL" in getattr(kwargs.get("connection_class"), "__name__", "")
        addresses = tuple(Address(str(n.host), int(n.port)) for n in nodes)
        settings = replace(_settings(kwargs, tls), db=0)
        return Source("cluster", addresses, settings, remap=getattr(manager, "address_remap", None))
    pool = getattr(given, "connection_pool", given)
    kind = getattr(pool, "connection_class", None)
    kwargs = getattr(pool, "connection_kwargs", None)
    if kind is None or kwargs is None:
        raise StorageMisconfigured(
            f"Redis is named by a URL, or by a client or pool of redis-py, not by a {type(given).__name__}"
        )
    if not str(kind.__module__).startswith("redis."):
        raise StorageMisconfigured(
            f"the pool makes connections of the class {kind.__name__}, whose ways are unknown here; give a URL"
        )
    tls = "SSL" in kind.__name__
    settings = _settings(kwargs, tls)
    if hasattr(pool, "sentinel_manager"):
        if not pool.is_master:
            raise StorageMisconfigured("sessions are written to: use master_for(), not slave_for()")
        return _from_sentinels(pool, settings)
    return Source("single", (_address(kwargs),), settings)


def _from_sentinels(pool: Any, settings: Settings) -> Source:
    pools = [client.connection_pool for client in pool.sentinel_manager.sentinels]
    addresses = tuple(_address(p.connection_kwargs) for p in pools)
    theirs = _settings(pools[0].connection_kwargs, "SSL" in pools[0].connection_class.__name__)
    return Source("sentinel", addresses, settings, str(pool.service_name), theirs)


def _address(kwargs: dict[str, Any]) -> Address:
    return Address(
        str(kwargs.get("host") or "localhost"), int(kwargs.get("port") or 6379), str(kwargs.get("path") or "")
    )


def _settings(kwargs: dict[str, Any], tls: bool) -> Settings:
    return Settings(
        db=int(kwargs.get("db") or 0),
        username=kwargs.get("username"),
        password=kwargs.get("password"),
        provider=kwargs.get("credential_provider"),
        name=kwargs.get("client_name"),
        tls=_tls_context(kwargs) if tls else None,
        keepalive=_keepalive(kwargs),
    )


def _keepalive(kwargs: dict[str, Any]) -> dict[int, int]:
    options = kwargs.get("socket_keepalive_options")
    return dict(options) if isinstance(options, dict) and kwargs.get("socket_keepalive", True) else {}


def _tls_context(kwargs: dict[str, Any]) -> ssl.SSLContext:
    """redis-py's own, for both sides. Verifies the server and its name unless that is switched off by name."""
    from redis.asyncio.connection import RedisSSLContext

    if any(kwargs.get(name) for name in _OCSP):
        raise StorageMisconfigured("OCSP validation is not supported here; leave the ssl_*ocsp* options out")
    given = {ours: kwargs[theirs] for theirs, ours in _TLS.items() if kwargs.get(theirs) is not None}
    given.setdefault("cert_reqs", "required")
    verifies = given["cert_reqs"] not in ("none", ssl.CERT_NONE)
    given["check_hostname"] = verifies and _truth(given.get("check_hostname", True))
    try:
        context: ssl.SSLContext = RedisSSLContext(**given).get()
    except TypeError:
        raise StorageMisconfigured(
            "this redis-py does not know one of the ssl_ options; upgrade redis"
        ) from None
    except SessionError:
        raise
    except Exception as error:
        raise StorageMisconfigured(
            f"the TLS settings for Redis are wrong ({type(error).__name__}): look at the ssl_ options and their files"
        ) from None
    return context


def _truth(value: object) -> bool:
    return value.lower() not in ("0", "false", "no", "n", "f", "") if isinstance(value, str) else bool(value)
