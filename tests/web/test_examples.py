"""The examples of the adapters answer, and remember their visitor."""

from __future__ import annotations

import io
import runpy
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.web.browser import Jar
from tests.web.sites import Reply, call_wsgi

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.filterwarnings("ignore::cysession.cookies.InsecureCookieWarning")


@pytest.fixture(autouse=True)
def private_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default storage is this user's own directory; tests get one that is empty."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


def example(name: str) -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "examples" / f"{name}.py"))


class Browser:
    """One visitor of a WSGI app, over plain http."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.jar = Jar(host="127.0.0.1", https=False)

    def visit(self, path: str = "/", **environ: Any) -> Reply:
        carried = self.jar.header()
        headers = [(b"cookie", carried)] if carried else []
        environ = {"PATH_INFO": path, "wsgi.url_scheme": "http", **environ}
        reply = call_wsgi(self.app, headers, method=environ.pop("method", "GET"), **environ)
        for line in reply.cookies:
            self.jar.receive(line)
        assert not self.jar.refused
        return reply

    def post(self, path: str, form: bytes = b"") -> bytes:
        """The page that the browser shows after a form was sent."""
        reply = self.visit(
            path,
            method="POST",
            CONTENT_TYPE="application/x-www-form-urlencoded",
            CONTENT_LENGTH=str(len(form)),
            **{"wsgi.input": io.BytesIO(form)},
        )
        assert reply.status == 302 and reply.all(b"location") == [b"/"]
        return self.visit("/").body


def test_wsgi_minimal_counts_visits() -> None:
    browser = Browser(example("wsgi_minimal")["app"])
    assert [browser.visit().body for _ in range(3)] == [b"visit 1\n", b"visit 2\n", b"visit 3\n"]
    assert Browser(browser.app).visit().body == b"visit 1\n"


def test_flask_app_keeps_a_guest_book() -> None:
    app = example("flask_app")["app"]
    anna, phone, ben = Browser(app), Browser(app), Browser(app)
    assert b"Your name" in anna.visit().body and anna.jar.header() == b""
    page = anna.post("/login", b"user=anna&stay=on")
    assert b"Welcome!" in page and b"Hello anna" in page
    assert b"Welcome!" not in anna.visit().body
    before = anna.jar.header()
    assert b"you wrote: tea, milk" in (anna.post("/notes", b"note=tea"), anna.post("/notes", b"note=milk"))[1]
    assert b"Hello anna" in phone.post("/login", b"user=anna") and b"tea" not in phone.visit().body
    assert b"Hello ben" in ben.post("/login", b"user=ben")
    assert anna.jar.header() == before != anna.post("/login", b"user=anna") and anna.jar.header() != before

    assert b"Your name" in phone.post("/logout-everywhere")
    assert b"Your name" in anna.visit().body and b"Hello ben" in ben.visit().body
    assert b"Goodbye." in ben.post("/logout")


def test_fastapi_app_keeps_a_cart() -> None:
    app = example("fastapi_app")["app"]
    with TestClient(app) as anna, TestClient(app) as ben:
        assert anna.get("/cart").status_code == 401 and not anna.cookies
        assert anna.post("/cart/tea").json() == ["tea"]
        before = anna.cookies["id"]
        assert anna.post("/login/anna").json() == {"user": "anna"}
        assert anna.cookies["id"] != before
        with anna.websocket_connect("/cart/live") as socket:
            socket.send_text("milk")
            assert socket.receive_text() == "2 in the cart"
            assert anna.get("/cart").json() == {"user": "anna", "cart": ["tea", "milk"]}
        ben.post("/login/ben")
        assert ben.get("/cart").json() == {"user": "ben", "cart": []}
        assert anna.post("/logout").status_code == 204 and not anna.cookies
        assert anna.get("/cart").status_code == 401 and ben.get("/cart").status_code == 200
