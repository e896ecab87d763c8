"""What do sessions add to an ASGI request?

Memory everywhere, the cookie present, no framework: the bare app is timed in turn with the others and subtracted.
Bars: read-write at least 8 times less than starsessions' memory store and less than Starlette's signed cookie;
read-only at most 1.5 us. Litestar's sessions live inside Litestar only, so it has a table with a Litestar app as the
bare one, and our middleware around the same app.
"""

import asyncio
import json
import time
from base64 import b64encode
from collections.abc import Callable
from typing import Any

import pytest
from added import BARE, App, Loop, bare, compare, respond
from added import loop as loop
from race import Race, built

from cysession import Manager
from cysession.asgi import SessionMiddleware

SECRET = "s" * 32
LIFETIME = 3600
DATA = {"n": 1, "uid": "u00000001"}
NOTES = {
    "Starlette, signed cookie": "storage: the data travel in the cookie, readable, and cannot be revoked"
}


async def read(scope: Any, receive: Any, send: Any) -> None:
    scope["session"].get("n")
    await respond(send)


async def write(scope: Any, receive: Any, send: Any) -> None:
    session = scope["session"]
    session["n"] = session.get("n", 0) + 1
    await respond(send)


HANDLERS = {"read only": read, "read and write": write}
Carried = tuple[App, bytes]  # an app, and the cookie that its session has


def session_cookie(manager: Manager) -> bytes:
    with manager.new() as session:
        session.set_map(DATA)
    return b"__Host-id=" + session.id.encode()


def cysession(handler: App, manager: Manager) -> Carried:
    return SessionMiddleware(handler, manager), session_cookie(manager)


def persistent(handler: App, manager: Manager) -> Carried:
    """With the look at the cookie's age, which is not due."""
    app = SessionMiddleware(handler, manager, cookie_max_age=LIFETIME)
    return app, session_cookie(manager) + b".%d" % time.time()


def signed_cookie(handler: App, manager: Manager) -> Carried:
    import itsdangerous
    from starlette.middleware.sessions import SessionMiddleware as SignedCookieMiddleware

    data = b64encode(json.dumps(DATA).encode())
    return SignedCookieMiddleware(handler, SECRET), b"session=" + itsdangerous.TimestampSigner(SECRET).sign(
        data
    )


def starsessions_memory(handler: App, manager: Manager) -> Carried:
    """Loaded by its own middleware, as handlers want it."""
    import starsessions

    store = starsessions.InMemoryStore()
    asyncio.run(store.write("x" * 43, starsessions.JsonSerializer().serialize(DATA), LIFETIME, LIFETIME))
    loaded = starsessions.SessionAutoloadMiddleware(handler)
    app = starsessions.SessionMiddleware(loaded, store=store, lifetime=LIFETIME, rolling=True)
    return app, b"session=" + b"x" * 43


PEERS: dict[str, Callable[[App, Manager], Carried]] = {
    "cysession": cysession,
    "cysession, persistent cookie": persistent,
    "Starlette, signed cookie": signed_cookie,
    "starsessions, memory": starsessions_memory,
}


@pytest.mark.parametrize("what", HANDLERS)
def test_middleware(race: Race, loop: Loop, manager: Manager, what: str) -> None:
    def rounds(make: Callable[[App, Manager], Carried]) -> Callable[[], object]:
        return loop.rounds(*make(HANDLERS[what], manager))

    compare(
        race,
        f"ASGI, memory, {what}",
        {
            BARE: loop.rounds(bare, b"__Host-id=" + b"x" * 43),
            **{name: built(rounds, make) for name, make in PEERS.items()},
        },
        notes=NOTES,
    )


def test_untouched(race: Race, loop: Loop, manager: Manager) -> None:
    """A handler that does not look at its session: nothing is read, nothing is written."""
    compare(
        race,
        "ASGI, memory, untouched",
        {
            BARE: loop.rounds(bare, b"__Host-id=" + b"x" * 43),
            "cysession": loop.rounds(*cysession(bare, manager)),
        },
    )


# ---- Litestar ----------------------------------------------------------------------------------------------


def litestar_app(middleware: list[Any], stores: dict[str, Any], uses_session: bool) -> App:
    from litestar import Litestar, Request, Response, get

    @get("/", sync_to_thread=False)
    def counted(request: Request[Any, Any, Any]) -> Response[str]:
        session = request.scope["session"]
        session["n"] = session.get("n", 0) + 1  # type: ignore[union-attr, operator, index]
        return Response("ok", media_type="text/plain")

    @get("/", sync_to_thread=False)
    def plain(request: Request[Any, Any, Any]) -> Response[str]:
        return Response("ok", media_type="text/plain")

    return Litestar([counted if uses_session else plain], middleware=middleware, stores=stores)  # type: ignore[return-value]


def litestar_sessions() -> Carried:
    from litestar.middleware.session.server_side import ServerSideSessionConfig
    from litestar.stores.memory import MemoryStore

    store = MemoryStore()
    asyncio.run(store.set("x" * 32, json.dumps(DATA).encode(), LIFETIME))
    config = ServerSideSessionConfig(max_age=LIFETIME, renew_on_access=True)
    return litestar_app([config.middleware], {"sessions": store}, True), b"session=" + b"x" * 32


def test_in_litestar(race: Race, loop: Loop, manager: Manager) -> None:
    def bare_litestar() -> Callable[[], object]:
        return loop.rounds(litestar_app([], {}, False), b"session=" + b"x" * 32)

    def ours() -> Callable[[], object]:
        return loop.rounds(SessionMiddleware(litestar_app([], {}, True), manager), session_cookie(manager))

    contenders = {
        BARE: built(bare_litestar),
        "cysession around Litestar": built(ours),
        "Litestar, server-side sessions in memory": built(lambda: loop.rounds(*litestar_sessions())),
    }
    compare(race, "inside Litestar, memory, read and write", contenders)
