"""The demo as a stranger meets it: a process on a port, a browser, a raw socket, and SIGKILL in between."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 20.0  # seconds; a slow machine takes a few, a healthy one less than one
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1200,1000"
)


def wait_for(what: str, ready: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE
    while True:
        if result := ready():
            return result
        if time.monotonic() > deadline:
            pytest.fail(f"{what} did not happen within {PATIENCE:g} s")
        time.sleep(0.02)


class Demo:
    """`python -m examples.demo` on a free port; start and SIGKILL as often as wanted."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        self.process: subprocess.Popen[bytes] | None = None
        self.log = directory.parent / "demo.log"

    def start(self) -> None:
        environment = dict(os.environ, PORT=str(self.port), CYSESSION_DEMO_DIR=str(self.directory))
        path = [str(ROOT / "src"), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "examples.demo"], cwd=ROOT, env=environment, stdout=log, stderr=log
            )
        wait_for("the start of the demo", self._answers)

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            pytest.fail(f"the demo ended with {self.process.returncode}:\n{self.log.read_text()}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def kill(self) -> None:
        """SIGKILL: nothing is flushed, closed or said goodbye to."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    running = Demo(tmp_path_factory.mktemp("demo") / "sessions")
    running.start()
    yield running
    running.kill()


# -- in a browser -----------------------------------------------------------------------------------------


class Browser:
    """Chromium, and the few things a visitor does."""

    def __init__(self, driver: Any, url: str) -> None:
        self.driver = driver
        self.url = url

    def text(self, element_id: str) -> str:
        found = self.driver.find_elements("id", element_id)
        return found[0].text if found else ""

    def visit(self) -> None:
        self.driver.get(self.url)

    def press(self, selector: str) -> None:
        """Press a button and wait for the page that follows."""
        page = self.driver.find_element("tag name", "html")
        self.driver.find_element("css selector", selector).click()
        wait_for("the next page", lambda: self._left(page))

    def _left(self, page: Any) -> bool:
        from selenium.common.exceptions import WebDriverException

        try:
            page.is_enabled()
        except WebDriverException:  # the old page is gone
            return self.driver.execute_script("return document.readyState") == "complete"
        return False

    def log_in(self, name: str) -> None:
        self.driver.find_element("id", "name").send_keys(name)
        self.press("#login")

    @property
    def cookie(self) -> dict[str, Any] | None:
        found: dict[str, Any] | None = self.driver.get_cookie("id")
        return found


@pytest.fixture(scope="module")
def browser(demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not chromedriver:
        pytest.fail("this test needs a browser: install Debian's packages chromium and chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
    yield Browser(driver, demo.url)
    driver.quit()


@pytest.mark.browser
def test_a_visitor_shops_logs_in_survives_a_kill_and_logs_out(demo: Demo, browser: Browser) -> None:
    browser.visit()
    assert browser.text("hello") == "Hello, stranger" and browser.text("visits") == "1"
    browser.visit()
    assert browser.text("visits") == "2"
    anonymous = browser.cookie
    assert anonymous is not None and anonymous["httpOnly"] and anonymous["sameSite"] == "Lax"

    browser.press("button[value=Assam]")
    assert browser.text("cart-size") == "1"
    before = browser.text("fingerprint")
    browser.log_in("Anna")
    assert browser.text("user") == "Anna"
    assert browser.cookie is not None and browser.cookie["value"] != anonymous["value"]  # S5: the id rotated
    assert browser.text("fingerprint") != before
    assert browser.text("cart-size") == "1"  # and everything moved along

    browser.press("button[value=Biscuits]")
    browser.press("button[value=Assam]")
    assert browser.text("cart-size") == "3" and browser.text("total") == "€ 17.60"
    logged_in = browser.cookie
    process = browser.text("pid")

    demo.kill()
    demo.start()
    browser.visit()
    assert browser.text("pid") != process
    assert browser.text("user") == "Anna" and browser.text("cart-size") == "3"
    assert browser.cookie == logged_in

    # The id from before the log-in leads nowhere (S3), and looking at it stores nothing.
    assert "Hello, stranger" in Raw(demo).get(anonymous["value"]).text
    assert "Hello, Anna" in Raw(demo).get(logged_in["value"]).text

    browser.press("#logout")
    assert browser.text("hello") == "Hello, stranger"
    assert browser.text("visits") == "1" and browser.text("cart-size") == "0"
    assert browser.cookie is not None and browser.cookie["value"] != logged_in["value"]
    assert "Hello, stranger" in Raw(demo).get(logged_in["value"]).text
    assert browser.driver.get_log("browser") == []  # no refused cookie, no blocked style


# -- over a raw socket ------------------------------------------------------------------------------------


class Response:
    def __init__(self, raw: bytes) -> None:
        head, _, self.body = raw.partition(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        self.status = int(status.split()[1])
        self.headers = [
            (key.lower(), value.strip()) for key, _, value in (line.partition(":") for line in lines)
        ]
        self.text = self.body.decode()

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]

    @property
    def id(self) -> str:
        (line,) = self.all("set-cookie")
        return line.partition("=")[2].partition(";")[0]

    @property
    def csrf(self) -> str:
        found = re.search(r'name="csrf" value="([^"]+)"', self.text)
        assert found
        return found[1]


class Raw:
    """HTTP by hand, one connection a request."""

    def __init__(self, demo: Demo) -> None:
        self.address = ("127.0.0.1", demo.port)

    def send(self, request: bytes) -> Response:
        with socket.create_connection(self.address, PATIENCE) as connection:
            with contextlib.suppress(ConnectionError):  # the server may have had enough
                connection.sendall(request)
            answer = b""
            with contextlib.suppress(ConnectionError):
                while chunk := connection.recv(65536):
                    answer += chunk
        return Response(answer)

    def get(self, session_id: str = "", *, path: str = "/", headers: bytes = b"") -> Response:
        return self.send(self._head("GET", path, session_id) + headers + b"\r\n")

    def post(self, path: str, session_id: str, form: str) -> Response:
        length = (
            f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(form)}\r\n\r\n{form}"
        )
        return self.send(self._head("POST", path, session_id) + length.encode())

    def _head(self, method: str, path: str, session_id: str) -> bytes:
        cookie = f"Cookie: id={session_id}\r\n" if session_id else ""
        return f"{method} {path} HTTP/1.1\r\nHost: demo\r\nConnection: close\r\n{cookie}".encode("latin-1")


def alive(response: Response) -> int:
    found = re.search(r'id="live">(\d+)<', response.text)
    assert found
    return int(found[1])


def test_the_headers_of_the_first_visit_and_of_a_log_out(demo: Demo) -> None:
    raw = Raw(demo)
    first = raw.get()
    assert first.status == 200
    assert re.fullmatch(r"id=[\w-]{43}; Path=/; HttpOnly; SameSite=Lax", first.all("set-cookie")[0])
    assert first.all("vary") == ["Cookie"] and first.all("cache-control") == ["no-store"]
    assert first.id not in first.text

    again = raw.get(first.id)
    assert (
        again.all("set-cookie") == [] and again.all("vary") == ["Cookie"] and again.all("cache-control") == []
    )
    out = raw.post("/logout", first.id, f"csrf={again.csrf}")
    assert out.status == 303
    assert out.all("set-cookie") == [
        "id=; Path=/; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=0; HttpOnly; SameSite=Lax"
    ]


def test_a_session_is_on_the_disk_before_the_response_leaves(demo: Demo) -> None:
    raw = Raw(demo)
    first = raw.get()
    new_id = raw.post("/login", first.id, f"name=Ben&csrf={first.csrf}").id
    demo.kill()
    demo.start()
    assert "Hello, Ben" in raw.get(new_id).text
    assert "Hello, stranger" in raw.get(first.id).text


@pytest.mark.parametrize("csrf", ["", "csrf=", "csrf=wrong", "csrf=%C3%A9"])
@pytest.mark.parametrize("known", [True, False])
def test_a_form_without_the_token_of_its_session_does_nothing(demo: Demo, csrf: str, known: bool) -> None:
    raw = Raw(demo)
    session_id = raw.get().id if known else "A" * 43
    refused = raw.post("/login", session_id, f"name=Eve&{csrf}")
    assert refused.status == 403
    assert "Eve" not in raw.get(session_id).text


@pytest.mark.parametrize(
    "cookie",
    [
        b"id=../x",
        b"id=a\0b",
        b"id=\xff\xfe",
        b"id=caf\xc3\xa9",
        b"id=" + b"A" * 43,
        b"id=%2e%2e%2f",
        b"=;;=; id",
        b"\xff",
    ],
)
def test_bad_cookies_look_like_a_first_visit(demo: Demo, cookie: bytes) -> None:
    raw = Raw(demo)
    response = raw.get(headers=b"Cookie: " + cookie + b"\r\n")
    if b"\0" in cookie:
        assert response.status in (200, 400)  # some servers refuse the octet themselves
    else:
        assert response.status == 200 and 'id="visits">1<' in response.text
        assert response.id not in cookie.decode("latin-1")


def test_a_cookie_header_of_1_MB_harms_nobody(demo: Demo) -> None:
    raw = Raw(demo)
    session_id = raw.get().id
    response = raw.get(headers=b"Cookie: " + b"x" * 1_000_000 + b"; id=" + session_id.encode() + b"\r\n")
    assert response.status in (200, 400, 431)  # where the server has a limit, it comes first
    seen = 2 if response.status == 200 else 1
    assert f'id="visits">{seen + 1}<' in raw.get(session_id).text


def test_V8_what_does_not_look_at_the_session_stores_nothing(demo: Demo) -> None:
    raw = Raw(demo)
    session_id = raw.get().id
    before = alive(raw.get(session_id))
    for _ in range(20):
        style = raw.get(path="/style.css")
        assert style.status == 200 and style.all("set-cookie") == style.all("vary") == []
        assert raw.get("A" * 43, path="/nowhere").status == 404
    assert alive(raw.get(session_id)) == before
