"""The command as its users run it: a child process, its output, its exit code."""

import json
import os
import platform
import signal
import socket
import subprocess
import sys
import urllib.request
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any

import pytest

import cysession
from cysession import FileStorage, Manager, cli

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
ENVIRONMENT.pop("CYSESSION_URL", None)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cysession", *arguments],
        env={**ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )


def in_directory(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Where an application can be imported from."""
    return subprocess.run(
        [sys.executable, "-m", "cysession", *arguments],
        env=ENVIRONMENT,
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )


def answer(*arguments: str) -> Any:
    done = run(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Of an empty storage."""
    FileStorage(tmp_path / "sessions").close()
    return f"file://{tmp_path}/sessions"


@pytest.fixture
def tokens(url: str, tmp_path: Path) -> list[str]:
    """Two sessions of anna's, one of ben's, one of nobody's."""
    made = []
    with Manager(3600, FileStorage(tmp_path / "sessions", durability="none")) as manager:
        for user in ("anna", "anna", "ben", None):
            session = manager.new()
            session["colour"] = "petrol"
            if user:
                session.bind(user)
            session.close()
            made.append(session.id)
    return made


def test_help_names_every_command() -> None:
    done = run("--help")
    assert done.returncode == 0
    for name in cli.COMMANDS:
        assert f"\n    {name} " in done.stdout


def test_the_version() -> None:
    assert run("--version").stdout == f"cysession {cysession.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("dance",),
        ("revoke", "memory://"),
        ("inspect", "--jason"),
        ("inspect", "--limit", "-1"),
        ("inspect", "--largest", "many"),
        ("revoke", "--user", ""),
        ("sweep", "--seconds", "-1"),
        ("top", "--every", "nan"),
        ("bench", "--seconds", "0"),
        ("bench", "--sessions", "0"),
        ("demo", "--port", "65536"),
        ("doctor", "--cookie-max-age", "1h"),
    ],
)
def test_wrong_arguments_exit_with_2(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode == cli.USAGE and not done.stdout
    assert "usage: cysession" in done.stderr


# ---- errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("storage", "says"),
    [
        ("nfs://host", "no storage for URLs of scheme 'nfs'"),
        ("file:///dev/null/sessions", "/dev/null/sessions"),
        ("memory://?colour=red", "memory:// has no option colour"),
        ("nowhere", "neither a storage URL nor MODULE:NAME"),
        ("/var/lib/shop", "a directory is file:///var/lib/shop"),
        ("file:/var/lib/shop", "a directory is file:///var/lib/shop"),
        ("no_such_module:manager", "cannot be imported"),
        ("json:dumps", "name a cysession Manager or Storage"),
    ],
)
def test_a_misconfigured_storage_exits_with_4(storage: str, says: str) -> None:
    done = run("inspect", storage)
    assert done.returncode == cli.MISCONFIGURED
    assert done.stderr.startswith("cysession: ") and says in done.stderr
    assert "Traceback" not in done.stderr and done.stderr.count("\n") == 1


def test_an_application_that_cannot_be_imported_exits_with_4_and_says_where(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text("import os\nraise RuntimeError('no settings')\n")
    done = in_directory(tmp_path, "inspect", "shop:manager")
    assert done.returncode == cli.MISCONFIGURED and "Traceback" not in done.stderr
    assert "RuntimeError: no settings" in done.stderr and "shop.py, line 2)" in done.stderr


@pytest.mark.parametrize(
    "command", [("inspect",), ("top", "--count", "1"), ("sweep",), ("revoke", "--user", "anna")]
)
def test_a_directory_that_is_not_there_is_no_empty_storage(command: tuple[str, ...], tmp_path: Path) -> None:
    """Nor is it made: it would belong to whoever mistyped its name."""
    done = run(*command, f"file://{tmp_path}/sesions")
    assert done.returncode == cli.MISCONFIGURED and "no directory" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [("inspect",), ("top", "--count", "1"), ("revoke", "--user", "anna")])
