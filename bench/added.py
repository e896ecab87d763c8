"""Requests for the benchmarks of the adapters, as a browser sends them and a server hands them on.

What a middleware adds is the difference to the same app without it, timed in turn with it (`race(bare=)`): the bare app
is one of the contenders.
"""

import asyncio
import io
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import pytest
from race import Absent, Race

REQUESTS = 100  # a round: few, so that some rounds are disturbed by nobody
SECONDS = 0.8  # a contender: what is compared are differences of times
BARE = "bare app"

App = Callable[[Any, Any, Any], Awaitable[None]]
Send = Callable[[Any], Awaitable[None]]

HEADERS = [
    (b"host", b"shop.example"),
    (b"user-agent", b"Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
    (b"accept", b"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
    (b"accept-language", b"en-US,en;q=0.5"),
    (b"accept-encoding", b"gzip, deflate, br, zstd"),
    (b"connection", b"keep-alive"),
    (b"referer", b"https://shop.example/"),
]
NEIGHBOURS = b"theme=dark; _ga=GA1.2.1234567890.1700000000; "


def scope_with(cookie: bytes) -> dict[str, Any]:
    """A browser's request: seven headers, and ours as the third cookie."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "https",
        "path": "/",
        "raw_path": b"/",
        "query_string": b"",
        "root_path": "",
        "headers": [*HEADERS, (b"cookie", NEIGHBOURS + cookie)],
        "client": ("192.0.2.1", 50000),
        "server": ("shop.example", 443),
    }


async def respond(send: Send) -> None:
    """A small page; new objects each time, as a framework makes them."""
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"ok"})


async def bare(scope: Any, receive: Any, send: Send) -> None:
    await respond(send)


async def _receive() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _send(message: Any) -> None:
    assert message.get("status", 200) == 200


def environ_with(cookie: str, path: str = "/") -> dict[str, Any]:
    """The same, as a WSGI gateway hands it out."""
    headers = [*HEADERS, (b"cookie", NEIGHBOURS + cookie.encode())]
    return {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": "",
        "SERVER_NAME": "shop.example",
        "SERVER_PORT": "443",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "192.0.2.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "https",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        **{"HTTP_" + name.decode().upper().replace("-", "_"): value.decode() for name, value in headers},
    }


class Loop:
    """Rounds of requests to ASGI apps, on one event loop."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()

    def rounds(self, app: App, cookie: bytes) -> Callable[[], object]:
        scope = scope_with(cookie)

        async def requests() -> None:
            for _ in range(REQUESTS):
                await app(dict(scope), _receive, _send)

        return lambda: self.loop.run_until_complete(requests())


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.loop.close()


def compare(
    race: Race,
    group: str,
    contenders: Mapping[str, Callable[[], object] | Absent],
    requests: int = REQUESTS,
    **more: Any,
) -> None:
    """What each contender adds to the bare app, which is one of them."""
    race(group, contenders, operations=requests, seconds=SECONDS, rounds=(20, 2000), bare=BARE, **more)
