"""The greeter example: as a stranger starts it, and its parts in this process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import grpc

from cysession import Manager, MemoryStorage
from examples.grpc_greeter import Visitor, make_server
from tests.grpc.servers import PATIENCE

ROOT = Path(__file__).resolve().parents[2]


def test_visitors_are_told_apart() -> None:
    manager = Manager(3600, MemoryStorage())
    server = make_server(manager)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        anna, bert = Visitor(channel), Visitor(channel)
        assert anna.greet("anna") == "Hello anna, this is visit 1."
        assert bert.greet("bert") == "Hello bert, this is visit 1."
        assert anna.greet("anna") == "Hello anna, this is visit 2."
        assert list(anna.count_down("anna")) == ["3, anna", "2, anna", "1, anna"]
        assert manager.new(anna.session_id).get_map() == {"visits": 2, "last": 1}
        assert anna.session_id != bert.session_id
    server.stop(0).wait(PATIENCE)


def test_it_runs_as_its_first_lines_say() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    environment = {**os.environ, "PORT": str(port), "PYTHONPATH": str(ROOT / "src")}
    example = [sys.executable, str(ROOT / "examples" / "grpc_greeter.py")]
    with subprocess.Popen(example, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None and "greeter on" in server.stdout.readline()
            done = subprocess.run(
                [*example, "anna"], env=environment, capture_output=True, text=True, timeout=30, check=True
            )
        finally:
            server.kill()
    assert done.stdout.splitlines() == [
        *(f"Hello anna, this is visit {visit}." for visit in (1, 2, 3)),
        "3, anna; 2, anna; 1, anna",
    ]
