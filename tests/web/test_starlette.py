"""What only Starlette and FastAPI have: typed access, the dependency, and the drop-in for Starlette's middleware."""

from __future__ import annotations

import asyncio
import logging
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import fastapi
import pytest
import starlette.middleware.sessions
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

import cysession.starlette
from cysession import FileStorage, Manager, MemoryStorage, Session
from cysession.asgi import SessionMiddleware
from cysession.errors import SessionError
from cysession.starlette import SessionDep, get_session
from tests.web.sites import Reply, call, cookie

SECRET = "a key for tests, as long as it should be"
OURS = cysession.starlette.SessionMiddleware
THEIRS = starlette.middleware.sessions.SessionMiddleware


@pytest.fixture(autouse=True)
def private_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default storage is this user's own directory; tests get one that is empty."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


async def count(request: Request) -> JSONResponse:
    request.session["n"] = request.session.get("n", 0) + 1
    return JSONResponse(dict(request.session))


async def show(request: Request) -> JSONResponse:
    return JSONResponse(dict(request.session))


async def clear(request: Request) -> JSONResponse:
    request.session.clear()
    return JSONResponse({})


async def push(request: Request) -> JSONResponse:
    request.session.setdefault("list", []).append(1)
    return JSONResponse({})


async def chat(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_json(dict(websocket.session))
    await websocket.close()


ROUTES = [
    Route("/count", count),
    Route("/show", show),
    Route("/clear", clear),
    Route("/push", push),
    WebSocketRoute("/chat", chat),
]


def app_with(middleware: Any, **options: Any) -> Starlette:
    return Starlette(routes=ROUTES, middleware=[Middleware(middleware, **options)])


def first_line(middleware: Any, **options: Any) -> str:
    """The Set-Cookie line of a new session."""
    reply = asyncio.run(call(app_with(middleware, **options), path="/count"))
    (line,) = reply.cookies
    return line.decode()


# -- the drop-in --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("middleware", [OURS, THEIRS])
def test_only_the_import_differs(middleware: Any) -> None:
    with TestClient(app_with(middleware, secret_key=SECRET)) as client:
        assert client.get("/show").json() == {} and not client.cookies
        for n in (1, 2, 3):
            assert client.get("/count").json() == {"n": n}
        assert client.get("/show").json() == {"n": 3} and list(client.cookies) == ["session"]
        with client.websocket_connect("/chat") as socket:
            assert socket.receive_json() == {"n": 3}
        assert client.get("/clear").status_code == 200 and not client.cookies
        assert client.get("/show").json() == {}


def attributes(line: str) -> set[str]:
    """The cookie's name and attributes as a browser understands them."""
    name, _, rest = line.partition("=")
    return {name, *(part.strip().lower() for part in rest.split(";")[1:])}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"session_cookie": "shop"},
        {"max_age": 600},
        {"max_age": None},
        {"path": "/app"},
        {"same_site": "strict"},
        {"same_site": "none", "https_only": True},
        {"https_only": True},
        {"domain": "shop.example"},
        {"partitioned": True, "https_only": True},
    ],
    ids=str,
)
def test_S11_every_argument_means_what_it_means_to_starlette(options: dict[str, Any]) -> None:
    ours, theirs = (first_line(each, secret_key=SECRET, **options) for each in (OURS, THEIRS))
    assert attributes(ours) == attributes(theirs)


def test_S11_golden_set_cookie_with_the_defaults_of_starlette() -> None:
    line = first_line(OURS, secret_key=SECRET)
    assert re.fullmatch(r"session=[\w-]{43}\.\d+; Path=/; Max-Age=1209600; HttpOnly; SameSite=Lax", line)
    line = first_line(OURS, secret_key=SECRET, https_only=True, max_age=None)
    assert re.fullmatch(r"session=[\w-]{43}; Path=/; Secure; HttpOnly; SameSite=Lax", line)


def test_positional_arguments_stand_where_they_stand_in_starlette() -> None:
    import inspect

    ours, theirs = (list(inspect.signature(each).parameters.values()) for each in (OURS, THEIRS))
    for mine, other in zip(ours, theirs, strict=False):
        assert mine.name == other.name
        assert mine.default == other.default or mine.name == "secret_key"


