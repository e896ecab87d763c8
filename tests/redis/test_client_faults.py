"""Everything that can go wrong with one server, on both sides: the right error in time, no wrong data, recovery."""

import contextlib
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cysession.errors import StorageFull, StorageMisconfigured, StorageUnavailable
from cysession.storage.redis.wire import ErrorReply, Script, pack
from tests.redis.servers import Proxy, RedisServer, eventually
from tests.redis.sides import SIDES, Caller, message

pytestmark = pytest.mark.redis

Open = Callable[..., Caller]
HANG = 10.0  # seconds; twenty deadlines. Whoever takes longer waits for something that has no deadline.


@pytest.fixture(params=SIDES)
def opened(request: pytest.FixtureRequest) -> Iterator[Open]:
    """opened(url, **options): a caller of the side under test, closed afterwards."""
    callers: list[Caller] = []

    def open_(source: Any, **options: Any) -> Caller:
        options.setdefault("timeout", 0.5)
        callers.append(Caller(request.param, source, **options).__enter__())
        return callers[-1]

    yield open_
    for caller in callers:
        caller.__exit__()


@pytest.fixture
def proxies() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def in_time(function: Callable[[], Any]) -> Any:
    """Its result or its error; a hang fails the test."""
    start = time.monotonic()
    try:
        return function()
    except Exception as error:
        return error
    finally:
        assert time.monotonic() - start < HANG


def works(caller: Caller) -> bool:
    try:
        return bool(caller.call(b"SET", b"works", b"1") == b"OK")
    except StorageUnavailable:
        return False


def test_the_plain_case(server: RedisServer, opened: Open) -> None:
    caller = opened(server.url)
    assert caller.call(b"SET", b"k", b"v") == b"OK"
    assert caller.call(b"GET", b"k") == b"v"
    assert caller.call(b"GET", b"absent") is None
    assert caller.call(b"STRLEN", b"k") == 1
    replies = caller.call_many(
        b"k", [(b"GET", b"k"), (b"INCR", b"k"), (b"MGET", b"k", b"x")], raise_errors=False
    )
    assert replies[0] == b"v"
    assert isinstance(replies[1], ErrorReply)
    assert replies[2] == [b"v", None]
    assert caller.call_many(b"k", []) == []
    with pytest.raises(StorageUnavailable):
        caller.call_many(b"k", [(b"GET", b"k"), (b"INCR", b"k")])
    big = os.urandom(3_000_000)
    caller.call(b"SET", b"big", big)
    assert caller.call(b"GET", b"big") == big


def test_R27_a_script_survives_script_flush(server: RedisServer, opened: Open) -> None:
    caller = opened(server.url)
    script = Script("return {KEYS[1], ARGV[1], redis.call('GET', KEYS[1])}")
    for _ in range(3):
        assert caller.run_script(script, b"k", b"x") == [b"k", b"x", None]
        server.ok("SCRIPT", "FLUSH")
    with pytest.raises(StorageUnavailable):
        caller.run_script(Script("return redis.call('INCR', KEYS[1], 'x')"), b"k")


def test_R27_what_a_batch_has_of_unknown_scripts_is_sent_again_at_once(
    server: RedisServer, opened: Open
) -> None:
    caller = opened(server.url)
    echo, add = Script("return ARGV[1]"), Script("return redis.call('INCRBY', KEYS[1], ARGV[1])")
    caller.call(b"SET", b"k", b"0")
    batch = [(echo if n % 2 else add)(b"k", n) for n in range(40)]
    batch.insert(7, pack(b"GET", b"nothing"))
    before = int(server.info("stats")["total_reads_processed"])
    replies = caller.run_scripts(b"k", batch)
    reads = int(server.info("stats")["total_reads_processed"]) - before
    assert replies.pop(7) is None
    assert replies == [b"%d" % n if n % 2 else sum(range(0, n + 1, 2)) for n in range(40)]
    assert reads <= 4  # the batch, once more what it has of scripts, and what was asked for this number


def test_R27_a_server_that_forgets_what_it_was_just_sent_is_not_asked_for_ever(
    server: RedisServer, proxy: Proxy, opened: Open
) -> None:
    caller = opened(proxy.url)
    caller.call(b"PING")
    proxy.corrupt = lambda data: b"-NOSCRIPT No matching script. Please use EVAL.\r\n"
    before = int(server.info("stats")["total_commands_processed"])
    error = in_time(lambda: caller.run_script(Script("return 1"), b"k"))
    assert type(error) is StorageUnavailable
    assert "forgetting a script" in str(error)
    assert int(server.info("stats")["total_commands_processed"]) - before <= 4
    assert type(in_time(lambda: caller.call(b"GET", b"k"))) is StorageUnavailable


