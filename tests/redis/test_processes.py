"""What needs a process of its own: forks with an event loop, interpreter exit, what importing costs."""

import subprocess
import sys
import textwrap

import pytest

from tests.redis.servers import RedisServer

pytestmark = pytest.mark.redis


def start(code: str, *args: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(code), *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
    )


def run(code: str, *args: str) -> str:
    process = start(code, *args)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert err == ""
    return out


def test_importing_cysession_imports_no_redis() -> None:
    out = run("import sys, cysession; print([m for m in ('redis', 'hiredis', 'uvloop') if m in sys.modules])")
    assert out.strip() == "[]"


LEAVE = """
    import asyncio, sys
    from cysession.storage.redis.client import Client
    from cysession.errors import StorageUnavailable
    client = Client(sys.argv[1])
    client.call(b"", b"PING")

    def leave():
        print("ready", flush=True)
        sys.stdin.readline()  # by now the server is hung

    def sync():
        leave()
        try:
            client.call(b"", b"PING", retry=True)
        except StorageUnavailable:
            print("unavailable", flush=True)

    async def main():
        await client.acall(b"", b"PING")
        leave()
        pending = asyncio.create_task(client.acall(b"", b"PING"))
        try:
            await client.acall(b"", b"PING", retry=True)
        except StorageUnavailable:
            print("unavailable", flush=True)
        abandoned = asyncio.create_task(client.acall(b"", b"PING"))
        abandoned.add_done_callback(lambda task: task.cancelled() or task.exception())  # fails before the end, or not
        await asyncio.wait({pending})
        pending.exception()

    if sys.argv[2] == "sync":
        sync()
    elif sys.argv[2] == "asyncio":
        asyncio.run(main())
    else:
        import uvloop
        uvloop.run(main())
"""


@pytest.mark.parametrize("side", ["sync", "asyncio", "uvloop"])
def test_R37_leaving_while_redis_hangs(own_server: RedisServer, side: str) -> None:
    """The interpreter ends, without a word, although nobody closed anything."""
    process = start(LEAVE, own_server.url, side)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    with own_server.frozen():
        out, err = process.communicate("go\n", timeout=10)
    assert process.returncode == 0, err
    assert out == "unavailable\n"
    assert err == ""


FORK = """
    import asyncio, os, sys
    from cysession.storage.redis.client import Client
    client = Client(sys.argv[1], timeout=5)
    make = asyncio.new_event_loop
    if sys.argv[2] == "uvloop":
        import uvloop
        make = uvloop.new_event_loop

    async def ask(text):
        replies = await asyncio.gather(*[client.acall(b"", b"ECHO", b"%s %d" % (text, n)) for n in range(20)])
        assert replies == [b"%s %d" % (text, n) for n in range(20)], replies

    def child():
        status = 1
        try:
            assert client.call(b"", b"ECHO", b"sync") == b"sync"
            with asyncio.Runner(loop_factory=make) as runner:
                runner.run(ask(b"child"))
            client.close()
            status = 0
        finally:
            sys.stdout.flush()
            os._exit(status)

    with asyncio.Runner(loop_factory=make) as runner:
        runner.run(ask(b"before"))
        for _ in range(5):
            pid = os.fork()
            if not pid:
                child()
            runner.run(ask(b"parent"))
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        runner.run(ask(b"after"))
    client.close()
    print("fine")
"""


@pytest.mark.parametrize("side", ["asyncio", "uvloop"])
def test_R30_fork_with_an_event_loop(server: RedisServer, side: str) -> None:
    """The parent's loop and its connection go on; the child's are its own."""
    before = int(server.info("stats")["total_connections_received"])
    assert run(FORK, server.url, side) == "fine\n"
    accepted = int(server.info("stats")["total_connections_received"]) - before - 1
    assert accepted == 1 + 5 * 2  # the parent's one, and two of each child


def test_R37_leaving_while_a_name_is_being_resolved() -> None:
    """No resolver is waited for."""
    run(
        """
        import socket, sys, time
        real = socket.getaddrinfo
        socket.getaddrinfo = lambda *args, **kwargs: time.sleep(600)
        from cysession.storage.redis.client import Client
        from cysession.errors import StorageUnavailable
        try:
            Client("redis://somewhere.example").call(b"", b"PING")
        except StorageUnavailable:
            pass
        else:
            sys.exit("not unavailable")
        """
    )
