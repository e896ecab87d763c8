"""What the real servers of test_asgi_servers.py serve: `tests.web.asgi_served:app`, sessions in CYSESSION_TEST_DIR."""

from __future__ import annotations

import asyncio
import os
import warnings
from pathlib import Path
from typing import Any

from cysession import FileStorage, Manager
from cysession.asgi import SessionMiddleware

ROOT = Path(os.environ["CYSESSION_TEST_DIR"])


class MarkingStorage(FileStorage):
    """Leaves a file behind when it is closed."""

    async def aclose(self) -> None:
        await super().aclose()
        (ROOT / "closed").touch()


manager = Manager(3600, MarkingStorage(ROOT / "sessions"))


async def start(send: Any, status: int = 200, kind: bytes = b"text/plain") -> None:
    headers = [(b"content-type", kind), (b"cache-control", b"no-cache")]
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def end(send: Any, body: bytes = b"") -> None:
    await send({"type": "http.response.body", "body": body})


async def answer(send: Any, body: bytes) -> None:
    await start(send)
    await end(send, body)


async def count(session: Any, receive: Any, send: Any) -> None:
    session["n"] = session.get("n", 0) + 1
    await answer(send, b"%d" % session["n"])


async def read(session: Any, receive: Any, send: Any) -> None:
    await answer(send, repr(session.get_map()).encode())


async def leave(session: Any, receive: Any, send: Any) -> None:
    session.destroy()
    await answer(send, b"bye")


async def fail(session: Any, receive: Any, send: Any) -> None:
    session["n"] = 99
    raise LookupError("a bug of the app")


async def rotate_and_fail(session: Any, receive: Any, send: Any) -> None:
    await session.aregenerate_id()
    session["n"] = 99
    raise LookupError("a bug of the app")


async def events(session: Any, receive: Any, send: Any) -> None:
    """Server-sent events until the client has gone, which the session then knows."""
    session["listening"] = True
    session_id = session.id
    await start(send, kind=b"text/event-stream")
    gone = asyncio.create_task(disconnected(receive))
    while not gone.done():
        await send({"type": "http.response.body", "body": b"data: tick\n\n", "more_body": True})
        await asyncio.wait([gone], timeout=0.02)
    async with manager.new(session_id) as late:
        await late.aload()
        late["listening"] = False


async def disconnected(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def slow(session: Any, receive: Any, send: Any) -> None:
    """Long enough for the client, or the server, to go away."""
    session["n"] = 99
    (ROOT / "slow").touch()
    await asyncio.sleep(float(os.environ.get("CYSESSION_TEST_SLOW", "0.3")))
    await answer(send, b"done")


async def talk(session: Any, receive: Any, send: Any) -> None:
    """A websocket: each message is kept, the last one too, however the client leaves."""
    assert (await receive())["type"] == "websocket.connect"
    session["heard"] = []
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        session["heard"].append(message["text"])
        if message["text"] == "save":
            await session.asave()
        await send({"type": "websocket.send", "text": f"heard {len(session['heard'])}"})


PAGES = {
    "/": count,
    "/read": read,
    "/leave": leave,
    "/fail": fail,
    "/rotate": rotate_and_fail,
    "/events": events,
    "/slow": slow,
    "/talk": talk,
}


async def serve(scope: Any, receive: Any, send: Any) -> None:
    await PAGES[scope["path"]](scope["session"], receive, send)


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # plain http on the loopback
    app = SessionMiddleware(serve, manager, insecure=True)
