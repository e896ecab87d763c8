"""The ASGI middleware behind real servers, spoken to by real clients that leave whenever they like."""

from __future__ import annotations

import ast
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
from websockets.sync.client import ClientConnection, connect

from cysession import FileStorage, Manager

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 20.0  # seconds; a slow machine takes a few, a healthy one less than one

SERVERS = {
    "uvicorn": [
        *("-m", "uvicorn", "--log-level", "error", "--host", "127.0.0.1"),
        *("--timeout-graceful-shutdown", "1", "--port"),
    ],
    "granian": [*("-m", "granian", "--interface", "asgi", "--log-level", "critical"), "--port"],
}


@pytest.fixture(autouse=True)
def clients_are_silent(caplog: pytest.LogCaptureFixture) -> None:
    """The WebSocket client writes every header into its debug log, and the cookie is its own."""
    caplog.set_level(logging.WARNING, "websockets.client")


def wait_for(what: str, ready: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE
    while True:
        if result := ready():
            return result
        assert time.monotonic() < deadline, f"{what} did not happen within {PATIENCE:g} s"
        time.sleep(0.02)


class Server:
    """One server process over one directory of sessions; started and ended as often as wanted."""

    def __init__(self, kind: str, directory: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port: int = probe.getsockname()[1]
        self.directory = directory
        self._command = [sys.executable, *SERVERS[kind], str(self.port), "tests.web.asgi_served:app"]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, **environment: str) -> None:
        paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
        own = {"PYTHONPATH": paths, "CYSESSION_TEST_DIR": str(self.directory), **environment}
        self._process = subprocess.Popen(
            self._command,
            cwd=self.directory,
            env={**os.environ, **own},
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # granian's workers outlive a parent that is killed: they are ended with it
        )
        wait_for("the server's first answer", self._answers)

    def _answers(self) -> bool:
        assert self._process is not None and self._process.poll() is None, "the server ended by itself"
        return self._listens()

    def _listens(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return True
        except OSError:
            return False

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if how is signal.SIGKILL:
            os.killpg(process.pid, how)
        else:
            process.send_signal(how)
        try:
            process.wait(PATIENCE)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            wait_for("the end of its workers", lambda: not self._listens())

    def browser(self) -> httpx2.Client:
        return httpx2.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=PATIENCE, trust_env=False)

    @contextmanager
    def websocket(self, browser: httpx2.Client) -> Iterator[ClientConnection]:
        """With the browser's cookies; a cookie of the handshake goes to the browser."""
        cookies = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
        headers = {"Cookie": cookies} if cookies else {}
        url = f"ws://127.0.0.1:{self.port}/talk"
        with connect(url, additional_headers=headers, open_timeout=PATIENCE, proxy=None) as opened:
            assert opened.response is not None
            if line := opened.response.headers.get("Set-Cookie"):
                name, _, value = line.partition(";")[0].partition("=")
                browser.cookies.set(name, value)
            yield opened

    def stored(self, session_id: str) -> dict[str, Any]:
        """What the directory holds, whether the server runs or not."""
        with Manager(3600, FileStorage(self.directory / "sessions")) as manager:
            return manager.new(session_id).get_map()


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    made = Server(request.param, tmp_path)
    made.start()
    yield made
    made.end(signal.SIGKILL)


@pytest.fixture
def browser(server: Server) -> Iterator[httpx2.Client]:
    with server.browser() as made:
        yield made


def read(browser: httpx2.Client) -> dict[str, Any]:
    data = ast.literal_eval(browser.get("/read").text)
    assert isinstance(data, dict)
    return data


def test_a_browser_is_known_from_request_to_request(server: Server, browser: httpx2.Client) -> None:
    first = browser.get("/")
    assert first.text == "1" and "HttpOnly" in first.headers["set-cookie"]
    assert first.headers["vary"] == "Cookie" and first.headers["cache-control"] == "no-store"
    second = browser.get("/")
    assert second.text == "2" and "set-cookie" not in second.headers
    with server.browser() as other:
        assert other.get("/").text == "1"
    assert "Max-Age=0" in browser.get("/leave").headers["set-cookie"]
    assert browser.get("/").text == "1"


def test_R4_an_error_drops_the_changes_and_a_new_id_arrives_all_the_same(browser: httpx2.Client) -> None:
    browser.get("/")
    old = browser.cookies["id"]
    assert browser.get("/fail").status_code == 500 and read(browser) == {"n": 1}
    reply = browser.get("/rotate")
    assert reply.status_code == 500 and browser.cookies["id"] != old
    assert read(browser) == {"n": 1}


def test_a_client_that_leaves_in_the_middle_of_a_stream(server: Server, browser: httpx2.Client) -> None:
    with browser.stream("GET", "/events") as stream:
        ticks = stream.iter_lines()
        assert next(ticks) == "data: tick"
        assert "set-cookie" in stream.headers  # with the first bytes, and the session is stored by then
        session_id = stream.headers["set-cookie"].partition("=")[2].partition(";")[0]
        assert server.stored(session_id) == {"listening": True}
    wait_for("the end of the stream", lambda: server.stored(session_id) == {"listening": False})
    assert read(browser) == {"listening": False}


def test_R5_a_client_that_leaves_before_the_answer(server: Server, browser: httpx2.Client) -> None:
    browser.get("/")
    request = f"GET /slow HTTP/1.1\r\nHost: x\r\nCookie: id={browser.cookies['id']}\r\n\r\n".encode()
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(request)
            wait_for("the request's arrival", (server.directory / "slow").exists)
        (server.directory / "slow").unlink()
        assert read(browser) in ({"n": 1}, {"n": 99})
    assert browser.get("/").text in ("2", "100")


def test_a_websocket_shares_the_session_and_keeps_the_last_word(
    server: Server, browser: httpx2.Client
) -> None:
    browser.get("/")
    with server.websocket(browser) as opened:
        opened.send("hello")
        assert opened.recv(PATIENCE) == "heard 1"
        assert read(browser) == {"n": 1, "heard": []}  # as of the handshake
        opened.send("save")
        assert opened.recv(PATIENCE) == "heard 2"
        assert read(browser) == {"n": 1, "heard": ["hello", "save"]}
        assert browser.get("/").text == "2"  # another key: nothing is lost on either side
        opened.send("bye")
        assert opened.recv(PATIENCE) == "heard 3"
    wait_for("the last commit", lambda: read(browser) == {"n": 2, "heard": ["hello", "save", "bye"]})


def test_R5_a_websocket_whose_client_vanishes(server: Server, browser: httpx2.Client) -> None:
    browser.get("/")
    with server.websocket(browser) as opened:
        opened.send("hello")
        assert opened.recv(PATIENCE) == "heard 1"
        opened.socket.shutdown(socket.SHUT_RDWR)  # no closing handshake
        wait_for("the last commit", lambda: read(browser) == {"n": 1, "heard": ["hello"]})


def test_a_handshake_can_begin_a_session(tmp_path: Path) -> None:
    """On uvicorn: granian sends no headers with a handshake, so there a session begins with a request."""
    server = Server("uvicorn", tmp_path)
    server.start()
    try:
        with server.browser() as browser:
            with server.websocket(browser) as opened:
                opened.send("save")
                assert opened.recv(PATIENCE) == "heard 1"
            assert read(browser) == {"heard": ["save"]}
    finally:
        server.end(signal.SIGKILL)


def test_the_stop_of_the_server_closes_the_storage(server: Server, browser: httpx2.Client) -> None:
    browser.get("/")
    assert not (server.directory / "closed").exists()
    browser.close()
    server.end(signal.SIGTERM)
    assert (server.directory / "closed").exists()


def test_a_server_that_is_killed_knows_its_browsers_again(server: Server, browser: httpx2.Client) -> None:
    browser.get("/")
    server.end(signal.SIGKILL)
    server.start()
    with server.browser() as again:
        again.cookies.update(browser.cookies)
        assert again.get("/").text == "2"


def test_R5_a_request_that_the_stop_of_the_server_cancels_commits_nothing(tmp_path: Path) -> None:
    server = Server("uvicorn", tmp_path)
    server.start(CYSESSION_TEST_SLOW="60")
    try:
        with server.browser() as browser:
            browser.get("/")
            session_id = browser.cookies["id"]
            with socket.create_connection(("127.0.0.1", server.port)) as connection:
                connection.sendall(
                    f"GET /slow HTTP/1.1\r\nHost: x\r\nCookie: id={session_id}\r\n\r\n".encode()
                )
                wait_for("the request's arrival", (tmp_path / "slow").exists)
                browser.close()
                server.end(signal.SIGTERM)
        assert server.stored(session_id) == {"n": 1}
    finally:
        server.end(signal.SIGKILL)
