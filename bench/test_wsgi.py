"""What do sessions add to a WSGI request, in memory and in files, next to Beaker's middleware?

The cookie is present. The same app without sessions is timed in turn and subtracted. Beaker pickles a session and
locks it with files; it is given its fastest options: no lock on reading, JSON in place of pickle, saved only where the
app asks for it.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from added import BARE, compare, environ_with
from race import Race, built

from cysession import FileStorage, Manager, MemoryStorage
from cysession.wsgi import SessionMiddleware

REQUESTS = 50
NOTES = {"Beaker": "merges with another request's changes, the check that the session still exists"}
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


def ours(place: str, change: bool, directory: Path) -> Iterator[App]:
    storage = (
        MemoryStorage() if place == "memory" else FileStorage(directory, durability="none", sweep_every=0)
    )
    with Manager(3600, storage) as manager:
        yield SessionMiddleware(app_with("cysession.session", change), manager)


def beaker(place: str, change: bool, directory: Path) -> Iterator[App]:
    from beaker.middleware import SessionMiddleware as BeakerMiddleware

    options = {
        "session.type": "memory" if place == "memory" else "file",
        "session.data_dir": str(directory),
        "session.data_serializer": "json",
        "session.timeout": 3600,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield BeakerMiddleware(app_with("beaker.session", change, save=True), options)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("change", [False, True], ids=["read only", "read and write"])
@pytest.mark.parametrize("place", ["memory", "files"])
def test_middleware(race: Race, tmp_path: Path, place: str, change: bool) -> None:
    alive = [ours(place, change, tmp_path / "ours"), beaker(place, change, tmp_path / "beaker")]

    def rounds(app: App, cookie: str) -> Callable[[], None]:
        environ = environ_with(cookie)

        def run() -> None:
            for _ in range(REQUESTS):
                request(app, dict(environ), lambda *_: None)

        return run

    def carrying(made: Iterator[App]) -> Callable[[], None]:
        app = next(made)
        return rounds(app, cookie_of(app))

    compare(
        race,
        f"WSGI, {place}, {'read and write' if change else 'read only'}",
        {
            BARE: rounds(bare, "id=none"),
            "cysession": carrying(alive[0]),
            "Beaker": built(carrying, alive[1]),
        },
        REQUESTS,
        notes=NOTES,
    )
    for made in alive:
        next(made, None)
