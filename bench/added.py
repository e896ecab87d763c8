"""What a middleware adds to a request: the same bare app is timed in turn with the wrapped one and subtracted.

Two loops that run a minute apart differ by more than a fast middleware costs. So every round of a benchmark begins
with a round of the bare app, and what counts is the difference of the two best rounds.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

REQUESTS = 500  # a round
ROUNDS = 60

App = Callable[[Any, Any, Any], Awaitable[None]]
Send = Callable[[Any], Awaitable[None]]

added_us: dict[str, float] = {}
"""By name of the benchmark, for the summary at the end of the run."""

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
    pass


async def _round(app: App, scope: dict[str, Any]) -> None:
    for _ in range(REQUESTS):
        await app(dict(scope), _receive, _send)


def measure(benchmark: Any, app: App, cookie: bytes) -> None:
    """Benchmark requests to `app`; what they take longer than those to the bare app goes to `added_us`."""
    scope = scope_with(cookie)
    loop = asyncio.new_event_loop()
    try:
        compare(
            benchmark,
            lambda: loop.run_until_complete(_round(bare, scope)),
            lambda: loop.run_until_complete(_round(app, scope)),
        )
    finally:
        loop.close()


def compare(
    benchmark: Any,
    bare: Callable[[], object],
    wrapped: Callable[[], object],
    requests: int = REQUESTS,
    rounds: int = ROUNDS,
) -> None:
    """Benchmark rounds of so many requests with sessions, each after one without."""
    bare_rounds: list[float] = []

    def bare_round() -> None:
        begun = time.perf_counter()
        bare()
        bare_rounds.append(time.perf_counter() - begun)

    wrapped()
    benchmark.pedantic(wrapped, setup=bare_round, rounds=rounds)
    added = (benchmark.stats.stats.min - min(bare_rounds)) / requests * 1e6
    benchmark.extra_info["added_us"] = added_us[benchmark.name] = round(added, 3)
