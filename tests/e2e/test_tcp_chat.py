"""The chat example over real sockets: guests who lose their connection, or their server, come back as themselves."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from cysession import Manager, MemoryStorage, Storage
from examples.tcp_chat.server import LINE, start
from tests.web.storages import DictStorage, WaitingStorage

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 10.0  # seconds until a line that does not come is a failure


guests: list[Guest] = []  # of the running test


class Guest:
    """A client with nothing but a socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.token = ""
        guests.append(self)

    async def send(self, *lines: str) -> None:
        for line in lines:
            self._writer.write(line.encode() + b"\n")
        await self._writer.drain()

    async def hear(self) -> str:
        """The next line; "" at the end."""
        return (await asyncio.wait_for(self._reader.readline(), PATIENCE)).decode().rstrip("\n")

    async def ask(self, line: str) -> str:
        await self.send(line)
        return await self.hear()

    async def begin(self, first: str) -> str:
        """NEW or RESUME; the token if there is one, else what was said."""
        answer = await self.ask(first)
        word, _, rest = answer.partition(" ")
        if word == "TOKEN":
            self.token = rest
            return rest
        return answer

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()

    def reset(self) -> None:
        """Gone without a word, as when a cable is pulled."""
        self._writer.transport.abort()


async def connect(port: int) -> Guest:
    for _ in range(200):
        try:
            return Guest(*await asyncio.open_connection("127.0.0.1", port))
        except ConnectionRefusedError:
            await asyncio.sleep(0.05)
    raise AssertionError("nobody listens")


class Chat:
    """A server in this loop."""

    def __init__(self, manager: Manager, port: int) -> None:
        self.manager = manager
        self.port = port

    async def enter(self, first: str = "NEW", nick: str = "") -> Guest:
        guest = await connect(self.port)
        await guest.begin(first)
        if nick:
            assert await guest.ask(f"NICK {nick}") == "OK"
        return guest


@asynccontextmanager
async def chat(storage: Storage, **options: Any) -> AsyncIterator[Chat]:
    manager = Manager(3600, storage, **options)
    server = await start(manager)
    try:
        yield Chat(manager, server.sockets[0].getsockname()[1])
    finally:
        server.close()
        await manager.aclose()


@pytest.fixture(params=[MemoryStorage, WaitingStorage])
def storage(request: pytest.FixtureRequest) -> Storage:
    made: Storage = request.param()
    return made


def run(scenario: Callable[[], Coroutine[Any, Any, T]]) -> T:
    async def tidily() -> T:
        try:
            return await asyncio.wait_for(scenario(), 60)
        finally:
            while guests:
                guests.pop().reset()
            await asyncio.sleep(0.01)

    return asyncio.run(tidily())


def test_a_guest_resumes_after_a_reconnect(storage: Storage) -> None:
    async def scenario() -> None:
        async with chat(storage) as site:
            anna, bert = await site.enter(nick="anna"), await site.enter(nick="bert")
            assert await anna.ask("SAY hello") == "OK"
            assert await bert.hear() == "anna: hello"
            anna.reset()
            assert await bert.ask("SAY are you there?") == "OK"
            back = await site.enter(f"RESUME {anna.token}")
            assert len(back.token) == 43 and back.token != anna.token
            assert await back.hear() == "bert: are you there?"  # and nothing of her own
            assert await back.ask("WHO") == "anna, bert"
            await back.close()
            await bert.close()

    run(scenario)


def test_what_came_after_the_last_command_is_told_again(storage: Storage) -> None:
    async def scenario() -> None:
        async with chat(storage) as site:
            anna, bert = await site.enter(nick="anna"), await site.enter(nick="bert")
            for text in ("one", "two", "three"):
                assert await bert.ask(f"SAY {text}") == "OK"
                assert await anna.hear() == f"bert: {text}"
                if text == "two":
                    await anna.ask("WHO")
            await anna.close()
            back = await site.enter(f"RESUME {anna.token}")
            assert await back.hear() == "bert: three"
            assert await back.ask("NICK anne") == "OK"

    run(scenario)


