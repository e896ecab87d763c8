"""Storages by URL, for configuration files and environment variables."""

from collections.abc import Callable
from urllib.parse import parse_qsl, unquote, urlsplit

from ..errors import StorageMisconfigured
from .base import Storage
from .memory import MemoryStorage

__all__ = ["open_storage"]


def open_storage(url: str) -> Storage:
    """The storage that a URL names. Raises StorageMisconfigured for one that names none.

    memory://                     MemoryStorage; ?max_sessions=100000
    file:///var/lib/app/sessions  FileStorage in that directory, file:// in its default one; ?durability=full
    """
    parts = urlsplit(url)
    opener = _OPENERS.get(parts.scheme)
    if opener is None:
        known = ", ".join(f"{scheme}://" for scheme in _OPENERS)
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


_OPENERS: dict[str, Callable[[str, str, dict[str, str]], Storage]] = {"memory": _memory, "file": _file}
