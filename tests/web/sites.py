"""The raw driver of the web suite: a site is one view behind one adapter, and a reply hides no header.

No client library is involved: requests are built and responses read as the adapter's own protocol has them.
An adapter joins the suite with an entry in `ADAPTERS`: (view, manager, options) -> Site.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

from cysession import Manager, Session
from cysession.asgi import SessionMiddleware

Header = tuple[bytes, bytes]


@dataclass
class Answer:
    """What a view returns if the default will not do."""

    body: bytes = b"ok"
    status: int = 200
    headers: list[Header] = field(default_factory=lambda: [(b"content-type", b"text/plain")])


View = Callable[[Session], Answer | None]


@dataclass
class Reply:
    """A response as it left the adapter."""

    status: int
    headers: list[Header]
    body: bytes

    def all(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.headers if key.lower() == name]

    @property
    def cookies(self) -> list[bytes]:
        return self.all(b"set-cookie")

    @property
    def session_id(self) -> str:
        """The id that the only Set-Cookie of this reply hands out, without the time of issue behind its dot."""
        (line,) = self.cookies
        return line.partition(b"=")[2].partition(b";")[0].partition(b".")[0].decode()


class Site(Protocol):
    def request(self, headers: Iterable[Header] = (), *, method: str = "GET") -> Reply: ...


@dataclass
class AsgiSite:
    """A view behind `cysession.asgi.SessionMiddleware`."""

    view: View
    manager: Manager
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.app = SessionMiddleware(self._app, self.manager, **self.options)

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        answer = self.view(scope["session"]) or Answer()
        await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
        await send({"type": "http.response.body", "body": answer.body})

    def request(self, headers: Iterable[Header] = (), *, method: str = "GET") -> Reply:
        def run() -> Reply:
            return asyncio.run(call(self.app, headers, method=method))

        if asyncio._get_running_loop() is None:
            return run()
        with ThreadPoolExecutor(1) as thread:  # a view makes a request to another site
            return thread.submit(run).result()


ADAPTERS: dict[str, Callable[[View, Manager, dict[str, Any]], Site]] = {
    "asgi": AsgiSite,
}


# -- ASGI by hand ----------------------------------------------------------------------------------------


def http_scope(headers: Iterable[Header] = (), method: str = "GET", **more: Any) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "https",
        "path": "/",
        "raw_path": b"/",
        "query_string": b"",
        "root_path": "",
        "headers": list(headers),
        "client": ("192.0.2.1", 50000),
        "server": ("shop.example", 443),
        **more,
    }


async def call(app: Any, headers: Iterable[Header] = (), *, method: str = "GET") -> Reply:
    """One request, and the one response that a server would have sent for the app's messages."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(http_scope(headers, method), receive, send)
    start, *bodies = sent
    assert start["type"] == "http.response.start"
    assert [message["type"] for message in bodies] == ["http.response.body"] * len(bodies)
    return Reply(
        start["status"], list(start["headers"]), b"".join(message.get("body", b"") for message in bodies)
    )


def cookie(session_id: str, name: str = "__Host-id") -> list[Header]:
    return [(b"cookie", f"{name}={session_id}".encode("latin-1"))]
