"""cysession.django.SessionMiddleware with Django's session API; the web suite covers its headers."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from django.conf import settings
from django.contrib.sessions.middleware import SessionMiddleware as DjangoSessionMiddleware
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from django.test import AsyncClient, Client, override_settings

from cysession import Manager, MemoryStorage
from cysession.cookies import InsecureCookieWarning
from cysession.django import SessionMiddleware
from cysession.testing import FakeClock
from tests.web.storages import DictStorage, WaitingStorage

COOKIE = "sessionid"
OURS = ["cysession.django.SessionMiddleware", *settings.MIDDLEWARE[1:]]


@pytest.fixture(autouse=True)
def our_middleware() -> Iterator[None]:
    with override_settings(MIDDLEWARE=OURS, SESSION_COOKIE_SECURE=True):
        yield


@pytest.fixture
def client(manager: Manager) -> Client:
    return Client(raise_request_exception=False)


@pytest.fixture
def anna(users: Any) -> Any:
    user = users.objects.create_user("anna", password="secret")
    yield user
    user.delete()


def text(client: Client, view: str, **query: str) -> str:
    response = client.get(f"/{view}/", query)
    assert response.status_code == 200, response.content
    return str(response.content.decode())


def sent(client: Client, view: str, **query: str) -> Any:
    """The session cookie of one response, or None."""
    return client.get(f"/{view}/", query).cookies.get(COOKIE)


# -- as with Django's own --------------------------------------------------------------------------------


def test_it_is_djangos_middleware_to_whoever_asks() -> None:
    """Such as the checks of django.contrib.admin."""
    assert issubclass(SessionMiddleware, DjangoSessionMiddleware)
    assert run_checks() == []


def test_a_session_lives_and_changes_deep_inside_are_kept(client: Client) -> None:
    assert [text(client, "count") for _ in range(3)] == ["1", "2", "3"]
    text(client, "fill")
    text(client, "add")
    text(client, "add")
    assert text(client, "cart") == "tea,tea/ncart"


def test_S5_S6_log_in_and_out(client: Client, anna: Any) -> None:
    text(client, "count")
    planted = client.cookies[COOKIE].value
    text(client, "log_in", name="anna")
    own = client.cookies[COOKIE].value
    assert own.partition(".")[0] != planted.partition(".")[0]
    assert text(client, "who") == "anna" and text(client, "read") == "1"
    client.cookies[COOKIE] = planted
    assert text(client, "who") == "nobody"
    client.cookies[COOKIE] = own
    text(client, "log_out")
    assert client.cookies[COOKIE].value == "" and client.cookies[COOKIE]["max-age"] == "0"
    client.cookies[COOKIE] = own
    assert text(client, "who") == "nobody"


def test_the_test_client_reads_and_writes_the_session(client: Client, anna: Any) -> None:
    text(client, "count")
    session = client.session
    session["n"] = 41
    session.save()
    assert text(client, "count") == "42"
    client.force_login(anna)
    assert text(client, "who") == "anna"


def test_messages(client: Client) -> None:
    with override_settings(MESSAGE_STORAGE="django.contrib.messages.storage.session.SessionStorage"):
        text(client, "say")
        assert text(client, "hear") == "stored" and text(client, "hear") == ""


def test_V8_anonymous_requests_store_nothing(client: Client, manager: Manager) -> None:
    for view in ("read", "ignore", "flush", "who", "hear", "log_out"):
        text(client, view)
        client.cookies[COOKIE] = "A" * 43
    assert manager.stats()["created"] == 0


def test_R4_an_error_of_the_view_saves_nothing(client: Client) -> None:
    text(client, "count")
    assert client.get("/fail/").status_code == 500
    assert text(client, "read") == "1"


@pytest.mark.parametrize("storage", [MemoryStorage, DictStorage, WaitingStorage])
def test_async_sites(storage: Any) -> None:
    async def run() -> list[bytes]:
        client = AsyncClient()
        urls = ("/acount/", "/acount/", "/read/", "/flush/", "/read/")
        return [(await client.get(url)).content for url in urls]

    with Manager(storage=storage()) as manager, override_settings(CYSESSION={"MANAGER": manager}):
        assert asyncio.run(run()) == [b"1", b"2", b"2", b"ok", b"nobody"]


# -- the cookie ------------------------------------------------------------------------------------------


def test_the_cookie_is_sent_when_it_is_news(client: Client, clock: FakeClock) -> None:
    first = sent(client, "count")
    assert first["max-age"] == str(settings.SESSION_COOKIE_AGE) and first["secure"] and first["httponly"]
    assert sent(client, "count") is None and sent(client, "read") is None
    clock.advance(settings.SESSION_COOKIE_AGE / 10)
    again = sent(client, "read")
    assert again.value.partition(".")[0] == first.value.partition(".")[0] and again.value != first.value


def test_an_expiry_of_its_own_gives_the_cookie_its_life(client: Client, clock: FakeClock) -> None:
    sent(client, "count")
    assert sent(client, "stay", how="minute")["max-age"] == "60"
    assert sent(client, "count") is None
    clock.advance(7)
    assert sent(client, "count")["max-age"] == "60"
    assert sent(client, "stay", how="browser")["max-age"] == ""
    clock.advance(30)
    assert sent(client, "count") is None
    assert text(client, "read") == "4"


def test_a_life_beyond_what_browsers_take_is_cut(client: Client) -> None:
    sent(client, "count")
    assert sent(client, "stay", how="decades")["max-age"] == "34560000"
    with override_settings(CYSESSION={"STORAGE": "memory://"}, SESSION_COOKIE_AGE=10**9):
        assert sent(Client(), "count")["max-age"] == "34560000"


@pytest.mark.parametrize("setting", ["SESSION_COOKIE_SECURE", "SESSION_COOKIE_HTTPONLY"])
def test_S9_S10_an_open_cookie_is_warned_of_at_the_start_and_by_no_request(
    setting: str, client: Client
) -> None:
    with override_settings(**{setting: False}):
        with pytest.warns(InsecureCookieWarning, match=f"{setting} is False") as caught:
            client.handler.load_middleware()
        assert len(caught) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            sent(client, "count")
            assert sent(client, "stay", how="minute") is not None


def test_sessions_can_end_with_the_browser(client: Client) -> None:
    with override_settings(SESSION_EXPIRE_AT_BROWSER_CLOSE=True):
        cookie = sent(client, "count")
        assert cookie["max-age"] == "" and "." not in cookie.value


def test_save_every_request_is_a_use_without_a_look(client: Client, clock: FakeClock) -> None:
    with override_settings(SESSION_SAVE_EVERY_REQUEST=True):
        sent(client, "count")
        clock.advance(settings.SESSION_COOKIE_AGE / 10)
        assert sent(client, "ignore") is not None
        assert Client().get("/ignore/").cookies == {}


# -- when things go wrong --------------------------------------------------------------------------------


def test_V5_a_session_deleted_meanwhile_is_a_conflict(client: Client) -> None:
    text(client, "count")
    response = client.get("/overtaken/")
    assert response.status_code == 409 and not response.cookies
    assert text(client, "read") == "nobody"


@pytest.mark.parametrize("view", ["count", "read", "who", "flush", "acount"])
def test_R20_a_storage_that_fails_is_503(view: str) -> None:
    storage = DictStorage()
    with Manager(storage=storage) as manager, override_settings(CYSESSION={"MANAGER": manager}):
        client = Client()
        text(client, "count")
        storage.broken = True
        response = client.get(f"/{view}/")
        assert response.status_code == 503 and response.headers["Retry-After"] == "5" and not response.cookies
        storage.broken = False
        assert text(client, "read") == "1"


def test_a_view_that_saves_a_deleted_session_itself_is_a_conflict_too(client: Client) -> None:
    text(client, "count")
    assert client.get("/overtaken/", {"save": "1"}).status_code == 409


# -- settings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"SESSION_COOKIE_DOMAIN": "a b"}, "not a host name"),
        ({"SESSION_COOKIE_NAME": "__Host-id", "SESSION_COOKIE_PATH": "/shop"}, "Path other than /"),
        ({"SESSION_COOKIE_SAMESITE": False}, "samesite=False is unknown"),
        ({"SESSION_COOKIE_AGE": -1}, "ttl must lie"),
        ({"SESSION_ENGINE": "django.contrib.sessions.backends.cache"}, "needs SESSION_ENGINE"),
    ],
)
def test_what_browsers_would_refuse_is_refused_at_start(changed: dict[str, Any], complaint: str) -> None:
    with override_settings(CYSESSION={"STORAGE": "memory://"}, **changed):
        with pytest.raises(ImproperlyConfigured, match=complaint):
            Client().get("/ignore/")
