"""Every code block of the README and of docs/ runs as it stands, and what the pages name is there.

python                  runs in a process and a directory of its own; an `app` has to answer a request
python title="before"   another library's code runs too, but is asked for nothing: it would need that library's server
sh                      each `cysession ...` is parsed, each `make` target and each extra exists
ini, json               are parsed
go                      what somebody has who comes from GoFrame; there is no Go where the tests run
"""

import configparser
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest

from cysession import cli

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
TEST = re.compile(r"`((?:tests|src)/[\w/]+\.py)::(\w+)`")


class Block(NamedTuple):
    page: str
    number: int
    kind: str
    code: str

    @property
    def name(self) -> str:
        return f"{self.page}-{self.number}"


BLOCKS = [
    Block(str(page.relative_to(ROOT)), number, kind.strip(), code)
    for page in PAGES
    for number, (kind, code) in enumerate(FENCE.findall(page.read_text(encoding="utf-8")), 1)
]
PYTHON = [b for b in BLOCKS if b.kind in ("python", 'python title="after"')]
# These are run, with more around them, by tests of their own.
ELSEWHERE = {"docs/storage_contract.md": "tests/contract/test_documentation.py"}


def of(*kinds: str) -> list[Block]:
    return [block for block in BLOCKS if block.kind in kinds]


def test_there_is_no_block_of_an_unknown_kind() -> None:
    known = {"python", 'python title="before"', 'python title="after"', "sh", "ini", "json", "go", ""}
    assert not [block.name for block in BLOCKS if block.kind not in known]
    assert len(PYTHON) > 20


def run(block: Block, directory: Path, *driver: str) -> None:
    path = directory / "block.py"
    path.write_text(block.code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", *driver, str(path)],
        cwd=directory,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
            "XDG_STATE_HOME": str(directory),
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("block", [b for b in PYTHON if b.page not in ELSEWHERE], ids=lambda b: b.name)
def test_a_python_block_runs(block: Block, tmp_path: Path) -> None:
    run(block, tmp_path, "-m", "tests.docs.drive")


@pytest.mark.parametrize("page", ELSEWHERE)
def test_blocks_that_run_elsewhere_do(page: str) -> None:
    assert Path(page).name in (ROOT / ELSEWHERE[page]).read_text(encoding="utf-8")


@pytest.mark.parametrize("block", of('python title="before"'), ids=lambda b: b.name)
def test_the_code_of_other_libraries_runs(block: Block, tmp_path: Path) -> None:
    run(block, tmp_path)


SERVERS = ("uvicorn", "waitress")  # what a page may install to run its example


@pytest.mark.parametrize("block", of("sh", ""), ids=lambda b: b.name)
def test_commands_exist(block: Block) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for line in block.code.splitlines():
        words = shlex.split(line, comments=True)
        while words and "=" in words[0]:  # VARIABLE=value before a command
            words.pop(0)
        if words[:1] == ["cysession"]:
            try:
                cli.parser().parse_args(words[1:])
            except SystemExit as error:
                pytest.fail(f"{line!r} is not understood: {error}")
        elif words[:1] == ["make"]:
            assert re.search(rf"^([\w -]+ )?{words[1]}\b[\w -]*:", makefile, re.MULTILINE), line
        elif words[:2] == ["pip", "install"]:
            for requirement in words[2:]:
                package, _, extra = requirement.partition("[")
                assert package in ("cysession", *SERVERS) and (not extra or extra.rstrip("]") in extras), line


@pytest.mark.parametrize("block", of("ini", "json"), ids=lambda b: b.name)
def test_configuration_is_well_formed(block: Block) -> None:
    if block.kind == "json":
        json.loads(block.code)
    else:
        parser = configparser.ConfigParser()
        parser.read_string(block.code)
        for section in parser.sections():
            command = parser[section].get("ExecStart", "")
            if "bin/cysession" in command:
                cli.parser().parse_args(shlex.split(command)[1:])


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    for file, name in TEST.findall(page.read_text(encoding="utf-8")):
        path = ROOT / file
        assert path.exists(), f"{file} is not there"
        assert re.search(rf"^\s*(async )?def {name}\(", path.read_text(encoding="utf-8"), re.MULTILINE), (
            f"{file} has no {name}"
        )


def test_the_security_page_covers_the_standard() -> None:
    """ASVS 5.0: every requirement of V7, and of V3.3, has its row; those that are ours name a test."""
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (\d\.\d\.\d) \| (.*)\|$", page, re.MULTILINE))
    wanted = {"7.1": 3, "7.2": 4, "7.3": 2, "7.4": 5, "7.5": 3, "3.3": 5}
    assert set(rows) == {f"{section}.{n}" for section, count in wanted.items() for n in range(1, count + 1)}
    for number, row in rows.items():
        assert TEST.search(row) or "the application's" in row, number


def test_every_command_and_exit_code_is_documented() -> None:
    page = (ROOT / "docs" / "command.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == set(cli.COMMANDS)
    codes = {cli.DONE, cli.BAD, cli.USAGE, cli.UNAVAILABLE, cli.MISCONFIGURED, cli.MISSING, cli.INTERRUPTED}
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)} == codes


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text(encoding="utf-8"))):
        if not link.startswith(("https://", "#")):
            assert (page.parent / link.partition("#")[0]).exists(), f"{page.name} links to {link}"


def test_every_page_is_in_the_site() -> None:
    """mkdocs would only leave it out of the menu."""
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in PAGES[1:]:
        assert str(page.relative_to(ROOT / "docs")) in site


def test_pictures_can_be_read_in_light_and_dark() -> None:
    picture = (ROOT / "docs" / "architecture.svg").read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in picture and "<title" in picture


def test_the_table_of_the_session_is_complete() -> None:
    """It is written by hand, because the class is compiled."""
    from cysession import Session

    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    table = page.partition("### Session\n")[2].partition(":::")[0]
    named = {name for cell in re.findall(r"`([^`]+)`", table) for name in re.findall(r"^\w+", cell)}
    public = {name for name in vars(Session) if not name.startswith("_")}
    mapping = {
        "keys",
        "values",
        "items",
        "pop",
        "popitem",
        "clear",
        "update",
        "setdefault",
        "copy",
    }  # of a dict
    twins = {name for name in public if name.startswith("a") and name[1:] in public}
    adapters = {"cookie_state", "presented"}  # for adapters, which have them in their own code
    assert public - mapping - twins - adapters <= named, public - mapping - twins - adapters - named
    assert {name for name in named if name.isidentifier()} - public <= {"manager", "MutableMapping", "a"}
