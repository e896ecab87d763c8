"""Storages by URL, for configuration files and environment variables."""

from collections.abc import Callable
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

from ..errors import StorageMisconfigured
from .base import Storage
from .memory import MemoryStorage

__all__ = ["open_storage"]


def open_storage(url: str) -> Storage:
    """The storage that a URL names. Raises StorageMisconfigured for one that names none.

    memory://                     MemoryStorage; ?max_sessions=100000
    file:///var/lib/app/sessions  FileStorage in that directory, file:// in its default one; ?durability=full
    redis://host:6379/0           RedisStorage; also rediss:// (TLS), unix:///run/redis.sock, redis+sentinel://
                                  and redis+cluster://. ?storage=hash is RedisHashStorage; prefix, realm, cache,
                                  timeout, near_cache and max_stale are theirs, all other options redis-py's
    """
    parts = urlsplit(url)
    if parts.scheme in _REDIS:
        return _redis(url, parts)
    opener = _OPENERS.get(parts.scheme)
    if opener is None:
        known = ", ".join(f"{scheme}://" for scheme in (*_OPENERS, *_REDIS))
        raise StorageMisconfigured(f"no storage for URLs of scheme {parts.scheme!r}; known are {known}")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    try:
        return opener(parts.netloc, unquote(parts.path), options)
    except (TypeError, ValueError) as error:
        raise StorageMisconfigured(f"a wrong option in a {parts.scheme}:// URL: {error}") from None


def _memory(host: str, path: str, options: dict[str, str]) -> Storage:
    if host or path.strip("/"):
        raise ValueError("memory:// takes no host and no path")
    limit = int(options.pop("max_sessions", 0))
    if options:
        raise ValueError(f"memory:// has no option {', '.join(options)}; it has max_sessions")
    return MemoryStorage(limit)


def _file(host: str, path: str, options: dict[str, str]) -> Storage:
    from .file import FileStorage

    if host not in ("", "localhost"):
        raise ValueError("a file URL has three slashes: file:///var/lib/app")
    return FileStorage(path or None, **options)  # type: ignore[arg-type]


def _redis(url: str, parts: SplitResult) -> Storage:
    try:
        from .redis import RedisHashStorage, RedisStorage
    except ModuleNotFoundError:
        raise StorageMisconfigured(
            "Redis storages need redis and hiredis: install cysession[redis]"
        ) from None
    own: dict[str, Any] = {}
    theirs: list[tuple[str, str]] = []
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in _REDIS_OPTIONS:
            theirs.append((name, value))
            continue
        try:
            own[name] = _REDIS_OPTIONS[name](value)
        except ValueError:
            raise StorageMisconfigured(f"a wrong value of {name} in a {parts.scheme}:// URL") from None
    kind = own.pop("storage", "string")
    if kind not in ("string", "hash"):
        raise StorageMisconfigured('the option storage of a Redis URL is "string" or "hash"')
    # Of the address nothing may be quoted: it holds the password.
    url = url.partition("?")[0] + ("?" + urlencode(theirs) if theirs else "")
    return RedisHashStorage(url, **own) if kind == "hash" else RedisStorage(url, **own)


_REDIS = ("redis", "rediss", "unix", "redis+sentinel", "redis+cluster")
_REDIS_OPTIONS: dict[str, Callable[[str], Any]] = {
    "storage": str,
    "prefix": str,
    "realm": str,
    "cache": int,
    "timeout": float,
    "near_cache": int,
    "max_stale": float,
}
_OPENERS: dict[str, Callable[[str, str, dict[str, str]], Storage]] = {"memory": _memory, "file": _file}
