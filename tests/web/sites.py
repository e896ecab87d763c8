"""The raw driver of the web suite: a site is one view behind one adapter, and a reply hides no header.

No client library is involved: requests are built and responses read as the adapter's own protocol has them.
An adapter joins the suite with an entry in `ADAPTERS`: (view, manager, options) -> Site.
"""

from __future__ import annotations

import asyncio
import io
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Protocol

import fastapi
import flask
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.core.signals import got_request_exception
from django.http import HttpResponse
from django.test.utils import override_settings
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cysession import Manager, Session, wsgi
from cysession.asgi import SessionMiddleware
from cysession.flask import CySession
from cysession.starlette import SessionDep, get_session
from tests.django.site import set_up

set_up()

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


visitor: ContextVar[str] = ContextVar("visitor", default="")
"""Who sends the request that a view is answering, for views that have to know."""

HEADERS_LEAVE: list[Callable[[list[Header]], object]] = []
"""Called by the drivers with the headers at the moment when an adapter hands them to the server."""


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


class BareStarletteResponse(Response):
    """Has only the headers that it is given."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.body, answer.status)
        self.raw_headers = list(answer.headers)


@dataclass
class StarletteSite(AsgiSite):
    """The same in a Starlette app, whose view takes the session with `get_session`."""

    def __post_init__(self) -> None:
        self.app = Starlette(
            routes=[Route("/", self._endpoint, methods=["GET", "POST"])],
            middleware=[Middleware(SessionMiddleware, manager=self.manager, **self.options)],
        )
        self.app.middleware_stack = self.app.build_middleware_stack()  # as a server's start-up does

    async def _endpoint(self, request: Request) -> Response:
        return BareStarletteResponse(self.view(get_session(request)) or Answer())


@dataclass
class FastApiSite(AsgiSite):
    """The same in a FastAPI app, whose view takes the session as a dependency."""

    def __post_init__(self) -> None:
        self.app = fastapi.FastAPI()
        self.app.add_middleware(SessionMiddleware, manager=self.manager, **self.options)
        self.app.add_api_route("/", self._endpoint, methods=["GET", "POST"])
        self.app.middleware_stack = self.app.build_middleware_stack()

    async def _endpoint(self, session: SessionDep) -> Response:
        return BareStarletteResponse(self.view(session) or Answer())


@dataclass
class WsgiSite:
    """A view behind `cysession.wsgi.SessionMiddleware`."""

    view: View
    manager: Manager
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.app = wsgi.SessionMiddleware(self._app, self.manager, **self.options)

    def _app(self, environ: Any, start_response: Any) -> list[bytes]:
        answer = self.view(environ["cysession.session"]) or Answer()
        start_response(status_line(answer.status), as_text(answer.headers))
        return [answer.body]

    def request(self, headers: Iterable[Header] = (), *, method: str = "GET") -> Reply:
        return call_wsgi(self.app, headers, method=method)


class BareResponse(flask.Response):
    """Adds no header of its own."""

    default_mimetype = None
    automatically_set_content_length = False


@dataclass
class FlaskSite:
    """A Flask view; the session that it is given is the proxy `flask.session`."""

    view: View
    manager: Manager
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.app = flask.Flask("shop")
        self.app.config["PROPAGATE_EXCEPTIONS"] = True
        self.app.add_url_rule("/", view_func=self._answer)
        CySession(self.app, self.manager, **self.options)

    def _answer(self) -> flask.Response:
        answer = self.view(flask.session) or Answer()  # type: ignore[arg-type]
        return BareResponse(answer.body, answer.status, as_text(answer.headers))

    def request(self, headers: Iterable[Header] = (), *, method: str = "GET") -> Reply:
        return call_wsgi(self.app, headers, method=method)


@dataclass
class DjangoSite:
    """A view behind `cysession.django.SessionMiddleware`, in a site of its own with Django's whole stack.

    The suite's options are given as the settings that Django has for them.
    """

    joins_lines = True  # Django holds one line a header

    view: View
    manager: Manager
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.settings = django_settings(self.manager, self.options)
        self.lock = threading.Lock()
        self.serves = 0
        with override_settings(**self.settings):
            try:
                self.app = self.handler()
            except ImproperlyConfigured as error:
                raise error.__cause__ or error from None

    def handler(self) -> Any:
        return WSGIHandler()

    def send(self, headers: Iterable[Header], method: str) -> Reply:
        return call_wsgi(self.app, headers, method=method, **{"tests.view": self.respond})

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Settings are global: the first of several requests at once sets them, the last takes them back."""
        with self.lock:
            if not self.serves:
                self.override = override_settings(**self.settings)
                self.override.enable()
            self.serves += 1
        try:
            yield
        finally:
            with self.lock:
                self.serves -= 1
                if not self.serves:
                    self.override.disable()

    def respond(self, request: Any) -> Any:
        answer = self.view(request.session.cysession) or Answer()
        response = HttpResponse(answer.body, status=answer.status)
        del response.headers["Content-Type"]
        for name, value in as_text(answer.headers):
            if name.lower() == "set-cookie":
                key, _, rest = value.partition("=")
                response.cookies[key.strip()] = rest.partition(";")[0]
            else:
                known = response.headers.get(name)
                response.headers[name] = value if known is None else f"{known}, {value}"
        return response

    def request(self, headers: Iterable[Header] = (), *, method: str = "GET") -> Reply:
        errors: list[BaseException] = []

        def note(sender: Any, **_: Any) -> None:
            errors.append(sys.exception() or AssertionError("no exception at hand"))

        got_request_exception.connect(note)
        try:
            with self.serving():
                reply = self.send(headers, method)
        finally:
            got_request_exception.disconnect(note)
        # Before a cookie of the view's Django writes a blank, which a server takes off.
        reply.headers = [
            (key, value.strip() if key == b"Set-Cookie" else value) for key, value in reply.headers
        ]
        if errors:  # Django has made a page of it; the suite looks for the error itself
            raise errors[0]
        return reply


