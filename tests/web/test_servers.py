"""The frameworks behind real servers: Flask on waitress and on the forked workers of gunicorn, ASGI on uvicorn."""

from __future__ import annotations

import http.client
import importlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fastapi
import pytest
import uvicorn
import waitress
from fastapi.responses import StreamingResponse

from cysession import FileStorage, Manager
from cysession.asgi import SessionMiddleware
from cysession.starlette import SessionDep
from cysession.starlette import SessionMiddleware as DropIn
from tests.redis.servers import eventually, free_port

ROOT = Path(__file__).resolve().parents[2]


class Client:
    """One connection and one cookie."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self.cookie = ""

    def get(self, path: str) -> tuple[http.client.HTTPResponse, str]:
        self.connection.request("GET", path, headers={"Cookie": self.cookie} if self.cookie else {})
        response = self.connection.getresponse()
        body = response.read().decode()
        if line := response.headers["Set-Cookie"]:
            self.cookie = line.partition(";")[0]
        return response, body

    def close(self) -> None:
        self.connection.close()


@pytest.fixture
def client() -> Iterator[Callable[[int], Client]]:
    made: list[Client] = []

    def connect(port: int) -> Client:
        made.append(Client(port))
        return made[-1]

    yield connect
    for each in made:
        each.close()


def answers(port: int) -> bool:
    once = Client(port)
    try:
        return once.get("/favicon.ico")[0].status == 404
    finally:
        once.close()


# -- WSGI ---------------------------------------------------------------------------------------------------


@pytest.fixture
def flask_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("SESSIONS", str(tmp_path / "sessions"))
    module = importlib.reload(importlib.import_module("tests.web.served"))
    yield module.app
    module.app.extensions["cysession"].manager.close()


def test_flask_on_waitress(flask_app: Any, client: Callable[[int], Client]) -> None:
    server: Any = waitress.create_server(flask_app, host="127.0.0.1", port=0, threads=2)
    thread = threading.Thread(target=run_waitress, args=(server,))
    thread.start()
    anna, ben = client(server.effective_port), client(server.effective_port)
    try:
        for n in (1, 2, 3):
            assert anna.get("/")[1].split()[0] == str(n)
        response, body = anna.get("/stream")
        assert body == "visit 4 " and response.headers["Vary"] == "Cookie"
        assert ben.get("/")[1].split()[0] == "1" and anna.cookie != ben.cookie
    finally:
        anna.close()
        ben.close()
        server.task_dispatcher.shutdown()
        server.trigger.pull_trigger(server.close)
        thread.join(30)
    assert not thread.is_alive()


def run_waitress(server: Any) -> None:
    try:
        server.run()
    except OSError:  # closed under its select
        return


def test_R30_R31_flask_on_forked_workers_of_gunicorn_that_share_the_files(
    tmp_path: Path, client: Callable[[int], Client]
) -> None:
    """--preload: the manager and its storage are made before the fork."""
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "--preload", "-w", "3", "-b", f"127.0.0.1:{port}"]
    command += ["--keep-alive", "0", "--worker-tmp-dir", str(tmp_path), "tests.web.served:app"]
    environ = {**os.environ, "SESSIONS": str(tmp_path / "sessions"), "PYTHONPATH": f"{ROOT}/src:{ROOT}"}
    with open(tmp_path / "log", "wb") as log:
        server = subprocess.Popen(command, env=environ, cwd=ROOT, stdout=log, stderr=log)
    try:
        eventually(lambda: answers(port), "gunicorn comes up")
        workers, cookie, n = set(), "", 0
        for _ in range(10):
            # A worker serves one connection at a time. The first of these waits for its request, so another
            # serves the second.
            waiting, served = client(port), client(port)
            waiting.connection.connect()
            served.connection.connect()
            for visitor in served, waiting:
                n, visitor.cookie = n + 1, cookie
                count, worker = visitor.get("/")[1].split()
                assert int(count) == n
                cookie = visitor.cookie
                workers.add(worker)
                visitor.close()
        assert len(workers) > 1 and str(server.pid) not in workers
    finally:
        server.terminate()
        assert server.wait(30) == 0, (tmp_path / "log").read_text()


# -- ASGI ---------------------------------------------------------------------------------------------------


def fast_app(middleware: Any, **options: Any) -> fastapi.FastAPI:
    app = fastapi.FastAPI()
    app.add_middleware(middleware, **options)

    @app.get("/")
    async def count(session: SessionDep) -> int:
        session["n"] = session.get("n", 0) + 1
        return int(session["n"])

    @app.get("/thread")
    def count_in_a_thread(session: SessionDep) -> int:
        session["n"] = session.get("n", 0) + 1
        return int(session["n"])

    @app.get("/stream")
    async def stream(session: SessionDep) -> StreamingResponse:
        session["n"] = session.get("n", 0) + 1
        return StreamingResponse(f"{part} " for part in ("visit", session["n"]))

    return app


@pytest.mark.parametrize("middleware", [SessionMiddleware, DropIn])
def test_fastapi_on_uvicorn(middleware: Any, tmp_path: Path, client: Callable[[int], Client]) -> None:
    manager = Manager(3600, FileStorage(tmp_path / "sessions"))
    port = free_port()
    config = uvicorn.Config(fast_app(middleware, manager=manager), port=port, log_level="critical")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        eventually(lambda: server.started, "uvicorn comes up")
        anna, ben = client(port), client(port)
        for n, path in enumerate(("/", "/thread", "/", "/thread"), 1):
            response, body = anna.get(path)
            assert body == str(n) and (response.headers["Set-Cookie"] is None) == (n > 1)
        assert anna.get("/stream")[1] == "visit 5 "
        assert ben.get("/")[1] == "1" and anna.cookie != ben.cookie
    finally:
        server.should_exit = True
        thread.join(30)
    assert not thread.is_alive()
