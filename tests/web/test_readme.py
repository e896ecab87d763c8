"""The README's first block is the example that can be started, and its commands are the two that matter.

All its code is run by tests/docs, which also follows its links.
"""

from __future__ import annotations

import asyncio
import re
import runpy
from pathlib import Path

import pytest

from tests.web.sites import call

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
PYTHON = [code for language, code in BLOCKS if language == "python"]


@pytest.mark.filterwarnings("ignore::cysession.cookies.InsecureCookieWarning")
def test_the_first_block_is_the_minimal_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    source = (ROOT / "examples" / "asgi_minimal.py").read_text(encoding="utf-8")
    assert source.partition('"""\n\n')[2] == PYTHON[0]
    app = runpy.run_path(str(ROOT / "examples" / "asgi_minimal.py"))["app"]
    assert asyncio.run(call(app)).body == b"visit 1\n"


def test_a_newcomer_needs_two_commands() -> None:
    commands = [
        line.split()[:2] for language, code in BLOCKS if language == "sh" for line in code.splitlines()
    ]
    assert [command for command in commands if command[0] == "make"] == [["make", "demo"], ["make", "test"]]