@dataclass
class AsyncDjangoSite(DjangoSite):
    """The same in Django's asynchronous stack; its view is a plain function, which Django runs in a thread."""

    def handler(self) -> Any:
        return ASGIHandler()

    def send(self, headers: Iterable[Header], method: str) -> Reply:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            asked = False

            async def once() -> Any:
                nonlocal asked
                if asked:  # Django waits here for the client to leave, which it does not
                    await asyncio.Event().wait()
                asked = True
                return await receive()

            scope["tests.view"] = self.respond
            await self.app(scope, once, send)

        # A view that sends a request to another site blocks the thread in which Django runs such views.
        # Not with its context: in that, Django waits for the blocked thread.
        who = visitor.get()

        def run() -> Reply:
            visitor.set(who)
            return asyncio.run(call(app, headers, method=method))

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(run).result()


def django_settings(manager: Manager, options: dict[str, Any]) -> dict[str, Any]:
    """The suite's options in Django's words."""
    given = dict(options)
    own = {
        name.upper(): given.pop(name) for name in ("header", "partitioned", "send_cookie") if name in given
    }
    settings: dict[str, Any] = {
        "ROOT_URLCONF": "tests.django.any_view",
        "MIDDLEWARE": ["cysession.django.SessionMiddleware"],
        "CYSESSION": {"MANAGER": manager, **own},
        "SESSION_EXPIRE_AT_BROWSER_CLOSE": given.get("cookie_max_age") is None,
    }
    if "header" not in options:
        settings |= {"SESSION_COOKIE_NAME": "__Host-id", "SESSION_COOKIE_SECURE": True}
    names = {"cookie_max_age": "AGE", "cookie": "NAME"}
    for name, value in given.items():
        if name == "insecure":
            settings["SESSION_COOKIE_SECURE"] = not value
        elif value is not None:
            settings[f"SESSION_COOKIE_{names.get(name, name.upper())}"] = value
    return settings


ADAPTERS: dict[str, Callable[[View, Manager, dict[str, Any]], Site]] = {
    "asgi": AsgiSite,
    "starlette": StarletteSite,
    "fastapi": FastApiSite,
    "wsgi": WsgiSite,
    "flask": FlaskSite,
    "django": DjangoSite,
    "django-asgi": AsyncDjangoSite,
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


async def call(app: Any, headers: Iterable[Header] = (), *, method: str = "GET", path: str = "/") -> Reply:
    """One request, and the one response that a server would have sent for the app's messages."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            for note in HEADERS_LEAVE:
                note(list(message["headers"]))
        sent.append(message)

    await app(http_scope(headers, method, path=path, raw_path=path.encode()), receive, send)
    start, *bodies = sent
    assert start["type"] == "http.response.start"
    assert [message["type"] for message in bodies] == ["http.response.body"] * len(bodies)
    return Reply(
        start["status"], list(start["headers"]), b"".join(message.get("body", b"") for message in bodies)
    )


# -- WSGI by hand ----------------------------------------------------------------------------------------


def status_line(status: int) -> str:
    return f"{status} {HTTPStatus(status).phrase}"


def as_text(headers: Iterable[Header]) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]


def environ_of(headers: Iterable[Header] = (), method: str = "GET", **more: Any) -> dict[str, Any]:
    """What a gateway makes of these headers: crumbs of a cookie are joined as such, other lines with a comma."""
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": "/",
        "QUERY_STRING": "",
        "SERVER_NAME": "shop.example",
        "SERVER_PORT": "443",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "shop.example",
        "REMOTE_ADDR": "192.0.2.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "https",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    for name, value in as_text(headers):
        key = "HTTP_" + name.upper().replace("-", "_")
        joint = "; " if key == "HTTP_COOKIE" else ","
        environ[key] = environ[key] + joint + value if key in environ else value
    return {**environ, **more}


def call_wsgi(app: Any, headers: Iterable[Header] = (), *, method: str = "GET", **environ: Any) -> Reply:
    """One request, and the one response that a server would have sent."""
    started: list[tuple[str, list[tuple[str, str]]]] = []
    sent: list[bytes] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        assert type(status) is str and type(headers) is list
        if started:
            assert exc_info is not None, "start_response() twice"
            if sent:
                raise exc_info[1]
        started[:] = [(status, headers)]
        for note in HEADERS_LEAVE:
            note([(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers])
        return sent.append

    body = app(environ_of(headers, method, **environ), start_response)
    try:
        for chunk in body:
            assert started, "a chunk before start_response()"
            sent.append(chunk)
    finally:
        if hasattr(body, "close"):
            body.close()
    ((status, text),) = started
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in text]
    return Reply(int(status[:3]), raw, b"".join(sent))


def joins_lines(site: Site) -> bool:
    """Whether the framework of the site holds one line a header."""
    return getattr(site, "joins_lines", False)


def lines_of(site: Site, *lines: bytes) -> list[bytes]:
    """These lines of one header as the framework of the site sends them."""
    return [b", ".join(lines)] if joins_lines(site) and lines else list(lines)


def headers_of(site: Site, headers: Iterable[Header]) -> list[Header]:
    """These headers as the framework of the site sends them."""
    if not joins_lines(site):
        return list(headers)
    joined: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        joined.setdefault(name, []).append(value)
    return [(name, b", ".join(values)) for name, values in joined.items()]


def cookie(session_id: str, name: str = "__Host-id") -> list[Header]:
    return [(b"cookie", f"{name}={session_id}".encode("latin-1"))]
