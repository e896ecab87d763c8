"""The examples of the adapters answer, and remember their visitor."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from tests.web.browser import Jar
from tests.web.sites import Reply, call_wsgi

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.filterwarnings("ignore::cysession._http.InsecureCookieWarning")


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
        reply = call_wsgi(self.app, headers, PATH_INFO=path, **{"wsgi.url_scheme": "http", **environ})
        for line in reply.cookies:
            self.jar.receive(line)
        assert not self.jar.refused
        return reply


def test_wsgi_minimal_counts_visits() -> None:
    browser = Browser(example("wsgi_minimal")["app"])
    assert [browser.visit().body for _ in range(3)] == [b"visit 1\n", b"visit 2\n", b"visit 3\n"]
    assert Browser(browser.app).visit().body == b"visit 1\n"