@pytest.mark.parametrize("storage", ["memory://", "shop:manager"])
def test_sessions_in_memory_cannot_be_seen_from_outside(
    command: tuple[str, ...], storage: str, tmp_path: Path
) -> None:
    (tmp_path / "shop.py").write_text("from cysession import *\nmanager = Manager(60, MemoryStorage())\n")
    done = in_directory(tmp_path, *command, storage)
    assert done.returncode == cli.MISSING and "belong to the process" in done.stderr


def test_without_a_storage_it_says_how_to_name_one() -> None:
    done = run("sweep")
    assert done.returncode == cli.MISCONFIGURED and "CYSESSION_URL" in done.stderr


def test_a_storage_that_is_away_exits_with_3_and_keeps_the_password() -> None:
    done = run("inspect", "redis://:hunter2@127.0.0.1:1/0?timeout=0.1")
    assert done.returncode == cli.UNAVAILABLE
    assert "Traceback" not in done.stderr and "hunter2" not in done.stderr


def test_what_a_storage_cannot_do_exits_with_5(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(
        "from examples.custom_storage import SqliteStorage\nstorage = SqliteStorage('sessions.db')\n"
    )
    done = in_directory(tmp_path, "inspect", "shop:storage")
    assert (done.returncode, done.stderr) == (
        cli.MISSING,
        "cysession: SqliteStorage cannot list its sessions\n",
    )


def test_a_reader_that_has_seen_enough_is_no_error(url: str) -> None:
    command = (
        f"{sys.executable} -m cysession top {url} --every 0.1 --count 30 | head -n 1; exit ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(
        ["bash", "-c", command], env=ENVIRONMENT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == cli.DONE and "Traceback" not in done.stderr


# ---- inspect ----------------------------------------------------------------------------------------------


def test_inspect_counts(url: str, tokens: list[str]) -> None:
    told = answer("inspect", url)
    assert (told["sessions"], told["bound_to_users"]) == (4, 3)
    assert told["bytes"] > told["largest_bytes"] > 40
    assert told["used_within"]["60"] == told["created_within"]["60"] == told["size_up_to"]["256"] == 4
    assert 3500 < told["next_expiry_seconds"] <= 3600
    text = run("inspect", url).stdout
    assert text.startswith(f"{url}: 4 sessions, ") and "bound to users  3" in text


def test_inspect_of_an_empty_storage(url: str) -> None:
    assert answer("inspect", url)["sessions"] == 0
    assert run("inspect", url).stdout == f"{url}: 0 sessions, 0 B\n"


def test_inspect_by_environment(url: str, tokens: list[str]) -> None:
    assert json.loads(run("inspect", "--json", CYSESSION_URL=url).stdout)["sessions"] == 4


def test_inspect_a_user(url: str, tokens: list[str], tmp_path: Path) -> None:
    rows = answer("inspect", url, "--user", "anna")["sessions"]
    with Manager(3600, FileStorage(tmp_path / "sessions")) as manager:
        assert [row["handle"] for row in rows] == [info.handle for info in manager.sessions_of("anna")]
    for row in rows:
        assert row["keys"] == 2 and 3500 < row["expires_in_seconds"] <= 3600 and 0 <= row["age_seconds"] < 60
    assert answer("inspect", url, "--user", "nobody")["sessions"] == []


def test_keys_and_values_only_when_they_are_asked_for(url: str, tokens: list[str]) -> None:
    """V/S20: an operator sees what is needed, and data of users only on purpose."""
    for more in ((), ("--largest", "3"), ("--user", "anna"), ("--user", "anna", "--keys")):
        for form in ((), ("--json",)):
            assert "petrol" not in run("inspect", url, *more, *form).stdout
    assert "colour" not in run("inspect", url, "--user", "anna", "--json").stdout
    assert "colour" in run("inspect", url, "--user", "anna", "--keys").stdout
    assert "colour = 'petrol'" in run("inspect", url, "--user", "anna", "--values").stdout
    assert answer("inspect", url, "--user", "anna", "--values")["sessions"][0]["data"]["colour"] == "petrol"


def test_no_control_code_reaches_the_terminal(url: str, tmp_path: Path) -> None:
    with Manager(3600, FileStorage(tmp_path / "sessions")) as manager:
        session = manager.new()
        session["\x1b]0;title\x07"] = "\x1b[2J"
        session.bind("anna")
        session.close()
    text = run("inspect", url, "--user", "anna", "--values").stdout
    assert "\x1b" not in text and "\\x1b]0;title\\x07' = '\\x1b[2J'" in text


def test_no_command_prints_an_id(url: str, tokens: list[str]) -> None:
    for arguments in (
        ("inspect", url, "--largest", "9"),
        ("inspect", url, "--user", "anna", "--values"),
        ("doctor", url),
        ("top", url, "--count", "1"),
        ("sweep", url),
        ("revoke", url, "--user", "anna"),
    ):
        for form in ((), ("--json",)):
            done = run(*arguments, *form)
            assert done.returncode == 0, done.stderr
            assert not [token for token in tokens if token in done.stdout + done.stderr]


# ---- revoke and sweep -------------------------------------------------------------------------------------


def test_revoke_a_user(url: str, tokens: list[str]) -> None:
    """ASVS 7.4.5: an administrator ends the sessions of one user, and nobody else's."""
    assert answer("revoke", url, "--user", "anna", "--dry-run")["revoked"] == 2
    assert run("revoke", url, "--user", "anna").stdout == "ended 2 sessions\n"
    assert answer("revoke", url, "--user", "anna")["revoked"] == 0
    with Manager.from_url(url) as manager:
        assert ["colour" in manager.new(token) for token in tokens] == [False, False, True, True]


def test_revoke_one_of_them(url: str, tokens: list[str]) -> None:
    handle = answer("inspect", url, "--user", "anna")["sessions"][0]["handle"]
    assert run("revoke", url, "--user", "anna", "--handle", handle).stdout == "ended 1 session\n"
    assert handle not in [row["handle"] for row in answer("inspect", url, "--user", "anna")["sessions"]]


def test_revoke_finds_sessions_that_live_longer_than_a_day(tmp_path: Path) -> None:
    """The command does not know the application's ttl; with its own it would overlook sessions idle for days."""
    import time

    days_ago = time.time() - 3 * 86400
    storage = FileStorage(tmp_path / "sessions", durability="none")
    with Manager(30 * 86400, storage, clock=lambda: days_ago) as manager:
        session = manager.new()
        session.bind("anna")
        session.close()
    url = f"file://{tmp_path}/sessions"
    (row,) = answer("inspect", url, "--user", "anna")["sessions"]
    assert row["used_seconds_ago"] > 2.9 * 86400 and row["expires_in_seconds"] > 26 * 86400
    assert answer("revoke", url, "--user", "anna")["revoked"] == 1
    with Manager.from_url(url, 30 * 86400) as manager:
        assert not manager.new(session.id)


def test_revoke_everyone_wants_to_be_meant(url: str, tokens: list[str]) -> None:
    """ASVS 7.4.5: and all sessions of all users."""
    done = run("revoke", url, "--everyone")
    assert done.returncode == cli.USAGE and "--yes" in done.stderr
    assert answer("revoke", url, "--everyone", "--dry-run")["revoked"] == 4
    assert answer("inspect", url)["sessions"] == 4
    assert answer("revoke", url, "--everyone", "--yes")["revoked"] == 4
    assert answer("inspect", url)["sessions"] == 0


def test_sweep_removes_what_has_expired_by_the_servers_ttl(tmp_path: Path) -> None:
    import time

    clock = time.time() - 7200
    storage = FileStorage(tmp_path / "sessions", durability="none")
    with Manager(3600, storage, clock=lambda: clock) as manager:
        for _ in range(5):
            session = manager.new()
            session["x"] = 1
            session.close()
    url = f"file://{tmp_path}/sessions"
    assert answer("inspect", url)["sessions"] == 0  # what has expired is gone, swept or not
    assert answer("sweep", url)["removed"] == 5
    assert answer("sweep", url)["removed"] == 0


# ---- doctor -----------------------------------------------------------------------------------------------


def levels(told: Any) -> dict[str, str]:
    return {finding["what"]: finding["level"] for finding in told["findings"]}


def test_doctor_is_content(url: str, tmp_path: Path) -> None:
    told = levels(answer("doctor", url))
    assert {"permissions", "space", "clock", "round trip", "cookie"} <= set(told)
    assert "fail" not in told.values()
    assert answer("inspect", url)["sessions"] == 0  # its own session is gone


def test_doctor_says_that_it_makes_the_directory(tmp_path: Path) -> None:
    """The user that makes it owns it, and root that looks at a new machine is not the user of the servers."""
    url = f"file://{tmp_path}/new"
    assert levels(answer("doctor", url, "--read-only")) == {"directory": "warn", "cookie": "ok"}
    assert not list(tmp_path.iterdir())
    assert levels(answer("doctor", url))["directory"] == "warn"
    assert "directory" not in levels(answer("doctor", url))


def test_doctor_finds_a_directory_of_everybody(tmp_path: Path) -> None:
    """★16: permissions of the session directory."""
    (tmp_path / "open").mkdir(mode=0o777)
    (tmp_path / "open").chmod(0o777)
    done = run("doctor", f"file://{tmp_path}/open")
    assert done.returncode == cli.BAD
    assert "FAIL  storage: " in done.stdout and "chmod 700" in done.stdout


@pytest.mark.parametrize(
    ("options", "level", "says"),
    [
        (("--domain", "example.org"), "fail", "__Host-"),
        (("--path", "/shop"), "fail", "__Host-"),
        (("--cookie", "sid"), "warn", "prefix"),
        (("--cookie", "__Secure-sid", "--domain", "example.org"), "warn", "every host below"),
        (("--samesite", "None"), "warn", "anti-CSRF"),
        (("--samesite", "maybe"), "fail", "unknown"),
        (("--insecure",), "warn", "plain http"),
        (("--insecure", "--samesite", "None"), "fail", "SameSite=None"),
        (("--cookie-max-age", "40000000"), "fail", "400 days"),
        (("--header", "X-Session-Id"), "warn", "scripts can read it"),
    ],
)
def test_doctor_knows_the_rules_of_cookies(
    options: tuple[str, ...], level: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """S9, S11, S12 (ASVS 3.3.1 to 3.3.4): what a browser would refuse without a word, or accept to our harm."""
    code = cli.main(["doctor", "memory://", "--read-only", "--json", *options])
    found = [
        f
        for f in json.loads(capsys.readouterr().out)["findings"]
        if f["what"].startswith(("cookie", "header"))
    ]
    worst = [finding for finding in found if finding["level"] == level]
    assert any(says in finding["state"] + finding["advice"] for finding in worst)
    assert code == (cli.BAD if level == "fail" else cli.DONE)


def test_S22_doctor_reads_the_policy_of_the_application(tmp_path: Path) -> None:
    """S6, S7 (ASVS 7.3.1, 7.3.2)."""
    (tmp_path / "shop.py").write_text(
        "from cysession import Manager, MemoryStorage\n"
        "lax = Manager(90 * 86400, MemoryStorage(), strict=False)\n"
        "firm = Manager(1800, MemoryStorage(1000), max_age=86400)\n"
    )
    told = {}
    for name in ("lax", "firm"):
        done = in_directory(tmp_path, "doctor", f"shop:{name}", "--json")
        told[name] = levels(json.loads(done.stdout))
    assert (told["lax"]["ttl"], told["lax"]["max_age"], told["lax"]["strict"]) == ("warn",) * 3
    assert (told["firm"]["ttl"], told["firm"]["max_age"]) == ("ok", "ok") and "strict" not in told["firm"]


def test_strict_minds_warnings() -> None:
    assert run("doctor", "memory://").returncode == cli.DONE
    assert run("doctor", "memory://", "--strict").returncode == cli.BAD


# ---- top, bench, demo -------------------------------------------------------------------------------------


def test_top_as_lines_of_json(url: str, tokens: list[str]) -> None:
    done = run("top", url, "--every", "0.1", "--count", "3", "--json")
    looks = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(looks) == 3
    for look in looks:
        assert (look["sessions"]["live"], look["sessions"]["bound"]) == (4, 3)
        assert set(look["latency_seconds"]) == {"create", "load", "commit", "destroy"}
        assert look["storage"]["free_bytes"] > 0 and look["error"] == ""
    assert answer("inspect", url)["sessions"] == 4  # its own are gone


def test_top_ends_at_control_c(url: str) -> None:
    command = [sys.executable, "-m", "cysession", "top", url, "--every", "0.1", "--plain", "-q"]
    with subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None and child.stderr is not None
        assert child.stdout.readline()
        child.send_signal(signal.SIGINT)
        assert child.wait(30) == cli.INTERRUPTED
        assert "Traceback" not in child.stderr.read()


def test_bench_is_a_table_with_ratios(tmp_path: Path) -> None:
    told = answer("bench", "--sessions", "20", "--seconds", "0.01", "--directory", str(tmp_path))
    cases = {(row["storage"], row["case"]): row["ratio"] for row in told["cases"]}
    assert cases.pop(("dict", "get")) == 1
    assert set(cases) == {(name, case) for name in ("memory", "file") for case in ("read", "write", "new")}
    assert not list(tmp_path.iterdir())


def test_bench_takes_other_storages_and_removes_what_it_made(url: str, tmp_path: Path) -> None:
    told = answer("bench", url, "--sessions", "20", "--seconds", "0.01", "--directory", str(tmp_path))
    assert {row["case"] for row in told["cases"] if row["storage"] == url} == {"read", "write", "new"}
    assert told["sessions"] == 20 and told["python"] == platform.python_version()
    assert answer("inspect", url)["sessions"] == 0


def test_bench_says_that_a_storage_cannot_be_reached_before_it_measures() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    done = run("bench", f"redis://:secret@127.0.0.1:{port}/0", "--seconds", "60")
    assert done.returncode == cli.UNAVAILABLE and done.stdout == ""
    assert f"127.0.0.1:{port}" in done.stderr and "secret" not in done.stderr
    assert "Traceback" not in done.stderr


def test_the_demo_logs_in_lists_devices_and_ends_the_others() -> None:
    command = [sys.executable, "-m", "cysession", "demo", "--port", "0", "--json"]
    with subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None and child.stderr is not None
        try:
            url = json.loads(child.stdout.readline())["url"]
            here, there = Browser(url), Browser(url)
            assert "has seen 1 visit." in here.get()
            assert "has seen 2 visits." in here.get()
            before = here.token
            here.press("log-in", name="<Anna>")
            assert before != here.token  # ASVS 7.2.4
            assert "&lt;Anna&gt;" in here.page and "(this one)" in here.page
            there.get()
            there.press("log-in", name="<Anna>")
            assert there.page.count("<li>") == 2
            there.press("end-others")
            assert there.page.count("<li>") == 1
            assert "Log in" in here.get()
            there.press("log-out")
            assert "Log in" in there.page
        finally:
            child.send_signal(signal.SIGINT)
            assert child.wait(30) == cli.INTERRUPTED
        assert "Traceback" not in child.stderr.read()


class Browser:
    def __init__(self, url: str) -> None:
        self.url, self.page = url, ""
        self.jar = CookieJar()
        self.open = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(self.jar)).open

    @property
    def token(self) -> str | None:
        return next(iter(self.jar)).value

    def get(self) -> str:
        with self.open(self.url, timeout=10) as reply:
            self.page = reply.read().decode()
        return self.page

    def press(self, button: str, **fields: str) -> None:
        from urllib.parse import urlencode

        csrf = self.page.partition('name="csrf" value="')[2].partition('"')[0]
        with self.open(self.url + button, urlencode({"csrf": csrf, **fields}).encode(), timeout=10) as reply:
            self.page = reply.read().decode()


def test_a_taken_port_is_explained() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run("demo", "--port", port)
    assert done.returncode == cli.USAGE and "choose another --port" in done.stderr
