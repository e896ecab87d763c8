"""What do sessions add to a request of a Flask app, in memory and on Redis, next to Flask-Session and Flask's own?

The cookie is present. The same app without sessions is timed in turn and subtracted. Bar: at least 4 times less than
Flask-Session, whose memory is cachelib's SimpleCache; both with their default settings,
`SESSION_REFRESH_EACH_REQUEST` included. On Redis a request that writes has two round trips to wait for, with either,
and no library can take less than these. They run as well: a GET, and a SET after it, over a bare socket.
"""

import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from added import BARE, compare, environ_with
from flask import Flask, session
from race import Race, built

from cysession import Manager, MemoryStorage, RedisStorage
from cysession.flask import CySession
from tests.redis.servers import RedisServer

REQUESTS = 20  # short rounds: some of them nobody interrupts
NOTES = {
    "Flask's signed cookie": "storage: the data travel in the cookie, readable, and cannot be revoked",
    "the round trips alone": "sessions: what any library has to wait for",
}
TRIPS = {"untouched": 0, "read only": 1, "read and write": 2}
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


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as started:
        yield started


def flask_session_of(where: str, url: str) -> Install:
    import flask_session

    if where == "Redis":
        import redis

        settings: dict[str, Any] = {"SESSION_TYPE": "redis", "SESSION_REDIS": redis.Redis.from_url(url)}
    else:
        from cachelib import SimpleCache

        settings = {"SESSION_TYPE": "cachelib", "SESSION_CACHELIB": SimpleCache()}

    def install(app: Flask) -> None:
        app.config.update(settings)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of cachelib as a backend, and of pickle
            flask_session.Session(app)

    return install


def round_trips(connection: socket.socket, count: int) -> Flask:
    """What Redis itself takes: each command is sent and its answer awaited, and nothing is done with it."""
    commands = [b"GET s\r\n", b"SET s " + b"x" * 90 + b" EX 3600\r\n"][:count]
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def wait() -> str:
        for command in commands:
            connection.sendall(command)
            connection.recv(4096)
        return "ok"

    return app_with(wait, None)


def signed_cookie(app: Flask) -> None:
    """Flask's own session, all of it in the cookie."""
    app.secret_key = "s" * 32


@pytest.mark.parametrize("what", VIEWS)
@pytest.mark.parametrize("where", ["memory", "Redis"])
def test_sessions(race: Race, server: RedisServer, where: str, what: str) -> None:
    def rounds(app: Flask, cookie: str) -> Callable[[], None]:
        environ = environ_with(cookie)

        def run() -> None:
            for _ in range(REQUESTS):
                request(app, dict(environ), lambda *_: None)

        return run

    def carrying(install: Install) -> Callable[[], None]:
        app = app_with(VIEWS[what], install)
        return rounds(app, filled(app))

    with ExitStack() as open_ones:
        storage = MemoryStorage() if where == "memory" else RedisStorage(server.url)
        manager = open_ones.enter_context(Manager(3600, storage))
        contenders = {
            BARE: rounds(app_with(home, None), "session=none"),
            "cysession": carrying(lambda app: CySession(app, manager)),
            "Flask-Session": built(lambda: carrying(flask_session_of(where, server.url))),
        }
        if where == "memory":
            contenders["Flask's signed cookie"] = carrying(signed_cookie)
        elif TRIPS[what]:
            connection = open_ones.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            contenders["the round trips alone"] = rounds(round_trips(connection, TRIPS[what]), "session=none")
        compare(race, f"Flask, {where}, {what}", contenders, REQUESTS, notes=NOTES)