@pytest.mark.parametrize(
    "options",
    [
        {"same_site": "none"},
        {"same_site": "lazy"},
        {"partitioned": True},
        {"session_cookie": "a b"},
        {"session_cookie": "__Host-id", "https_only": True, "domain": "shop.example"},
        {"path": "app"},
        {"max_age": -1},
        {"storage": MemoryStorage(), "manager": Manager(storage=MemoryStorage())},
    ],
    ids=str,
)
def test_S9_S11_wrong_combinations_raise_at_start(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        OURS(app_with(OURS), SECRET, **options)


def test_nested_changes_are_kept_where_starlettes_own_loses_them() -> None:
    seen = []
    for middleware in (OURS, THEIRS):
        with TestClient(app_with(middleware, secret_key=SECRET)) as client:
            for _ in range(3):
                client.get("/push")
            seen.append(client.get("/show").json())
    assert seen == [{"list": [1, 1, 1]}, {"list": [1]}]


def visit(app: Any, path: str, session_id: str) -> Reply:
    return asyncio.run(call(app, cookie(session_id, "session"), path=path))


def test_V13_apps_share_sessions_if_they_share_the_secret() -> None:
    """As with signed cookies: other workers and restarts of one app know them, another app does not."""
    one, same, other = (app_with(OURS, secret_key=key) for key in (SECRET, SECRET, SECRET + "!"))
    session_id = asyncio.run(call(one, path="/count")).session_id
    assert visit(same, "/show", session_id).body == b'{"n":1}'
    assert visit(other, "/show", session_id).body == b"{}"


def test_S3_a_signed_cookie_from_before_is_a_new_visitor() -> None:
    signed = asyncio.run(call(app_with(THEIRS, secret_key=SECRET), path="/count")).cookies[0]
    value = signed.partition(b"=")[2].partition(b";")[0].decode()
    reply = visit(app_with(OURS, secret_key=SECRET), "/count", value)
    assert reply.body == b'{"n":1}' and len(reply.session_id) == 43


def test_max_age_is_the_idle_time_as_well() -> None:
    for max_age, ttl in ((600, 600), (None, 14 * 86400), (10**9, 10**9)):
        made = OURS(app_with(OURS), SECRET, max_age=max_age)
        assert made.manager.ttl == ttl and isinstance(made.manager.storage, FileStorage)
    assert "Max-Age=34560000" in first_line(OURS, secret_key=SECRET, max_age=10**9)


def test_storage_or_manager_of_ones_own() -> None:
    storage = MemoryStorage()
    made = OURS(app_with(OURS), storage=storage, max_age=60)
    assert made.manager.storage is storage and made.manager.ttl == 60
    manager = Manager(7, MemoryStorage())
    made = OURS(app_with(OURS), manager=manager)
    assert made.manager is manager and manager.ttl == 7


def test_plain_http_is_told_of_and_raises_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    """pytest runs with warnings as errors, as the tests of its users may."""
    OURS(app_with(OURS), SECRET)
    assert "https_only=True" in caplog.text
    caplog.clear()
    OURS(app_with(OURS), SECRET, https_only=True)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_S20_the_secret_is_in_no_log_and_no_file(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    asyncio.run(call(app_with(OURS, secret_key=SECRET), path="/count"))
    assert SECRET not in caplog.text
    for path in tmp_path.rglob("*"):
        assert SECRET not in str(path) and (path.is_dir() or SECRET.encode() not in path.read_bytes())


# -- typed access and the dependency ------------------------------------------------------------------------


def fast_app(manager: Manager) -> fastapi.FastAPI:
    app = fastapi.FastAPI()
    app.add_middleware(SessionMiddleware, manager=manager)

    @app.get("/async")
    async def async_view(session: SessionDep) -> int:
        session["n"] = session.get("n", 0) + 1
        return int(session["n"])

    @app.get("/sync")
    def sync_view(session: SessionDep) -> int:
        session["n"] = session.get("n", 0) + 1
        return int(session["n"])

    @app.websocket("/chat")
    async def chat_view(websocket: WebSocket, session: SessionDep) -> None:
        assert session is get_session(websocket)
        await websocket.accept()
        session["n"] = int(await websocket.receive_text())
        await session.asave()
        await websocket.send_text("stored")
        session["n"] += int(await websocket.receive_text())
        await websocket.close()

    return app


@pytest.mark.parametrize("path", ["/async", "/sync"])
def test_the_dependency_in_views_of_both_kinds(path: str) -> None:
    with TestClient(fast_app(Manager(storage=MemoryStorage())), base_url="https://testserver") as client:
        assert [client.get(path).json() for _ in range(3)] == [1, 2, 3]


def test_the_dependency_in_a_websocket_that_changes_its_session() -> None:
    manager = Manager(storage=MemoryStorage())
    with TestClient(fast_app(manager), base_url="https://testserver") as client:
        client.get("/async")
        session_id = client.cookies["__Host-id"]
        with client.websocket_connect("/chat", headers={"cookie": f"__Host-id={session_id}"}) as socket:
            socket.send_text("40")
            assert socket.receive_text() == "stored"
            assert manager.new(session_id)["n"] == 40
            socket.send_text("2")
            socket.receive()
        assert manager.new(session_id)["n"] == 42


def test_the_dependency_is_no_parameter_of_the_api() -> None:
    described = fast_app(Manager(storage=MemoryStorage())).openapi()
    assert "parameters" not in described["paths"]["/async"]["get"]


def test_the_dependency_can_be_overridden_by_a_test() -> None:
    app = fast_app(Manager(storage=MemoryStorage()))
    fake = Manager(storage=MemoryStorage()).new()
    fake["n"] = 41
    (dependency,) = SessionDep.__metadata__
    app.dependency_overrides[dependency.dependency] = lambda: fake
    assert TestClient(app).get("/async").json() == 42


def test_get_session_says_what_is_missing() -> None:
    for session in (None, {}, dict):
        with pytest.raises(SessionError, match="add cysession's SessionMiddleware"):
            get_session(Request({"type": "http", **({} if session is None else {"session": session})}))
    own = Manager(storage=MemoryStorage()).new()
    assert get_session(Request({"type": "http", "session": own})) is own and type(own) is Session


def test_starlette_alone_needs_no_fastapi() -> None:
    script = """
        import sys
        sys.modules["fastapi"] = None
        import cysession.starlette as module
        assert module.SessionMiddleware and module.get_session
        try:
            from cysession.starlette import SessionDep
        except ModuleNotFoundError as error:
            assert "fastapi" in str(error)
        try:
            module.SessionDepp
        except AttributeError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == "module 'cysession.starlette' has no attribute 'SessionDepp'"
