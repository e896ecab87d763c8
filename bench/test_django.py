"""What do sessions add to a request of a Django site, in memory and on Redis, next to Django's own cache engine?

The same site without sessions is timed in turn and subtracted. Bar: at least 4 times less than the cache engine under
Django's own middleware, over LocMem and over Redis, for a view that reads and writes, with our middleware: that does
not send the cookie with every change. Measured as well: our engine under Django's middleware, and that middleware
with an engine that does nothing, because no engine can add less there.
"""

import io
from collections.abc import Iterator
from typing import Any

import pytest
from added import HEADERS, NEIGHBOURS, compare
from django.contrib.sessions.backends.cache import SessionStore as CacheStore
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpRequest, HttpResponse
from django.test.utils import override_settings
from django.urls import path

from tests.django.site import set_up
from tests.redis.servers import RedisServer

pytestmark = pytest.mark.benchmark(group="Django, cookie present, per 20 requests")

REQUESTS, ROUNDS = 20, 300  # short rounds: some of them nobody interrupts
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
    """A browser's request, as a gateway hands it out."""
    headers = [*HEADERS, (b"cookie", NEIGHBOURS + cookie.encode())]
    return {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/",
        "bench.view": view,
        "QUERY_STRING": "",
        "SERVER_NAME": "shop.example",
        "SERVER_PORT": "443",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "192.0.2.1",
        "wsgi.url_scheme": "https",
        "wsgi.input": io.BytesIO(),
        **{"HTTP_" + name.decode().upper().replace("-", "_"): value.decode() for name, value in headers},
    }


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


def measure(benchmark: Any, view: Any, middleware: str, engine: str, **settings: Any) -> None:
    with override_settings(ROOT_URLCONF=URLS, MIDDLEWARE=[]):
        bare = WSGIHandler()
    with override_settings(
        ROOT_URLCONF=URLS,
        MIDDLEWARE=[middleware],
        SESSION_ENGINE=engine,
        SESSION_COOKIE_SECURE=True,
        **settings,
    ):
        app = WSGIHandler()
        cookie = filled(app)
        plain, carrying = environ_for(cookie, untouched), environ_for(cookie, view)

        def rounds(app: WSGIHandler, environ: dict[str, Any]) -> None:
            for _ in range(REQUESTS):
                request(app, environ, lambda *_: None)

        compare(benchmark, lambda: rounds(bare, plain), lambda: rounds(app, carrying), REQUESTS, ROUNDS)


VIEWS = [pytest.param(view, id=view.__name__) for view in (untouched, read_only, read_write)]


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as started:
        yield started


@pytest.fixture(params=["memory", "Redis"])
def storage(request: pytest.FixtureRequest) -> str:
    """Its URL."""
    return "memory://" if request.param == "memory" else request.getfixturevalue("server").url


@pytest.fixture(params=["memory", "Redis"])
def cache(request: pytest.FixtureRequest) -> dict[str, Any]:
    backends = "django.core.cache.backends"
    if request.param == "memory":
        return {"default": {"BACKEND": f"{backends}.locmem.LocMemCache"}}
    url = request.getfixturevalue("server").url
    return {"default": {"BACKEND": f"{backends}.redis.RedisCache", "LOCATION": url}}


@pytest.mark.parametrize("view", VIEWS)
def test_cysession_with_its_middleware(benchmark: Any, view: Any, storage: str) -> None:
    measure(benchmark, view, OURS, "cysession.django", CYSESSION={"STORAGE": storage})


@pytest.mark.parametrize("view", VIEWS)
def test_cysession_with_djangos_middleware(benchmark: Any, view: Any, storage: str) -> None:
    measure(benchmark, view, DJANGOS, "cysession.django", CYSESSION={"STORAGE": storage})


@pytest.mark.parametrize("view", VIEWS)
def test_djangos_cache_engine(benchmark: Any, view: Any, cache: dict[str, Any]) -> None:
    measure(benchmark, view, DJANGOS, "django.contrib.sessions.backends.cache", CACHES=cache)


@pytest.mark.parametrize("view", VIEWS)
def test_djangos_middleware_alone(benchmark: Any, view: str) -> None:
    measure(benchmark, view, DJANGOS, __name__)
