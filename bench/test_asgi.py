"""What do sessions add to an ASGI request with the cookie present? Peers in the same run, memory everywhere.

Bars: read-write at least 8 times less than starsessions' memory store and less than Starlette's signed cookie;
read-only at most 1.5 us. The summary at the end of the run has the figures without the bare app.
"""

import asyncio
from base64 import b64encode
from collections.abc import Awaitable, Callable
from typing import Any

import itsdangerous
import pytest
import starsessions
from added import App, bare, measure, respond
from starlette.middleware.sessions import SessionMiddleware as SignedCookieMiddleware

from cysession import Manager
from cysession.asgi import SessionMiddleware

pytestmark = pytest.mark.benchmark(group="ASGI, memory, cookie present, per 500 requests")

SECRET = "s" * 32
LIFETIME = 3600


async def read(scope: Any, receive: Any, send: Any) -> None:
    scope["session"].get("n")
    await respond(send)


async def write(scope: Any, receive: Any, send: Any) -> None:
    session = scope["session"]
    session["n"] = session.get("n", 0) + 1
    await respond(send)


def session_cookie(manager: Manager) -> bytes:
    with manager.new() as session:
        session.set_map({"n": 1, "uid": "u00000001"})
    return b"__Host-id=" + session.id.encode()


def test_bare_app(benchmark: Any) -> None:
    measure(benchmark, bare, b"__Host-id=" + b"x" * 43)


def test_cysession_untouched(benchmark: Any, manager: Manager) -> None:
    measure(benchmark, SessionMiddleware(bare, manager), session_cookie(manager))


def test_cysession_read_only(benchmark: Any, manager: Manager) -> None:
    measure(benchmark, SessionMiddleware(read, manager), session_cookie(manager))


def test_cysession_read_write(benchmark: Any, manager: Manager) -> None:
    measure(benchmark, SessionMiddleware(write, manager), session_cookie(manager))


def test_cysession_read_write_persistent_cookie(benchmark: Any, manager: Manager) -> None:
    """With the look at the cookie's age, which is not due."""
    import time

    app = SessionMiddleware(write, manager, cookie_max_age=LIFETIME)
    measure(benchmark, app, session_cookie(manager) + b".%d" % time.time())


def signed() -> bytes:
    data = b64encode(b'{"n": 1, "uid": "u00000001"}')
    return b"session=" + itsdangerous.TimestampSigner(SECRET).sign(data)


def test_starlette_signed_cookie_read_only(benchmark: Any) -> None:
    measure(benchmark, SignedCookieMiddleware(read, SECRET), signed())


def test_starlette_signed_cookie_read_write(benchmark: Any) -> None:
    measure(benchmark, SignedCookieMiddleware(write, SECRET), signed())


def with_starsessions(app: Callable[[Any, Any, Any], Awaitable[None]]) -> tuple[App, bytes]:
    """Its memory store with one session; loaded by its own middleware, as handlers want it."""
    store = starsessions.InMemoryStore()
    data = starsessions.JsonSerializer().serialize({"n": 1, "uid": "u00000001"})
    asyncio.run(store.write("x" * 43, data, LIFETIME, LIFETIME))
    loaded = starsessions.SessionAutoloadMiddleware(app)
    middleware = starsessions.SessionMiddleware(loaded, store=store, lifetime=LIFETIME, rolling=True)
    return middleware, b"session=" + b"x" * 43


def test_starsessions_read_only(benchmark: Any) -> None:
    measure(benchmark, *with_starsessions(read))


def test_starsessions_read_write(benchmark: Any) -> None:
    measure(benchmark, *with_starsessions(write))
