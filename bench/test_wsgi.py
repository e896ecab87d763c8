"""What do sessions add to a WSGI request, in memory and in files, next to Beaker's middleware?

The same app without sessions is timed in turn and subtracted. Beaker pickles a session and locks it with files; it is
given its fastest options: no lock on reading, JSON in place of pickle, saved only where the app asks for it.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from added import compare
from beaker.middleware import SessionMiddleware as BeakerMiddleware
from test_flask import environ_with

from cysession import FileStorage, Manager, MemoryStorage
from cysession.wsgi import SessionMiddleware

pytestmark = pytest.mark.benchmark(group="WSGI, cookie present, per 50 requests")

REQUESTS, ROUNDS = 50, 200
App = Callable[[dict[str, Any], Any], Iterable[bytes]]


def app_with(key: str, change: bool, save: bool = False) -> App:
    """An app that reads its session, and changes it or not."""

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        session = environ[key]
        n = session.get("n", 0)
        if change or environ["PATH_INFO"] == "/fill":
            session["n"] = n + 1
            if save:
                session.save()
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
        return [b"ok"]

    return app


def bare(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
    return [b"ok"]


def request(app: App, environ: dict[str, Any], start_response: Any) -> None:
    body = app(environ, start_response)
    for _ in body:
        pass
    if hasattr(body, "close"):
        body.close()


def cookie_of(app: App) -> str:
    found: list[str] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> None:
        assert status == "200 OK"
        found.extend(value.partition(";")[0] for name, value in headers if name.lower() == "set-cookie")

    request(app, environ_with("", "/fill"), start_response)
    return found[0]


@pytest.fixture(params=["memory", "files"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(request.param)


@pytest.fixture
def ours(place: str, tmp_path: Path) -> Iterator[Callable[[bool], App]]:
    storage = (
        MemoryStorage() if place == "memory" else FileStorage(tmp_path, durability="none", sweep_every=0)
    )
    with Manager(3600, storage) as manager:
        yield lambda change: SessionMiddleware(app_with("cysession.session", change), manager)


@pytest.fixture
def beaker(place: str, tmp_path: Path) -> Callable[[bool], App]:
    options = {
        "session.type": "memory" if place == "memory" else "file",
        "session.data_dir": str(tmp_path),
        "session.data_serializer": "json",
        "session.timeout": 3600,
    }

    def made(change: bool) -> App:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            app: App = BeakerMiddleware(app_with("beaker.session", change, save=True), options)
        return app

    return made


def measure(benchmark: Any, place: str, change: bool, make: Callable[[bool], App], who: str) -> None:
    app = make(change)
    environ = environ_with(cookie_of(app))
    benchmark.name = f"{who}, {place}, {'read-write' if change else 'read-only'}"

    def rounds(app: App) -> None:
        for _ in range(REQUESTS):
            request(app, dict(environ), lambda *_: None)

    compare(benchmark, lambda: rounds(bare), lambda: rounds(app), REQUESTS, ROUNDS)


@pytest.mark.parametrize("change", [False, True], ids=["read", "write"])
def test_cysession(benchmark: Any, place: str, change: bool, ours: Callable[[bool], App]) -> None:
    measure(benchmark, place, change, ours, "cysession")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("change", [False, True], ids=["read", "write"])
def test_beaker(benchmark: Any, place: str, change: bool, beaker: Callable[[bool], App]) -> None:
    measure(benchmark, place, change, beaker, "Beaker")
