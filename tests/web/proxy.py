"""A shared cache between browsers and a site: the greediest that RFC 9111 allows.

It keeps every answer to a GET, with Set-Cookie and for any time, unless the answer itself forbids it; what saves a
site from it are its headers alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tests.web.sites import Header, Reply

Ask = Callable[[list[Header]], Reply]


class CachingProxy:
    def __init__(self) -> None:
        self._kept: dict[str, list[tuple[list[bytes], list[list[bytes]], Reply]]] = {}
        self.hits = 0

    def get(self, url: str, ask: Ask, headers: Iterable[Header] = ()) -> Reply:
        """The answer for this request, from the cache if it has one that fits; else the site is asked."""
        headers = list(headers)
        for names, values, reply in self._kept.get(url, ()):
            if [self._lines(headers, name) for name in names] == values:
                self.hits += 1
                return reply
        reply = ask(headers)
        names = [name for line in reply.all(b"vary") for name in split(line)]
        forbidden = {part for line in reply.all(b"cache-control") for part in split(line)}
        if b"*" not in names and forbidden.isdisjoint((b"no-store", b"private", b"no-cache")):
            values = [self._lines(headers, name) for name in names]
            self._kept.setdefault(url, []).append((names, values, reply))
        return reply

    @staticmethod
    def _lines(headers: list[Header], name: bytes) -> list[bytes]:
        return [value for key, value in headers if key.lower() == name]


def split(line: bytes) -> list[bytes]:
    return [part.strip().lower() for part in line.split(b",") if part.strip()]
