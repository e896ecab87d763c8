"""Systems without fork, flock and descriptors of directories: what Windows lacks is taken away in a child process."""

import subprocess
import sys
import textwrap

# The standard library is imported first: it has branches of its own for Windows, which cannot run here.
WITHOUT_POSIX = """
import asyncio, importlib, logging, select, socket, ssl, sys, tempfile, threading, uuid, zoneinfo
import msgpack
import os
for name in ("register_at_fork", "fork", "geteuid", "getuid", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC"):
    delattr(os, name)
if hasattr(select, "poll"):
    del select.poll
sys.modules |= dict.fromkeys(("fcntl", "pwd", "grp", "resource", "termios"))
sys.platform = "win32"
"""


def run_without_posix(code: str, before: str = "") -> str:
    """What a program prints; `before` runs while everything is still there."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", before + WITHOUT_POSIX + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_sessions_in_memory_work_without_posix() -> None:
    out = run_without_posix("""
        from cysession import Manager, MemoryStorage
        import cysession.asgi, cysession.wsgi

        with Manager(60, MemoryStorage()) as manager:
            with manager.new() as session:
                session["a"] = [1]
            with manager.new(session.id) as session:
                print(session["a"])
    """)
    assert out == "[1]\n"


def test_file_storage_says_that_it_cannot_work() -> None:
    out = run_without_posix("""
        import cysession
        from cysession import FileStorage, Manager, StorageMisconfigured  # the names are there all the same

        for attempt in (FileStorage, lambda: FileStorage("sessions", durability="full"), Manager,
                        lambda: Manager.from_url("file:///tmp/sessions")):
            try:
                attempt()
            except StorageMisconfigured as error:
                assert "Windows" in str(error) and "MemoryStorage()" in str(error), error
                print("refused")
    """)
    assert out == "refused\n" * 4