def test_R21_hung(own_server: RedisServer, opened: Open) -> None:
    """An error within the deadline, soon without waiting at all, and recovery by itself."""
    caller = opened(own_server.url)
    caller.call(b"SET", b"k", b"v")
    with own_server.frozen():
        error = in_time(lambda: caller.call(b"GET", b"k"))
        assert type(error) is StorageUnavailable
        assert "did not answer" in str(error)
        for _ in range(20):
            error = in_time(lambda: caller.call(b"GET", b"k", retry=True))
            assert type(error) is StorageUnavailable
            if "not tried again" in str(error):
                break
        else:
            pytest.fail("the breaker never opened")
    eventually(lambda: works(caller), "it works again")
    assert caller.call(b"GET", b"k") == b"v"
    assert own_server.clients() <= 4


def test_R21_hung_before_the_first_connection(own_server: RedisServer, opened: Open) -> None:
    """The kernel accepts connections for a process that is stopped."""
    caller = opened(own_server.url)
    with own_server.frozen():
        errors = in_time(lambda: caller.together([(b"GET", b"k")] * 20, retry=True))
        assert {type(e) for e in errors} == {StorageUnavailable}
    eventually(lambda: works(caller), "it works")


def test_R20_R27_refused_and_restarted(own_server: RedisServer, opened: Open) -> None:
    caller = opened(own_server.url)
    for _ in range(3):
        assert eventually(lambda: works(caller), "it works")
        own_server.kill()
        for _ in range(5):
            assert type(in_time(lambda: caller.call(b"GET", b"k", retry=True))) is StorageUnavailable
        own_server.start()


def test_a_restart_between_two_calls_is_not_noticed(own_server: RedisServer, opened: Open) -> None:
    caller = opened(own_server.url)
    caller.call(b"SET", b"k", b"v")
    own_server.restart()
    assert caller.call(b"GET", b"k", retry=True) is None


def test_R20_reset(server: RedisServer, proxy: Proxy, opened: Open) -> None:
    """An idempotent call is sent once more, another is not."""
    caller = opened(proxy.url)
    server.ok("SET", "k", "v" * 5000)
    assert caller.call(b"GET", b"k") == b"v" * 5000
    proxy.cut_after = 1000
    assert caller.call(b"GET", b"k", retry=True) == b"v" * 5000
    proxy.cut_after = 1000
    error = in_time(lambda: caller.call(b"GET", b"k"))
    assert type(error) is StorageUnavailable
    assert "unknown" in str(error)
    assert caller.call(b"GET", b"k") == b"v" * 5000


def test_R22_what_is_not_idempotent_is_never_sent_twice(
    server: RedisServer, proxy: Proxy, opened: Open
) -> None:
    """Executed once, and the answer lost."""
    caller = opened(proxy.url)
    for n in range(10):
        assert caller.call(b"PING") == b"PONG"
        proxy.cut_after = 0
        assert type(in_time(lambda n=n: caller.call(b"INCR", b"n%d" % n))) is StorageUnavailable
    assert server.ok("MGET", *[f"n{n}" for n in range(10)]) == [b"1"] * 10


def test_R21_slow_pieces_do_not_extend_the_deadline(server: RedisServer, proxy: Proxy, opened: Open) -> None:
    """Each piece comes in time, all together do not."""
    caller = opened(proxy.url)
    server.ok("SET", "k", "v" * 20_000_000)
    assert caller.call(b"PING") == b"PONG"
    proxy.delay = 0.1
    for retry in (False, True):
        assert type(in_time(lambda retry=retry: caller.call(b"GET", b"k", retry=retry))) is StorageUnavailable
    proxy.delay = 0.0
    eventually(lambda: works(caller), "it works again")


def test_slow_handshake(server: RedisServer, proxy: Proxy, opened: Open) -> None:
    proxy.delay = 1.0
    caller = opened(proxy.url)
    assert type(in_time(lambda: caller.call(b"PING", retry=True))) is StorageUnavailable


def test_R27_loading(own_server: RedisServer, opened: Open) -> None:
    own_server.commands(*[("SET", f"k{n}", "v" * 100) for n in range(2000)])
    own_server.ok("SAVE")
    own_server.options |= {"key_load_delay": 1000, "loading_process_events_interval_bytes": 1024}
    caller = opened(own_server.url)
    own_server.restart(wait=False)
    seen = set()

    def loaded() -> bool:
        try:
            return bool(caller.call(b"GET", b"k7", retry=True) == b"v" * 100)
        except StorageUnavailable as error:
            seen.add(str(error).partition(" (")[0])
            return False

    eventually(loaded, "the data are loaded")
    assert "Redis is still loading its data; try again" in seen


