"""How long until a new process has served its first session?

Every figure is from a new interpreter that finds the modules' bytecode, as after an installation, the best of several:
a busy machine makes it longer and nothing makes it shorter. "Import" is what `import` takes in a process that has
nothing else; the bar is 30 ms for the base package. "Start" is everything from before the import to the end of the
first request that wrote a session: the interpreter's own start is the same for all and left out. Peers are imported as
a program that uses their sessions would.
"""

import os
import subprocess
import sys

import pytest
from race import Race

TIMES = 9
BAR_MS = 30.0
IMPORTS = {
    "cysession": "cysession",
    "cysession.asgi": "cysession.asgi",
    "cysession.wsgi": "cysession.wsgi",
    "cysession, files": "cysession.storage.file",
    "cysession, Redis, which is redis-py for the most part": "cysession.storage.redis",
    "Beaker": "beaker.middleware",
    "Flask-Session": "flask_session.cachelib",  # its own __init__ imports nothing before an app is there
    "starsessions": "starsessions",
    "aiohttp-session": "aiohttp_session",
    "Litestar": "litestar.middleware.session.server_side",
    "Django": "django.contrib.sessions.backends.base",
    "redis": "redis",
}
STARTS = {
    "cysession, memory": """
        from cysession import Manager, MemoryStorage
        manager = Manager(3600, MemoryStorage())
        with manager.new() as session:
            session["n"] = 1
    """,
    "cysession, files, 10,000 of them there": """
        from cysession import FileStorage, Manager
        manager = Manager(3600, FileStorage({directory!r}))
        with manager.new() as session:
            session["n"] = 1
    """,
}


def child(code: str) -> float:
    """Milliseconds, as the child measured them."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    timed = f"import time; _t = time.perf_counter()\n{code}\nprint((time.perf_counter() - _t) * 1000)"
    done = subprocess.run([sys.executable, "-c", timed], env=environment, capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        if last.startswith("ModuleNotFoundError"):
            raise ImportError(last, name=last.split("'")[1])
        raise RuntimeError(done.stderr)
    return float(done.stdout)


@pytest.mark.timeout(600)
def test_import(race: Race) -> None:
    def importing(module: str) -> dict[str, float]:
        return {"import, ms": child(f"import {module}")}

    race.facts(
        "import",
        {name: lambda module=module: importing(module) for name, module in IMPORTS.items()},  # type: ignore[misc]
        compare="import, ms",
        times=TIMES,
        bars={"cysession": BAR_MS},
        notes={"redis": "sessions: it is the client that our Redis storage imports"},
    )


@pytest.mark.timeout(600)
def test_start(race: Race, tmp_path_factory: pytest.TempPathFactory) -> None:
    from workload import populate

    from cysession import FileStorage, Manager

    directory = str(tmp_path_factory.mktemp("sessions"))
    with Manager(3600, FileStorage(directory, durability="none", sweep_every=0)) as manager:
        populate(manager, 10_000)

    def starting(code: str) -> dict[str, float]:
        lines = [line.removeprefix(" " * 8) for line in code.format(directory=directory).splitlines()]
        return {"first session, ms": child("\n".join(lines))}

    race.facts(
        "start to first session",
        {name: lambda code=code: starting(code) for name, code in STARTS.items()},  # type: ignore[misc]
        compare="first session, ms",
        times=TIMES,
    )
