"""Do sessions slow a real server down? `python bench/wrk_asgi.py`, or `make bench-servers`.

uvicorn and granian serve the same small app with and without `SessionMiddleware` (memory, cookie present, one key
read and written by every request), each in one process on a loopback port; wrk asks them in turn for short rounds,
and what counts is the best round of each: what else the machine does only ever takes away. The bar: with sessions at
least 90 % of the requests a second without. The third app sends the header that sessions add (Vary) and nothing else:
what a server takes for one more header is its own. Needs wrk (Debian: wrk); ends with status 1 below the bar.
"""

import argparse
import http.client
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from cysession import Manager, MemoryStorage
from cysession.asgi import SessionMiddleware

BAR = 0.90
HERE = Path(__file__).resolve().parent


# -- what the servers load --------------------------------------------------------------------------------


async def respond(send: Any, *more: tuple[bytes, bytes]) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"2"), *more]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"ok"})


async def bare(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        await respond(send)


async def varied(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        await respond(send, (b"vary", b"Cookie"))


async def _count(scope: Any, receive: Any, send: Any) -> None:
    session = scope["session"]
    session["n"] = session.get("n", 0) + 1
    await respond(send)


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # plain http on the loopback
    counting = SessionMiddleware(_count, Manager(3600, MemoryStorage()), insecure=True)

SERVERS = {
    "uvicorn": [
        "-m",
        "uvicorn",
        "--log-level",
        "warning",
        "--no-access-log",
        "--host",
        "127.0.0.1",
        "--port",
    ],
    "granian": [*("-m", "granian", "--interface", "asgi", "--no-ws", "--log-level", "warning"), "--port"],
}


# -- the run ----------------------------------------------------------------------------------------------


class Server:
    """One server with one app in a process of its own, ended with the run."""

    def __init__(self, kind: str, app: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port: int = probe.getsockname()[1]
        target = f"{Path(__file__).stem}:{app}"
        self._process = subprocess.Popen([sys.executable, *SERVERS[kind], str(self.port), target], cwd=HERE)
        self.rounds: list[float] = []  # requests a second
        self.cpu: list[float] = []  # us a request
        self.cookie = ""

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def wait_and_visit(self) -> None:
        """Until it answers; the answer may bring a cookie."""
        for _ in range(100):
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
                connection.request("GET", "/")
                reply = connection.getresponse()
                reply.read()
                connection.close()
            except OSError:
                if self._process.poll() is not None:
                    sys.exit(f"the server ended with status {self._process.returncode}")
                time.sleep(0.1)
            else:
                self.cookie = (reply.getheader("Set-Cookie") or "id=none").partition(";")[0]
                return
        sys.exit("the server does not answer")

    def measure(self, seconds: int, connections: int) -> None:
        command = [
            "wrk",
            "-t1",
            f"-c{connections}",
            f"-d{seconds}s",
            "-H",
            f"Cookie: theme=dark; {self.cookie}",
        ]
        before = self._cpu_seconds()
        done = subprocess.run(
            [*command, f"http://127.0.0.1:{self.port}/"], capture_output=True, text=True, timeout=seconds + 30
        )
        found = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
        if found is None or "Non-2xx" in done.stdout:
            sys.exit(f"wrk failed:\n{done.stdout}{done.stderr}")
        self.rounds.append(float(found[1]))
        requests = re.search(r"(\d+) requests in", done.stdout)
        assert requests is not None
        self.cpu.append((self._cpu_seconds() - before) / int(requests[1]) * 1e6)

    def _cpu_seconds(self) -> float:
        """Of the server with all its processes, so far."""
        ticks = 0
        for pid in (self._process.pid, *_children(self._process.pid)):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")


def _children(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children]


def compare(kind: str, rounds: int, seconds: int, connections: int) -> float:
    """Requests a second with sessions, divided by those without."""
    with (
        Server(kind, "bare") as without,
        Server(kind, "varied") as varied,
        Server(kind, "counting") as counted,
    ):
        servers = {"without": without, "one more header": varied, "with sessions": counted}
        for server in servers.values():
            server.wait_and_visit()
            server.measure(1, connections)
            server.rounds.clear()
            server.cpu.clear()
        for _ in range(rounds):
            for server in servers.values():
                server.measure(seconds, connections)
        for name, server in servers.items():
            best = max(server.rounds)
            share = best / max(without.rounds)
            print(
                f"{kind:8} {name:15} {best:9.0f} a second {share:7.1%} {min(server.cpu):7.1f} us of CPU",
                flush=True,
            )
        return max(counted.rounds) / max(without.rounds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=int, default=1, help="of one round")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("servers", nargs="*", default=list(SERVERS), help="uvicorn, granian")
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("wrk is missing: apt-get install wrk")
    ratios = [compare(kind, options.rounds, options.seconds, options.connections) for kind in options.servers]
    if min(ratios) < BAR:
        sys.exit(f"below {BAR:.0%}")


if __name__ == "__main__":
    main()