def test_R25_out_of_memory(own_server: RedisServer, opened: Open) -> None:
    """Writes are refused as full; reads, touches and deletes work."""
    caller = opened(own_server.url)
    caller.call(b"SET", b"k", b"v")
    own_server.ok("CONFIG", "SET", "maxmemory", "1")
    script = Script("return redis.call('SET', KEYS[1], ARGV[1])")
    assert type(in_time(lambda: caller.call(b"SET", b"k", b"w", retry=True))) is StorageFull
    assert type(in_time(lambda: caller.run_script(script, b"k", b"w"))) is StorageFull
    assert caller.call(b"GET", b"k") == b"v"
    assert caller.call(b"EXPIRE", b"k", 100) == 1
    assert caller.call(b"DEL", b"k") == 1
    own_server.ok("CONFIG", "SET", "maxmemory", "0")
    assert caller.call(b"SET", b"k", b"w") == b"OK"


def test_R26_read_only(own_server: RedisServer, opened: Open) -> None:
    """Connects anew once, in case another server answers by now."""
    caller = opened(own_server.url)
    caller.call(b"SET", b"k", b"v")
    own_server.ok("REPLICAOF", "127.0.0.1", "1")
    assert type(in_time(lambda: caller.call(b"SET", b"k", b"w"))) is StorageUnavailable
    own_server.ok("REPLICAOF", "NO", "ONE")
    assert caller.call(b"SET", b"k", b"w") == b"OK"


def test_R26_too_few_replicas(own_server: RedisServer, opened: Open) -> None:
    caller = opened(own_server.url)
    own_server.ok("CONFIG", "SET", "min-replicas-to-write", "1")
    error = in_time(lambda: caller.call(b"SET", b"k", b"w"))
    assert type(error) is StorageUnavailable
    assert "replicas" in str(error)


@pytest.mark.parametrize("given", ["", "wr0ng-pa55word"])
def test_R24_wrong_password(given: str, opened: Open) -> None:
    """At once, one attempt, and neither password in what a log could show."""
    right = "r1ght-pa55word"
    with RedisServer(password=right) as server, Proxy(server) as proxy:
        caller = opened(
            f"redis://:{given}@127.0.0.1:{proxy.port}" if given else f"redis://127.0.0.1:{proxy.port}"
        )
        error = in_time(lambda: caller.call(b"GET", b"k", retry=True))
        assert type(error) is StorageMisconfigured
        assert "password" in str(error)
        assert right not in message(error)
        assert not given or given not in message(error)
        assert proxy.accepted == 1
        for _ in range(30):
            assert type(in_time(lambda: caller.call(b"GET", b"k"))) is StorageMisconfigured
        assert proxy.accepted < 20  # the breaker spares the server
        server.ok("ACL", "SETUSER", "default", "resetpass", f">{given}" if given else "nopass")
        server.password = given

        def recovered() -> bool:
            try:
                return bool(caller.call(b"PING") == b"PONG")
            except StorageMisconfigured:
                return False

        eventually(recovered, "the right password is noticed")


def test_R24_a_user_without_rights(opened: Open) -> None:
    """An ACL that lacks what is needed; the key is not in the message."""
    with RedisServer() as server:
        server.ok("ACL", "SETUSER", "web", "on", ">pw", "~cys:*", "+get", "+set")
        caller = opened(f"redis://web:pw@127.0.0.1:{server.port}")
        assert caller.call(b"SET", b"cys:1", b"v") == b"OK"
        for command in ((b"GET", b"other-s3cret"), (b"DEL", b"cys:1")):
            error = in_time(lambda command=command: caller.call(*command))
            assert type(error) is StorageMisconfigured
            assert "s3cret" not in message(error)


def test_R29_too_many_clients(opened: Open) -> None:
    """Unavailable, and usable as soon as there is room."""
    with RedisServer(maxclients=3) as server:
        caller = opened(server.url)
        others = [socket.create_connection((server.host, server.port)) for _ in range(3)]
        for s in others:
            s.sendall(b"PING\r\n")
            assert s.recv(10) == b"+PONG\r\n"
        assert type(in_time(lambda: caller.call(b"PING", retry=True))) is StorageUnavailable
        for s in others:
            s.close()
        eventually(lambda: works(caller), "there is room again")


