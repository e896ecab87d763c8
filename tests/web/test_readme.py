"""Every code block of the README runs, every target and every link in it exists."""

from __future__ import annotations

import asyncio
import re
import runpy
import warnings
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from tests.web.sites import call, call_wsgi

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
PYTHON = [code for language, code in BLOCKS if language == "python"]


@pytest.fixture(autouse=True)
def private_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default storage is this user's own directory; tests get one that is empty."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_every_python_block_runs_and_its_app_answers(number: int) -> None:
    names: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # insecure=True says what it is
        exec(compile(PYTHON[number], f"README.md block {number}", "exec"), names)
    if "app" in names:
        app = names["app"]
        reply = call_wsgi(app) if isinstance(app, Flask) else asyncio.run(call(app))
        assert reply.status == 200 and len(reply.cookies) == 1


@pytest.mark.filterwarnings("ignore::cysession._http.InsecureCookieWarning")
def test_the_asgi_block_is_the_minimal_example() -> None:
    source = (ROOT / "examples" / "asgi_minimal.py").read_text(encoding="utf-8")
    assert source.partition('"""\n\n')[2] == PYTHON[0]
    app = runpy.run_path(str(ROOT / "examples" / "asgi_minimal.py"))["app"]
    assert asyncio.run(call(app)).body == b"visit 1\n"


def test_every_make_target_exists() -> None:
    rules = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = [line.split()[1] for language, code in BLOCKS if language == "sh" for line in code.splitlines()]
    assert targets == ["demo", "test"]
    for target in targets:
        assert re.search(rf"^([\w ]+ )?{target}\b[\w ]*:", rules, re.MULTILINE)


def test_every_link_leads_somewhere() -> None:
    for link in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / link).exists(), link
