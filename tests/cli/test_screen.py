"""What a person sees in a terminal: figures, bars and the live view; and the same without rich."""

import os
import pty
import select
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from rich.console import Console

from cysession import FileStorage, Manager, MemoryStorage, StorageUnavailable, cli
from cysession.cli import output, top
from cysession.cli.target import shown

ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    "TERM": "xterm",
}


def in_a_terminal(*arguments: str) -> str:
    """All that the command writes to the terminal that it runs in."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "cysession", *arguments]
    with subprocess.Popen(command, env=ENVIRONMENT, stdin=theirs, stdout=theirs, stderr=theirs) as child:
        os.close(theirs)
        written, end = b"", time.monotonic() + 60
        while time.monotonic() < end:
            if not select.select([ours], [], [], 1)[0]:
                continue
            try:
                data = os.read(ours, 65536)
            except OSError:  # the other side is closed
                break
            if not data:
                break
            written += data
    os.close(ours)
    assert child.returncode == 0, written.decode()
    return written.decode()


def test_top_draws_a_screen(tmp_path: Path) -> None:
    screen = in_a_terminal("top", f"file://{tmp_path}", "--every", "0.1", "--count", "3")
    assert "\x1b[?1049h" in screen and screen.rstrip().endswith(
        "\x1b[?25h\x1b[?1049l"
    )  # and the old one back
    for word in ("cysession top", "used within a minute", "latency of a session of our own", "free bytes"):
        assert word in screen


def test_a_bar_is_shown_to_people_only(tmp_path: Path) -> None:
    url = f"file://{tmp_path}"
    assert "sessions" in in_a_terminal("inspect", url).replace("0 sessions, 0 B", "")
    assert in_a_terminal("inspect", url, "--quiet") == f"{url}: 0 sessions, 0 B\r\n"


def test_without_rich_there_are_lines(tmp_path: Path) -> None:
    (tmp_path / "sessions").mkdir(mode=0o700)
    (tmp_path / "rich.py").write_text("raise ModuleNotFoundError('rich')")
    path = os.pathsep.join([str(tmp_path), ENVIRONMENT["PYTHONPATH"]])
    for arguments in (("top", "--count", "1"), ("inspect",)):
        done = subprocess.run(
            [sys.executable, "-m", "cysession", arguments[0], f"file://{tmp_path}/sessions", *arguments[1:]],
            env={**ENVIRONMENT, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0 and done.stdout.count("\n") == 1


def test_the_view_shows_counts_curves_and_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = MemoryStorage()
    with Manager(60, storage) as manager:
        session = manager.new()
        session["x"] = 1
        session.save()
        sampler = top.Sampler(storage)
        first = sampler.sample()
        assert first.census is not None and first.census.live == 1 and not first.error

        def fails(*_: object) -> bool:
            raise StorageUnavailable("no answer [in time]")

        monkeypatch.setattr(storage, "create_record", fails)
        failed = sampler.sample()
        assert failed.error and not failed.latency
        with open(os.devnull, "w") as nowhere:
            console = Console(width=100, record=True, file=nowhere)
            console.print(top.view([first, failed], "redis://[::1]/0"))
        text = console.export_text()
        for word in ("no answer [in time]", "redis://[::1]/0", "commit", "begun a second"):
            assert word in text


def test_a_scan_that_takes_long_is_made_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    storage, scans = MemoryStorage(), []

    def scan() -> object:
        scans.append(1)
        time.sleep(0.02)
        return iter(())

    monkeypatch.setattr(storage, "scan", scan)
    sampler = top.Sampler(storage, probe=False)
    for _ in range(5):
        sampler.sample()
    assert len(scans) == 1
    storage.close()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.25, "0.2 s"),
        (59.6, "1 min"),
        (3725, "1 h 2 min"),
        (86400 * 3 + 60, "3 d"),
        (-5, "-5.0 s"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert output.duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (999, "999 B"), (1023, "1.0 KiB"), (150 * 1024, "150 KiB"), (5e12, "4657 GiB")],
)
def test_sizes(number: float, text: str) -> None:
    assert output.size(number) == text


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("redis://anna:hunter2@host:6379/0?timeout=1", "redis://host:6379/0"),
        ("redis://:hunter2/@host/0", "redis://host/0"),  # a slash that should have been escaped
        ("file:///var/lib/app?durability=full", "file:///var/lib/app"),
        ("shop:manager", "shop:manager"),
        (None, ""),
    ],
)
def test_a_storage_is_named_without_its_password(url: str | None, text: str) -> None:
    assert "hunter2" not in shown(url)
    assert shown(url) == text


def test_an_unexpected_answer_of_the_storage_is_no_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(self: FileStorage) -> object:
        raise StorageUnavailable

    monkeypatch.setattr(FileStorage, "scan", fails)
    assert cli.main(["inspect", f"file://{tmp_path}"]) == cli.UNAVAILABLE
    assert capsys.readouterr().err == "cysession: the session storage is unavailable; try again\n"


def test_the_script_is_declared() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"cysession": "cysession.cli:main"}
