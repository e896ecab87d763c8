"""examples/django_site on Django's own server, with two browsers that keep their cookies."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.cookiejar import CookieJar
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import HTTPCookieProcessor, Request, build_opener

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    """Its address. The server is a process of its own and ends with the test."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    log = tmp_path / "log"
    environ = {**os.environ, "SITE_STATE": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    with log.open("wb") as out:
        command = [sys.executable, str(ROOT / "examples" / "django_site" / "site.py"), address]
        server = subprocess.Popen(command, env=environ, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while True:
            try:
                build_opener().open(f"http://{address}/", timeout=5).close()
                break
            except URLError:
                assert server.poll() is None and time.monotonic() < end, log.read_text()
                time.sleep(0.05)
        yield f"http://{address}/"
    finally:
        server.terminate()
        server.wait(10)


class Browser:
    def __init__(self, site: str) -> None:
        self.site = site
        self.jar = CookieJar()
        self._opener = build_opener(HTTPCookieProcessor(self.jar))

    def page(self) -> str:
        with self._opener.open(self.site, timeout=10) as response:
            return str(response.read().decode())

    def post(self, path: str, **form: str) -> str:
        """The page after the redirect."""
        token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', self.page())
        assert token is not None
        data = urlencode({**form, "csrfmiddlewaretoken": token[1]}).encode()
        with self._opener.open(Request(f"{self.site}{path}/", data), timeout=10) as response:
            return str(response.read().decode())

    @property
    def session_id(self) -> str:
        return next(str(cookie.value) for cookie in self.jar if cookie.name == "sessionid")


def test_two_browsers_with_a_basket_each(site: str) -> None:
    desk, phone = Browser(site), Browser(site)
    assert "nobody: an empty basket" in desk.page() and not [c for c in desk.jar if c.name == "sessionid"]
    desk.post("add", item="tea")
    assert "nobody: tea, milk" in desk.post("add", item="milk")
    phone.post("add", item="bread")

    before = desk.session_id
    assert "wrong name or password" in desk.post("login", name="anna", password="guess")
    assert "anna: tea, milk" in desk.post("login", name="anna", password="basket")
    assert desk.session_id != before
    assert "anna: bread" in phone.post("login", name="anna", password="basket")

    assert "sessions ended: 1" in desk.post("elsewhere")
    assert "nobody: an empty basket" in phone.page() and "anna: tea, milk" in desk.page()
    assert "nobody: an empty basket" in desk.post("logout")
