"""What do sessions add to a request of a Django site, in memory and on Redis, next to Django's own cache engine?

The cookie is present. The same site without sessions is timed in turn and subtracted. Bar: at least 4 times less than
the cache engine under Django's own middleware, over LocMem and over Redis, for a view that reads and writes, with our
middleware: that does not send the cookie with every change. Measured as well: our engine under Django's middleware,
and that middleware with an engine that does nothing, because no engine can add less there. Django's engines on a
database are left out: a query takes longer than all of these.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from added import BARE, compare, environ_with
from django.contrib.sessions.backends.cache import SessionStore as CacheStore
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpRequest, HttpResponse
from django.test.utils import override_settings
from django.urls import path
from race import Race

from tests.django.site import set_up
from tests.redis.servers import RedisServer

REQUESTS = 20  # short rounds: some of them nobody interrupts
NOTES = {"Django, signed cookies": "storage: the data travel in the cookie, readable, and cannot be revoked"}
ENGINES = "django.contrib.sessions.backends"
DJANGOS = "django.contrib.sessions.middleware.SessionMiddleware"
OURS = "cysession.django.SessionMiddleware"

set_up()


def untouched(request: HttpRequest) -> HttpResponse:
    return HttpResponse("ok")


def read_only(request: HttpRequest) -> HttpResponse:
    request.session.get("n")
    return HttpResponse("ok")


def read_write(request: HttpRequest) -> HttpResponse:
    request.session["n"] = request.session.get("n", 0) + 1
    return HttpResponse("ok")


def fill(request: HttpRequest) -> HttpResponse:
    """What a site keeps of a user who is logged in."""
    request.session.update(
        {
            "_auth_user_id": "1234567",
            "_auth_user_backend": "django.contrib.auth.backends.ModelBackend",
            "_auth_user_hash": "5f2a" * 16,
            "n": 1,
        }
    )
    return HttpResponse("ok")


def dispatch(request: HttpRequest) -> HttpResponse:
    """The one view of every site, so that all of them look equally far: it comes with the request."""
    return request.META["bench.view"](request)


URLS = (path("", dispatch),)


class SessionStore(CacheStore):  # type: ignore[misc]
    """An engine that does nothing, for what Django's middleware costs by itself."""

    def load(self) -> dict[str, Any]:
        return {"n": 1}

    def save(self, must_create: bool = False) -> None:
        self._session_key = "k" * 32


def environ_for(cookie: str, view: Any) -> dict[str, Any]:
    return {**environ_with(cookie), "bench.view": view}


def request(app: WSGIHandler, environ: dict[str, Any], start_response: Any) -> None:
    body = app(dict(environ), start_response)
    for _ in body:
        pass
    body.close()


def filled(app: WSGIHandler) -> str:
    """The cookie of a session that has data."""
    found: list[str] = []

    def start_response(status: str, headers: list[tuple[str, str]]) -> None:
        assert status == "200 OK", status
        found.extend(value.strip().partition(";")[0] for name, value in headers if name == "Set-Cookie")

    request(app, environ_for("", fill), start_response)
    return found[0]


def site(middleware: str, engine: str) -> WSGIHandler:
    """A site looks at these two settings when it starts, and at none of the others that differ."""
    with override_settings(MIDDLEWARE=[middleware] if middleware else [], SESSION_ENGINE=engine):
        return WSGIHandler()


def rounds(app: WSGIHandler, environ: dict[str, Any]) -> Callable[[], None]:
    def run() -> None:
        for _ in range(REQUESTS):
            request(app, environ, lambda *_: None)

    return run


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as started:
        yield started


@pytest.fixture
def caches(where: str, server: RedisServer) -> dict[str, Any]:
    backends = "django.core.cache.backends"
    if where == "memory":
        return {"default": {"BACKEND": f"{backends}.locmem.LocMemCache"}}
    return {"default": {"BACKEND": f"{backends}.redis.RedisCache", "LOCATION": server.url}}


@pytest.mark.parametrize("view", [untouched, read_only, read_write], ids=lambda view: view.__name__)
@pytest.mark.parametrize("where", ["memory", "Redis"])
def test_sessions(
    race: Race, server: RedisServer, caches: dict[str, Any], tmp_path: Path, where: str, view: Any
) -> None:
    with override_settings(
        ROOT_URLCONF=URLS,
        SESSION_COOKIE_SECURE=True,
        SESSION_FILE_PATH=str(tmp_path),
        CACHES=caches,
        CYSESSION={"STORAGE": "memory://" if where == "memory" else server.url},
    ):
        sites = {
            "cysession, with its middleware": site(OURS, "cysession.django"),
            "cysession, with Django's middleware": site(DJANGOS, "cysession.django"),
            "Django, cache": site(DJANGOS, f"{ENGINES}.cache"),
            "bare: Django's middleware, an engine that does nothing": site(DJANGOS, __name__),
        }
        if where == "memory":
            sites["Django, signed cookies"] = site(DJANGOS, f"{ENGINES}.signed_cookies")
            sites["Django, file"] = site(DJANGOS, f"{ENGINES}.file")
        compare(
            race,
            f"Django, {where}, {view.__name__.replace('_', ' ')}",
            {
                BARE: rounds(site("", f"{ENGINES}.cache"), environ_for("sessionid=none", untouched)),
                **{name: rounds(app, environ_for(filled(app), view)) for name, app in sites.items()},
            },
            REQUESTS,
            notes=NOTES,
        )
