"""The shop itself: five routes of plain ASGI, all state in the session.

A framework would hide half of this file; it is written out so that everything the session does can be seen.
"""

import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from cysession import Manager, Session
from cysession.ids import fingerprint

from . import page

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Form = dict[str, str]

STYLE = (Path(__file__).parent / "style.css").read_bytes()
MAX_FORM = 16 * 1024
HTML = (b"content-type", b"text/html; charset=utf-8")
GUARDS = [
    (b"content-security-policy", b"default-src 'none'; style-src 'self'; img-src data:; form-action 'self'; "
     b"base-uri 'none'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
]  # fmt: skip


class Shop:
    """An ASGI app. SessionMiddleware has put this browser's session into the scope."""

    def __init__(self, manager: Manager) -> None:
        self.manager = manager
        self.started = time.time()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await acknowledge(receive, send)
        route = (scope["method"], scope["path"])
        if route == ("GET", "/style.css"):  # never looks at the session, so any cache may keep it
            return await answer(
                send, 200, STYLE, (b"content-type", b"text/css"), (b"cache-control", b"max-age=60")
            )
        if route == ("GET", "/"):
            return await self.home(scope["session"], send)
        action = ACTIONS.get(scope["path"])
        if action is None or scope["method"] != "POST":
            return await answer(send, 404, page.notice("There is nothing here."), HTML)
        form = await read_form(receive)
        session = scope["session"]
        if form is None or not is_ours(form, session):
            return await answer(send, 403, page.notice("This form has expired. Nothing was changed."), HTML)
        await action(session, form)
        return await answer(send, 303, b"", (b"location", b"/"))

    async def home(self, session: Session, send: Send) -> None:
        session["visits"] = session.get("visits", 0) + 1
        session.setdefault("csrf", secrets.token_urlsafe(16))
        live = len(self.manager.storage) + session.is_new  # type: ignore[arg-type]
        await answer(send, 200, page.shop(session, live=live, started=self.started), HTML)


def is_ours(form: Form, session: Session) -> bool:
    """Whether the form comes from a page of this session: other sites must not press our buttons."""
    token: str = session.get("csrf", "")
    return bool(token) and secrets.compare_digest(form.get("csrf", "").encode(), token.encode())


# -- what the forms do ------------------------------------------------------------------------------------


async def log_in(session: Session, form: Form) -> None:
    name = " ".join(form.get("name", "").split())[:40]
    if not name:
        return
    before = fingerprint(session.id)
    after = fingerprint(await session.aregenerate_id())  # who knew the id before the log-in knows nothing now
    session.update(user=name, rotation=[before, after], csrf=secrets.token_urlsafe(16))


async def log_out(session: Session, form: Form) -> None:
    await session.adestroy()  # the record is gone for good, and the cookie goes with this response


async def add(session: Session, form: Form) -> None:
    if form.get("item") in page.PRODUCTS:
        session.setdefault("cart", []).append(form["item"])  # changed in place, and still stored


async def remove(session: Session, form: Form) -> None:
    if form.get("item") in session.get("cart", []):
        session["cart"].remove(form["item"])


ACTIONS = {"/login": log_in, "/logout": log_out, "/cart/add": add, "/cart/remove": remove}


# -- plain ASGI -------------------------------------------------------------------------------------------


async def read_form(receive: Receive) -> Form | None:
    """The fields of an urlencoded form; None if it is too large."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MAX_FORM:
            return None
        if not message.get("more_body"):
            return {key: values[-1] for key, values in parse_qs(body.decode("utf-8", "replace")).items()}


async def answer(send: Send, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *GUARDS, length]})
    await send({"type": "http.response.body", "body": body})


async def acknowledge(receive: Receive, send: Send) -> None:
    for event in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{event}.complete"})
