"""A whole Django site with Django's own middleware, over every storage: views, log-in, templates, messages, client."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from django.conf import settings
from django.test import AsyncClient, Client, override_settings

from cysession import Manager
from cysession.django import SessionStore, get_manager
from cysession.testing import FakeClock
from tests.web.storages import DictStorage

COOKIE = "sessionid"


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


# -- the session of a request ----------------------------------------------------------------------------


def test_a_session_lives_from_request_to_request(client: Client) -> None:
    assert [text(client, "count") for _ in range(3)] == ["1", "2", "3"]
    assert text(client, "read") == "3"


def test_a_change_deep_inside_is_kept_without_a_ritual(client: Client) -> None:
    text(client, "fill")
    text(client, "add")
    text(client, "add")
    assert text(client, "cart") == "tea,tea/cart"


def test_V8_anonymous_requests_store_nothing(client: Client, manager: Manager) -> None:
    for view in ("read", "ignore", "flush", "who", "hear", "log_out"):
        text(client, view)
        client.cookies[COOKIE] = "A" * 43
    assert manager.stats()["created"] == 0


def test_S3_an_unknown_id_is_never_adopted(client: Client) -> None:
    client.cookies[COOKIE] = "A" * 43
    text(client, "count")
    assert client.cookies[COOKIE].value != "A" * 43


def test_S15_what_read_the_session_varies_and_what_did_not_does_not(client: Client) -> None:
    text(client, "count")
    assert client.get("/read/").headers["Vary"] == "Cookie"
    assert "Vary" not in client.get("/ignore/").headers


def test_the_cookie_goes_with_a_flush(client: Client) -> None:
    text(client, "count")
    text(client, "flush")
    assert client.cookies[COOKIE].value == "" and client.cookies[COOKIE]["max-age"] == 0
    assert text(client, "read") == "nobody"


def test_V5_a_session_deleted_meanwhile_interrupts_the_request(client: Client) -> None:
    text(client, "count")
    response = client.get("/overtaken/")
    assert response.status_code == 400
    assert text(client, "read") == "nobody"


def test_R4_an_error_of_the_view_saves_nothing(client: Client) -> None:
    text(client, "count")
    assert client.get("/fail/").status_code == 500
    assert text(client, "read") == "1"


def test_the_cookies_life_is_what_was_set(client: Client) -> None:
    text(client, "count")
    assert client.cookies[COOKIE]["max-age"] == settings.SESSION_COOKIE_AGE
    text(client, "stay", how="minute")
    assert client.cookies[COOKIE]["max-age"] == 60
    text(client, "stay", how="browser")
    assert client.cookies[COOKIE]["max-age"] == ""


def test_save_every_request(client: Client) -> None:
    text(client, "count")
    with override_settings(SESSION_SAVE_EVERY_REQUEST=True):
        response = client.get("/ignore/")
    assert response.cookies[COOKIE]["max-age"] == settings.SESSION_COOKIE_AGE
    assert COOKIE not in client.get("/ignore/").cookies


def test_R20_a_storage_that_fails_is_an_error_and_leaves_the_cookie(users: Any) -> None:
    storage = DictStorage()
    with Manager(storage=storage) as manager, override_settings(CYSESSION={"MANAGER": manager}):
        client = Client(raise_request_exception=False)
        text(client, "count")
        storage.broken = True
        response = client.get("/count/")
        assert response.status_code == 500 and not response.cookies
        storage.broken = False
        assert text(client, "read") == "1"


# -- the test client -------------------------------------------------------------------------------------


def test_the_test_client_reads_and_writes_the_session(client: Client) -> None:
    session = client.session
    session["n"] = 41
    session.save()
    assert text(client, "count") == "42"
    assert isinstance(client.session, SessionStore) and client.session["n"] == 42


def test_the_test_client_logs_in_and_out(client: Client, anna: Any) -> None:
    client.force_login(anna)
    assert text(client, "who") == "anna"
    client.logout()
    assert text(client, "who") == "nobody"


# -- django.contrib.auth ---------------------------------------------------------------------------------


def test_S5_V2_log_in_changes_the_key_and_keeps_the_data(client: Client, anna: Any) -> None:
    text(client, "count")
    planted = client.cookies[COOKIE].value
    text(client, "log_in", name="anna")
    assert client.cookies[COOKIE].value != planted
    assert text(client, "who") == "anna" and text(client, "read") == "1"
    client.cookies[COOKIE] = planted
    assert text(client, "who") == "nobody" and text(client, "read") == "nobody"


def test_S6_log_out_destroys_the_session(client: Client, anna: Any) -> None:
    text(client, "log_in", name="anna")
    stolen = client.cookies[COOKIE].value
    text(client, "log_out")
    client.cookies[COOKIE] = stolen
    assert text(client, "who") == "nobody"


def test_another_user_gets_an_empty_session(client: Client, anna: Any, users: Any) -> None:
    bert = users.objects.create_user("bert", password="secret")
    text(client, "log_in", name="anna")
    text(client, "count")
    text(client, "log_in", name="bert")
    assert text(client, "who") == "bert" and text(client, "read") == "nobody"
    bert.delete()


def test_messages_travel_in_the_session(client: Client) -> None:
    with override_settings(MESSAGE_STORAGE="django.contrib.messages.storage.session.SessionStorage"):
        text(client, "say")
        assert text(client, "hear") == "stored" and text(client, "hear") == ""


def test_csrf_tokens_can_stand_in_the_session(manager: Manager) -> None:
    middleware = [*settings.MIDDLEWARE, "django.middleware.csrf.CsrfViewMiddleware"]
    with override_settings(CSRF_USE_SESSIONS=True, MIDDLEWARE=middleware):
        client = Client(enforce_csrf_checks=True)
        assert client.post("/ignore/").status_code == 403
        session = client.session
        session["_csrftoken"] = "a" * 32
        session.save()
        assert client.post("/ignore/", headers={"X-CSRFToken": "a" * 32}).status_code == 200


# -- whose session it is ---------------------------------------------------------------------------------


def test_with_bind_users_an_operator_can_log_a_user_out_everywhere(anna: Any, clock: FakeClock) -> None:
    with override_settings(CYSESSION={"STORAGE": "memory://", "BIND_USERS": True, "CLOCK": clock}):
        phone, desk = Client(), Client()
        for client in (phone, desk):
            text(client, "log_in", name="anna")
        assert len(get_manager().sessions_of(str(anna.pk))) == 2
        assert get_manager().revoke(str(anna.pk), keep=desk.session.cysession) == 1
        assert text(phone, "who") == "nobody" and text(desk, "who") == "anna"
        text(desk, "log_out")
        assert get_manager().sessions_of(str(anna.pk)) == []


def test_max_per_user_ends_the_oldest_session(anna: Any, clock: FakeClock) -> None:
    with override_settings(CYSESSION={"STORAGE": "memory://", "MAX_PER_USER": 2, "CLOCK": clock}):
        clients = [Client() for _ in range(3)]
        for client in clients:
            text(client, "log_in", name="anna")
            clock.advance(1)
        assert [text(client, "who") for client in clients] == ["nobody", "anna", "anna"]


def test_without_bind_users_nobody_is_noted(client: Client, anna: Any, manager: Manager) -> None:
    text(client, "log_in", name="anna")
    assert manager.sessions_of(str(anna.pk)) == []


# -- async views -----------------------------------------------------------------------------------------


def test_async_views(manager: Manager) -> None:
    async def run() -> list[bytes]:
        client = AsyncClient()
        return [(await client.get(url)).content for url in ("/acount/", "/acount/", "/read/")]

    assert asyncio.run(run()) == [b"1", b"2", b"2"]
