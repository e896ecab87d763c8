"""Processes that die, by SIGKILL, before or after any of the requests of an operation; and many that write at once."""

import multiprocessing
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from cysession import Manager, RedisHashStorage, RedisStorage, Session
from tests.redis.servers import RedisServer
from tests.redis.taps import tapped

pytestmark = pytest.mark.redis

KINDS = {"string": RedisStorage, "hash": RedisHashStorage}
PATIENCE = 60.0
BEFORE = {"user": "anna", "page": 1, "big": "x" * 100}

Data = dict[str, Any] | None


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> type[RedisStorage]:
    return KINDS[request.param]


def in_child(job: Callable[[], object]) -> int | None:
    """Its exit code: 0, or minus the signal that ended it."""
    child = multiprocessing.get_context("fork").Process(target=job, daemon=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child.start()
    child.join(PATIENCE)
    assert not child.is_alive(), "the child hangs"
    return child.exitcode


# ---- operations: what a request does with a session, and what may be found of it ---------------------------


def commit(session: Session) -> None:
    session["page"] = 2
    session.save()


def shorten(session: Session) -> None:
    session.ttl = 60
    session.save()


def empty(session: Session) -> None:
    session.clear()
    session.save()


def bind(session: Session) -> None:
    session.bind("anna")
    session.save()


def destroy(session: Session) -> None:
    session.destroy()


def rotate(session: Session) -> None:
    session.regenerate_id()


def rotate_with_grace(session: Session) -> None:
    session.regenerate_id(delete_old=False)


def rotate_twice_and_destroy(session: Session) -> None:
    session.regenerate_id(delete_old=False)
    session.regenerate_id(delete_old=False)
    session.destroy()


AFTER = {**BEFORE, "page": 2}
BOUND = {**BEFORE, "_bound_user": "anna"}
OPERATIONS: dict[str, tuple[Callable[[Session], None], tuple[Data, ...]]] = {
    "commit": (commit, (BEFORE, AFTER)),
    "own ttl": (shorten, (BEFORE,)),
    "empty": (empty, (BEFORE, None)),
    "bind": (bind, (BEFORE, BOUND)),
    "destroy": (destroy, (BEFORE, None)),
    "rotate": (rotate, (BEFORE, None)),
    "rotate with grace": (rotate_with_grace, (BEFORE,)),
    "rotate twice and destroy": (rotate_twice_and_destroy, (BEFORE, None)),
}


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_G12_R43_a_kill_between_any_two_requests_leaves_one_whole_session_or_none(
    server: RedisServer, kind: type[RedisStorage], name: str, after: bool
) -> None:
    """And no key without a time to live."""
    operate, allowed = OPERATIONS[name]
    for number in range(1, 20):
        server.flush()
        session_id = made(server, kind)
        code = in_child(partial(killed_at, number, after, server, kind, session_id, operate))
        check(server, kind, session_id, allowed)
        if code == 0:
            assert number > 1
            return
        assert code == -signal.SIGKILL
    pytest.fail("the operation never came to its end")


def made(server: RedisServer, kind: type[RedisStorage]) -> str:
    manager = Manager(1000, kind(server.url, timeout=5.0))
    with manager.new() as session:
        session.set_map(BEFORE)
    manager.close()
    return session.id


def killed_at(
    number: int,
    after: bool,
    server: RedisServer,
    kind: type[RedisStorage],
    session_id: str,
    operate: Callable[[Session], None],
) -> None:
    storage = kind(server.url, timeout=5.0)
    session = Manager(1000, storage).new(session_id)
    session.load()
    tap = tapped(storage)

    def kill(reached: int) -> None:
        if reached == number:
            os.kill(os.getpid(), signal.SIGKILL)

    if after:
        tap.after = kill
    else:
        tap.before = kill
    operate(session)


def check(server: RedisServer, kind: type[RedisStorage], session_id: str, allowed: tuple[Data, ...]) -> None:
    keys = server.ok("KEYS", "*")
    assert all(0 < server.ok("PTTL", key) <= 2_200_000 for key in keys)
    manager = Manager(1000, kind(server.url, timeout=5.0))
    session = manager.new(session_id)
    data = session.get_map()
    found: Data = None if session.is_new else data
    assert found in allowed
    if found is not None:  # and it works as any other
        session["later"] = 1
        session.save()
        session.destroy()
        assert manager.new(session_id).get_map() == {}
    assert manager.storage.stats()["corrupt"] == 0
    manager.close()


def test_G11_a_kill_before_uses_were_written_loses_no_session(
    server: RedisServer, kind: type[RedisStorage]
) -> None:
    session_id = made(server, kind)

    def child() -> None:
        storage = kind(server.url, timeout=5.0)
        assert Manager(1000, storage).new(session_id)["user"] == "anna"
        assert storage.stats()["touches_waiting"] == 1
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(child) == -signal.SIGKILL
    check(server, kind, session_id, (BEFORE,))


def test_uses_are_written_at_the_end_of_the_process(server: RedisServer, kind: type[RedisStorage]) -> None:
    """Without anybody closing anything."""
    session_id = made(server, kind)
    (key,) = server.ok("KEYS", "*")
    server.ok("PEXPIRE", key, 500_000)
    code = f"""
from cysession import Manager, {kind.__name__}
storage = {kind.__name__}({server.url!r}, timeout=5.0)
storage._every = 3600.0
assert Manager(1000, storage).new({session_id!r})["user"] == "anna"
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE)
    assert server.ok("PTTL", key) > 900_000


@pytest.mark.timeout(
    600
)  # thousands of conflicts over ever more keys: half a minute of work for two processors
def test_R2_eight_processes_with_two_hundred_keys_each_make_sixteen_hundred(
    server: RedisServer, kind: type[RedisStorage]
) -> None:
    session_id = made(server, kind)

    def child(number: int) -> None:
        manager = Manager(1000, kind(server.url, timeout=20.0), max_bytes=0)
        for key in range(200):
            with manager.new(session_id) as session:
                session[f"{number}-{key}"] = key
        manager.close()

    context = multiprocessing.get_context("fork")
    children = [context.Process(target=child, args=(number,), daemon=True) for number in range(8)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for process in children:
            process.start()
    for process in children:
        process.join(500)
    assert [process.exitcode for process in children] == [0] * 8
    manager = Manager(1000, kind(server.url, timeout=5.0), max_bytes=0)
    found = manager.new(session_id).get_map()
    assert {key: value for key, value in found.items() if key not in BEFORE} == {
        f"{number}-{key}": key for number in range(8) for key in range(200)
    }
    manager.close()