def test_S5_S23_the_old_token_leads_to_the_session_for_its_grace_time_only(storage: Storage) -> None:
    async def scenario() -> None:
        for grace, expected in ((30, "anna"), (0, "ERROR no such session; say NEW")):
            async with chat(storage, grace=grace) as site:
                first = await site.enter(nick="anna")
                await site.enter(f"RESUME {first.token}")
                again = await connect(site.port)
                answer = await again.begin(f"RESUME {first.token}")
                assert (await again.ask("WHO") if grace else answer).partition(",")[0] == expected

    run(scenario)


@pytest.mark.parametrize("token", ["", "A" * 43, "../x", "a b", "é", "A" * 500])
def test_S3_S4_a_token_that_nobody_issued_is_refused(storage: Storage, token: str) -> None:
    async def scenario() -> None:
        async with chat(storage) as site:
            guest = await connect(site.port)
            assert await guest.begin(f"RESUME {token}") == "ERROR no such session; say NEW"
            assert await guest.hear() == ""
            assert len(storage) == 0  # type: ignore[arg-type]

    run(scenario)


def test_V5_bye_ends_the_session_with_all_its_connections(storage: Storage) -> None:
    async def scenario() -> None:
        async with chat(storage) as site:
            phone = await site.enter(nick="anna")
            laptop = await site.enter(f"RESUME {phone.token}")
            assert await laptop.ask("BYE") == "BYE"
            assert await laptop.hear() == ""
            assert await phone.ask("SAY still here") == "BYE your session has ended"
            assert await phone.hear() == ""
            for token in (phone.token, laptop.token):
                guest = await connect(site.port)
                assert "no such session" in await guest.begin(f"RESUME {token}")

    run(scenario)


def test_R20_a_storage_that_fails_ends_the_connection_and_not_the_session() -> None:
    storage = DictStorage()

    async def scenario() -> None:
        async with chat(storage) as site:
            guest = await site.enter(nick="anna")
            storage.broken = True
            assert await guest.ask("SAY hello") == "ERROR no sessions at the moment; RESUME later"
            storage.broken = False
            back = await site.enter(f"RESUME {guest.token}")
            assert await back.ask("WHO") == "anna"
            await back.close()

    run(scenario)


@pytest.mark.parametrize(
    "rubbish", [b"x" * (LINE + 1) + b"\n", b"GET / HTTP/1.1\n", b"\xff\xfe\n", b"\n", b"", b"NEW"]
)
def test_rubbish_ends_its_own_connection_only(rubbish: bytes) -> None:
    async def scenario() -> None:
        async with chat(MemoryStorage()) as site:
            anna = await site.enter(nick="anna")
            stranger = await connect(site.port)
            stranger._writer.write(rubbish)
            stranger._writer.write_eof()
            answer = await stranger.hear()
            assert answer == "" or answer.startswith("ERROR")
            assert await anna.ask("WHO") == "anna" and len(site.manager.storage) == 1  # type: ignore[arg-type]

    run(scenario)


def test_V11_64_guests_at_once_stay_themselves(storage: Storage) -> None:
    async def scenario() -> None:
        async with chat(storage) as site:

            async def visit(number: int) -> None:
                guest = await site.enter(nick=f"nick{number}")
                for _ in range(3):
                    guest.reset()
                    guest = await site.enter(f"RESUME {guest.token}")
                names = (await guest.ask("WHO")).split(", ")
                assert f"nick{number}" in names
                assert site.manager.new(guest.token)["nick"] == f"nick{number}"

            await asyncio.gather(*(visit(number) for number in range(64)))

    run(scenario)


def test_a_server_that_is_killed_finds_its_guests_again(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    environment = {**os.environ, "PORT": str(port), "CYSESSION_CHAT_DIR": str(tmp_path / "sessions")}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT)])

    def serve() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-m", "examples.tcp_chat"], cwd=tmp_path, env=environment)

    async def before() -> str:
        guest = await connect(port)
        await guest.begin("NEW")
        assert await guest.ask("NICK anna") == "OK"
        return guest.token

    async def after(token: str) -> None:
        guest = await connect(port)
        assert len(await guest.begin(f"RESUME {token}")) == 43
        assert await guest.ask("WHO") == "anna"
        await guest.close()

    server = serve()
    try:
        token = run(before)
        server.kill()
        server.wait(PATIENCE)
        server = serve()
        run(lambda: after(token))
        server.send_signal(signal.SIGINT)
        assert server.wait(PATIENCE) == 0
    finally:
        server.kill()
        server.wait(PATIENCE)
