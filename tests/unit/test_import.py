"""What `import cysession` brings along: nothing that a program may never use. Its time: bench/test_start.py."""

import subprocess
import sys

import pytest

# Much to import, and not needed before somebody asks for what uses them.
HEAVY = {
    "asyncio",
    "ssl",
    "socket",
    "http",
    "inspect",
    "ast",
    "sysconfig",
    "zoneinfo",
    "tempfile",
    "secrets",
    "json",
    "hashlib",
    "logging",
    "msgpack",
    "uuid",
    "platform",
    "decimal",
    "urllib",
    "ipaddress",
}
HEAVY |= {"multiprocessing", "concurrent", "email", "argparse", "sqlite3", "subprocess", "typing_extensions"}
FRAMEWORKS = {
    "redis",
    "hiredis",
    "starlette",
    "fastapi",
    "flask",
    "werkzeug",
    "django",
    "grpc",
    "cryptography",
}
TESTING = {"pytest", "_pytest", "hypothesis", "unittest", "prometheus_client"}


def brought(statement: str) -> set[str]:
    """Top-level modules, and ours by their full names, that a statement adds to a bare interpreter."""
    code = f"import sys; before = set(sys.modules); {statement}; print(*(set(sys.modules) - before))"
    done = subprocess.run(
        # -S: site-packages may hold .pth files that import things by themselves; the path is handed over instead.
        [sys.executable, "-S", "-c", f"import sys; sys.path[:] = {sys.path!r}; {code}"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return {name if name.startswith("cysession") else name.partition(".")[0] for name in done.stdout.split()}


# Newer interpreters bring some of it with the plainest parts of their library: 3.14 has `ast` behind every NamedTuple
# with annotations.
HEAVY -= brought(r"import typing; exec('class Pair(typing.NamedTuple):\n    first: int')")


def test_the_package_brings_neither_frameworks_nor_what_is_used_later() -> None:
    assert not brought("import cysession") & (HEAVY | FRAMEWORKS | TESTING)


def test_storages_and_adapters_come_when_they_are_asked_for() -> None:
    names = brought("import cysession")
    assert "cysession.storage.memory" in names  # this would show them
    later = (
        "storage.file",
        "storage.redis",
        "_http",
        "_headers",
        "_refusal",
        "asgi",
        "wsgi",
        "django",
        "flask",
        "starlette",
        "grpc",
        "testing",
    )
    assert not [name for name in names if name.startswith(tuple(f"cysession.{part}" for part in later))]


def test_a_session_in_memory_brings_no_more() -> None:
    statement = "import cysession; manager = cysession.Manager(60, cysession.MemoryStorage()); session = manager.new()"
    names = brought(f"{statement}; session['a'] = [1]; session.close(); manager.close()")
    # secrets is not among them: ids are drawn from os.urandom's own source without it.
    assert not names & (FRAMEWORKS | TESTING | HEAVY)


@pytest.mark.parametrize("adapter", ["asgi", "wsgi"])
def test_an_adapter_without_a_framework_brings_none(adapter: str) -> None:
    assert not brought(f"import cysession.{adapter}") & (FRAMEWORKS | TESTING)


@pytest.mark.parametrize("name", ["FileStorage", "MemoryStorage"])
def test_storages_of_this_machine_bring_no_redis(name: str) -> None:
    assert not brought(f"from cysession import {name}") & (FRAMEWORKS | TESTING)
