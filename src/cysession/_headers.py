"""Lists of headers, and what an adapter does to those of a response: Vary, no-store, one Set-Cookie a name.

Headers are (name, value) pairs of bytes, as in ASGI; `as_bytes` and `as_text` are for gateways that want str (WSGI).
Nothing here changes a list that it is given, unless it says so.
"""

import re
from collections.abc import Iterable
from typing import Final

__all__ = [
    "Header",
    "TextHeader",
    "as_bytes",
    "as_text",
    "checked_name",
    "with_no_store",
    "with_vary",
    "without_cookie",
    "without_header",
]

Header = tuple[bytes, bytes]
TextHeader = tuple[str, str]

_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,256}")
# Headers with a meaning of their own, in a request or in a response.
_TAKEN: Final = re.compile(
    r"accept|age|authorization|cache-control|connection|content-.*|cookie|date|etag|expect|expires|forwarded|host"
    r"|keep-alive|location|origin|range|referer|server|set-cookie|te|trailer|transfer-encoding|upgrade|user-agent"
    r"|vary|via|warning|www-authenticate"
)


def checked_name(name: object) -> bytes:
    """The name of a header that may carry ids, in lower case; ValueError for any other."""
    if not isinstance(name, str) or not _TOKEN.fullmatch(name) or _TAKEN.fullmatch(name.lower()):
        raise ValueError(
            f"header {name!r:.80} cannot carry ids: choose a token of your own, such as X-Session-Id"
        )
    return name.lower().encode("ascii")


def as_bytes(headers: Iterable[TextHeader]) -> list[Header]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]


def as_text(headers: Iterable[Header]) -> list[TextHeader]:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]


def with_vary(headers: list[Header], vary: Header) -> list[Header]:
    """Vary keeps shared caches from giving this response to others. Some heed only one line of it, so a line that is
    there is extended, in the list that was given."""
    ours = vary[1]
    lines = [place for place, (name, _) in enumerate(headers) if name.lower() == b"vary"]
    if not lines:
        return [*headers, vary]
    named = set().union(*(_directives(headers[place][1]) for place in lines))
    if named.isdisjoint((b"*", ours.lower())):
        name, value = headers[lines[-1]]
        headers[lines[-1]] = (name, value + b", " + ours if value.strip() else ours)
    return headers


def with_no_store(headers: list[Header]) -> list[Header]:
    """No cache may keep a response that carries an id. `no-store` beats all weaker directives, so they go."""
    caching = [value for name, value in headers if name.lower() == b"cache-control"]
    if any(b"no-store" in _directives(value) for value in caching):
        return headers
    return [*without_header(headers, b"cache-control"), (b"cache-control", b"no-store")]


def without_header(headers: Iterable[Header], name: bytes) -> list[Header]:
    return [pair for pair in headers if pair[0].lower() != name]


def without_cookie(headers: Iterable[Header], cookie: bytes) -> list[Header]:
    """Without the lines that set this cookie."""
    return [
        (name, value)
        for name, value in headers
        if name.lower() != b"set-cookie" or value.partition(b"=")[0].strip() != cookie
    ]


def _directives(value: bytes) -> set[bytes]:
    return {part.strip().lower() for part in value.split(b",")}