def test_R20_nonsense(server: RedisServer, proxy: Proxy, opened: Open) -> None:
    """Random bytes for replies."""
    caller = opened(proxy.url)
    server.ok("SET", "k", "v")
    for length in (1, 7, 100, 5000):
        proxy.corrupt = lambda data, length=length: os.urandom(length)
        error = in_time(lambda: caller.call(b"GET", b"k"))
        assert type(error) is StorageUnavailable, error
        proxy.corrupt = None
        proxy.cut()
        eventually(lambda: works(caller), "it works again")
    # Lengths that nothing follows, and more replies than were asked for.
    for reply in (b"$4000000000\r\n", b"*-7\r\n", b"+OK\r\n+OK\r\n+OK\r\n", b"@\r\n"):
        proxy.corrupt = lambda data, reply=reply: reply
        assert isinstance(in_time(lambda: caller.call(b"GET", b"k")), StorageUnavailable | bytes)
        proxy.corrupt = None
        proxy.cut()
        eventually(lambda: works(caller), "it works again")
    assert caller.call(b"GET", b"k") == b"v"


@pytest.mark.stress
def test_flipped_bytes_never_give_one_the_value_of_another(
    server: RedisServer, proxy: Proxy, opened: Open
) -> None:
    """No foreign data: whatever is damaged on the way, a reply is one's own, damaged perhaps, or an error."""
    values = {b"k%d" % n: b"<value of %d>" % n + os.urandom(50) for n in range(100)}
    for key, value in values.items():
        server.ok("SET", key, value)
    chance = random.Random(11)
    lock = threading.Lock()

    def flip(data: bytes) -> bytes:
        with lock:
            damaged = bytearray(data)
            for _ in range(chance.choice((0, 0, 1, 5))):
                damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        return bytes(damaged)

    caller = opened(proxy.url, timeout=0.1)
    proxy.corrupt = flip
    good = bad = 0
    for _ in range(30):
        keys = chance.sample(sorted(values), 16)
        for key, result in zip(keys, caller.together([(b"GET", key) for key in keys]), strict=True):
            if isinstance(result, Exception):
                assert isinstance(result, StorageUnavailable | StorageMisconfigured)
                bad += 1
            else:
                assert not any(value == result for other, value in values.items() if other != key)
                good += result == values[key]
    proxy.corrupt = None
    assert good
    assert bad
    eventually(lambda: works(caller), "it works again")
    for key, value in values.items():
        assert caller.call(b"GET", key) == value


@pytest.mark.stress
def test_R29_a_storm_of_cuts_leaks_nothing(
    own_server: RedisServer, proxies: contextlib.ExitStack, opened: Open
) -> None:
    """Connections lost at any moment; the values are right, and the server counts no more connections."""
    server = own_server
    proxy = proxies.enter_context(Proxy(server))
    caller = opened(proxy.url, links=3)
    for n in range(30):
        server.ok("SET", f"k{n}", f"v{n}")
    stop = threading.Event()

    def cutter() -> None:
        while not stop.wait(0.01):
            proxy.cut()

    thread = threading.Thread(target=cutter)
    thread.start()
    try:
        answered = 0
        for _ in range(40):
            results = caller.together([(b"GET", b"k%d" % n) for n in range(30)], retry=True)
            for n, result in enumerate(results):
                if isinstance(result, Exception):
                    assert type(result) is StorageUnavailable
                else:
                    assert result == b"v%d" % n
                    answered += 1
    finally:
        stop.set()
        thread.join()
    assert answered
    eventually(lambda: works(caller), "it works again")
    eventually(lambda: server.clients() <= 3, "no more connections than there are links")
    caller.__exit__()
    eventually(lambda: server.clients() == 0, "closed is closed")


def test_unix_socket(server: RedisServer, opened: Open) -> None:
    caller = opened(f"unix://{server.socket_path}?db=2")
    assert caller.call(b"SET", b"k", b"v") == b"OK"
    assert server.commands(("SELECT", "2"), ("GET", "k"))[1] == b"v"
    server.ok("FLUSHALL")


def test_a_wrong_database_is_a_misconfiguration(server: RedisServer, opened: Open) -> None:
    error = in_time(lambda: opened(f"redis://127.0.0.1:{server.port}/999").call(b"PING"))
    assert type(error) is StorageMisconfigured
    assert "database" in str(error)


def test_a_name_that_does_not_resolve(opened: Open) -> None:
    error = in_time(lambda: opened("redis://no-such-host.invalid:6379").call(b"PING", retry=True))
    assert type(error) is StorageUnavailable
