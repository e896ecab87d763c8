"""The adapters as an application puts them together: both type checkers pass it."""

from collections.abc import Iterable
from typing import assert_type
from wsgiref.types import StartResponse, WSGIEnvironment

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from cysession import Manager, Session, asgi, wsgi
from cysession.starlette import get_session

manager = Manager(ttl=3600)


async def home(request: Request) -> PlainTextResponse:
    session = get_session(request)
    assert_type(session, Session)
    session["visits"] = session.get("visits", 0) + 1
    return PlainTextResponse(str(session["visits"]))


app = Starlette(
    routes=[Route("/", home)],
    middleware=[Middleware(asgi.SessionMiddleware, manager=manager, cookie="sid", samesite="Strict")],
)
wrapped = asgi.SessionMiddleware(app, manager, insecure=True, cookie_max_age=3600)


def page(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    session: Session = environ["cysession.session"]
    session["seen"] = True
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


site = wsgi.SessionMiddleware(page, manager, header="X-Session-Id")
