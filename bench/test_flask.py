"""What do sessions add to a request of a Flask app, in memory and on Redis, next to Flask-Session and Flask's own?

The same app without sessions is timed in turn and subtracted. Bar: at least 4 times less than Flask-Session, whose
memory is cachelib's SimpleCache; both with their default settings, `SESSION_REFRESH_EACH_REQUEST` included. On Redis a
request that writes has two round trips to wait for, with either, and no library can take less than these. They are
measured as well: a GET, and a SET after it, over a bare socket.
"""

import io
import socket
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import flask_session
import pytest
import redis
from added import HEADERS, NEIGHBOURS, compare
from cachelib import SimpleCache
from flask import Flask, session

from cysession import Manager, MemoryStorage, RedisStorage
from cysession.flask import CySession
from tests.redis.servers import RedisServer

REQUESTS, ROUNDS = 20, 300  # short rounds: some of them nobody interrupts
Install = Callable[[Flask], object]


def home() -> str:
    return "ok"


def read() -> str:
    session.get("n")
    return "ok"


def write() -> str:
    session["n"] = session.get("n", 0) + 1
    return "ok"


def app_with(view: Callable[[], str], install: Install | None) -> Flask:
    app = Flask("shop")
    app.add_url_rule("/", "view", view)
    app.add_url_rule("/fill", "fill", write)
    if install is not None:
        install(app)
    return app


def environ_with(cookie: str, path: str = "/") -> dict[str, Any]:
    """A browser's request, as a gateway hands it out."""
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


def request(app: Flask, environ: dict[str, Any], start_response: Any) -> None:
    body = app(environ, start_response)
    for _ in body:
        pass
    body.close()  # type: ignore[attr-defined]


def filled(app: Flask) -> str:
    """The cookie of a session with n = 1; "" if the app has no sessions."""
    found: list[str] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> None:
        assert status == "200 OK"
        found.extend(value.partition(";")[0] for name, value in headers if name.lower() == "set-cookie")

    request(app, environ_with("", "/fill"), start_response)
    return found[0]


VIEWS = {"untouched": home, "read only": read, "read and write": write}
every_view = pytest.mark.parametrize("what", VIEWS)
everywhere = pytest.mark.parametrize("where", ["memory", "Redis"])


def measure(benchmark: Any, what: str, where: str, install: Install) -> None:
    benchmark.group = f"Flask, {where}, session {what}, per {REQUESTS} requests"
    bare, app = app_with(home, None), app_with(VIEWS[what], install)
    environ = environ_with(filled(app))

    def rounds(app: Flask) -> None:
        for _ in range(REQUESTS):
            request(app, dict(environ), lambda *_: None)

    compare(benchmark, lambda: rounds(bare), lambda: rounds(app), REQUESTS, ROUNDS)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as started:
        yield started


@everywhere
@every_view
def test_cysession(benchmark: Any, what: str, where: str, server: RedisServer) -> None:
    storage = MemoryStorage() if where == "memory" else RedisStorage(server.url)
    with Manager(3600, storage) as manager:
        measure(benchmark, what, where, lambda app: CySession(app, manager))


@everywhere
@every_view
def test_flask_session(benchmark: Any, what: str, where: str, server: RedisServer) -> None:
    settings = {"SESSION_TYPE": "cachelib", "SESSION_CACHELIB": SimpleCache()}
    if where == "Redis":
        settings = {"SESSION_TYPE": "redis", "SESSION_REDIS": redis.Redis.from_url(server.url)}

    def install(app: Flask) -> None:
        app.config.update(settings)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of cachelib as a backend, and of pickle
            flask_session.Session(app)

    measure(benchmark, what, where, install)


@pytest.mark.parametrize("what", ["read only", "read and write"])
def test_round_trips_alone(benchmark: Any, what: str, server: RedisServer) -> None:
    """What Redis itself takes: each command is sent and its answer awaited, and nothing is done with it."""
    benchmark.group = f"Flask, Redis, session {what}, per {REQUESTS} requests"
    commands = [b"GET s\r\n", b"SET s " + b"x" * 90 + b" EX 3600\r\n"]
    if what == "read only":
        del commands[1]
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def wait() -> str:
            for command in commands:
                connection.sendall(command)
                connection.recv(4096)
            return "ok"

        bare, app = app_with(home, None), app_with(wait, None)
        environ = environ_with("")

        def rounds(app: Flask) -> None:
            for _ in range(REQUESTS):
                request(app, dict(environ), lambda *_: None)

        wait()
        compare(benchmark, lambda: rounds(bare), lambda: rounds(app), REQUESTS, ROUNDS)


@pytest.mark.parametrize("what", ["read only", "read and write"])
def test_flask_signed_cookie(benchmark: Any, what: str) -> None:
    """Flask's own session, all of it in the cookie."""

    def install(app: Flask) -> None:
        app.secret_key = "s" * 32

    measure(benchmark, what, "memory", install)
