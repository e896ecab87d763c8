"""The Redis storages: what they ask of the server, what is there afterwards, and what a late or second write does.

The contract itself is proved by tests/contract/test_redis.py.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cysession import (
    Delta,
    Manager,
    Record,
    RedisHashStorage,
    RedisStorage,
    SessionGone,
    StorageMisconfigured,
    StorageUnavailable,
)
from cysession.ids import new_id, storage_key
from tests.redis.servers import RedisServer, eventually
from tests.redis.taps import Tap, tapped

pytestmark = pytest.mark.redis

SECOND = 1_000_000_000
TTL = 1000 * SECOND
PATIENCE = 30.0
KINDS = {"string": RedisStorage, "hash": RedisHashStorage}

Open = Callable[..., RedisStorage]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> type[RedisStorage]:
    return KINDS[request.param]


@pytest.fixture
def new_storage(server: RedisServer, kind: type[RedisStorage]) -> Iterator[Open]:
    """new_storage(): another one on the same server, as another process has."""
    made: list[RedisStorage] = []

    def make(**options: Any) -> RedisStorage:
        made.append(kind(server.url, timeout=5.0, **options))
        made[-1]._every = 3600.0  # uses are written when a test says so
        return made[-1]

    yield make
    for storage in made:
        storage.close()


@pytest.fixture
def storage(new_storage: Open) -> RedisStorage:
    return new_storage()


@pytest.fixture
def manager(storage: RedisStorage) -> Manager:
    return Manager(1000, storage)


def stored(manager: Manager, **data: Any) -> str:
    with manager.new() as session:
        session.set_map(data)
    return session.id


def read(manager: Manager, session_id: str) -> dict[str, Any] | None:
    session = manager.new(session_id)
    data = session.get_map()
    return None if session.is_new else data


def key_of(storage: RedisStorage, session_id: str) -> bytes:
    return storage._prefix + storage_key(session_id).encode()


def lives(server: RedisServer) -> dict[bytes, int]:
    """Milliseconds that each key has to live; -1 for ever."""
    return {key: server.ok("PTTL", key) for key in server.ok("KEYS", "*")}


def calls(server: RedisServer) -> dict[str, int]:
    """Commands that clients have sent since the last time this was asked, without handshakes; those inside scripts
    are not among them."""
    stats = server.info("commandstats")
    counted = {name.removeprefix("cmdstat_"): int(text.split(",")[0][6:]) for name, text in stats.items()}
    inside = {
        "ping",  # of a new connection
        "pexpire",
        "pttl",
        "getrange",
        "strlen",
        "del",
        "exists",
        "hset",
        "hget",
        "hdel",
        "zadd",
        "zrange",
    }
    server.ok("CONFIG", "RESETSTAT")
    return {
        name: count
        for name, count in counted.items()
        if name not in inside and name not in {"config|resetstat", "info", "script|load"}
    }


READS = {"string": "get", "hash": "hgetall"}


# ---- round trips ---------------------------------------------------------------------------------------


@pytest.fixture
def verb(request: pytest.FixtureRequest) -> str:
    return READS[request.node.callspec.params["kind"]]


def test_a_load_is_one_request(
    server: RedisServer, storage: RedisStorage, manager: Manager, verb: str
) -> None:
    session_id = stored(manager, user="anna")
    tap = tapped(storage)
    calls(server)
    assert read(manager, session_id) == {"user": "anna"}
    assert tap.count == 1
    assert calls(server) == {verb: 1}


def test_a_load_by_a_process_that_never_saw_the_session_is_one_request(
    server: RedisServer, manager: Manager, new_storage: Open, verb: str
) -> None:
    session_id = stored(manager, user="anna")
    other = new_storage()
    tap = tapped(other)
    calls(server)
    assert read(Manager(1000, other), session_id) == {"user": "anna"}
    assert tap.count == 1
    assert calls(server) == {verb: 1}


def test_V8_an_unknown_id_is_one_request_and_leaves_nothing(
    server: RedisServer, storage: RedisStorage, manager: Manager, verb: str
) -> None:
    tap = tapped(storage)
    calls(server)
    for _ in range(20):
        assert read(manager, new_id()) is None
    assert tap.count == 20
    assert calls(server) == {verb: 20}
    assert server.ok("DBSIZE") == 0
    assert storage.stats()["cached"] == 0


def test_R2_an_unchanged_request_reads_once_and_writes_nothing(
    server: RedisServer, storage: RedisStorage, manager: Manager, verb: str
) -> None:
    """0 writes."""
    session_id = stored(manager, user="anna", cart=["apple"])
    tap = tapped(storage)
    calls(server)
    for _ in range(10):
        with manager.new(session_id) as session:
            assert session["cart"] == ["apple"]
    storage.flush()
    assert tap.count == 10
    assert calls(server) == {verb: 10}


def test_a_changed_request_is_one_request_more(
    server: RedisServer, storage: RedisStorage, manager: Manager, verb: str
) -> None:
    session_id = stored(manager, user="anna")
    with manager.new(session_id) as session:  # the server knows the script from here on
        session["page"] = 0
    tap = tapped(storage)
    for page in range(1, 5):
        tap.count = 0
        calls(server)
        with manager.new(session_id) as session:
            session["page"] = page
        assert tap.count == 2
        writes = {name: count for name, count in calls(server).items() if name in (verb, "evalsha", "eval")}
        assert writes[verb] == 1
        assert writes["evalsha"] == 1
        assert "eval" not in writes


def test_a_new_session_is_one_request(storage: RedisStorage, manager: Manager) -> None:
    stored(manager, first=1)
    tap = tapped(storage)
    stored(manager, user="anna")
    assert tap.count == 1


def test_a_commit_beside_another_ones_takes_one_request_more(
    storage: RedisStorage, manager: Manager, new_storage: Open
) -> None:
    session_id = stored(manager, user="anna")
    late = manager.new(session_id)
    late["page"] = 1
    other = Manager(1000, new_storage())
    with other.new(session_id) as session:
        session["lang"] = "en"
    tap = tapped(storage)
    late.save()
    assert tap.count == 2
    assert storage.stats()["conflicts"] == 1
    assert read(other, session_id) == {"user": "anna", "lang": "en", "page": 1}


def test_rotation_is_two_requests(storage: RedisStorage, manager: Manager) -> None:
    session = manager.new(stored(manager, user="anna"))
    session.load()
    tap = tapped(storage)
    session.regenerate_id()
    assert tap.count == 2


def test_destroy_is_one_request(storage: RedisStorage, manager: Manager) -> None:
    session = manager.new(stored(manager, user="anna"))
    session.load()
    tap = tapped(storage)
    session.destroy()
    assert tap.count == 1


def test_noting_a_user_is_one_request_more(storage: RedisStorage, manager: Manager) -> None:
    session = manager.new(stored(manager, page=1))
    session.load()
    tap = tapped(storage)
    session.bind("anna")
    session.save()
    assert tap.count == 2


def test_hashes_send_only_what_changes(server: RedisServer) -> None:
    storage = RedisHashStorage(server.url, timeout=5.0)
    manager = Manager(1000, storage)
    session_id = stored(manager, small=1, large="x" * 50_000)
    with manager.new(session_id) as session:
        session["small"] = 2
    tap = tapped(storage)
    session = manager.new(session_id)
    session["small"] = 3
    before = int(server.info("stats")["total_net_input_bytes"])
    session.save()
    assert int(server.info("stats")["total_net_input_bytes"]) - before < 2000
    assert tap.count == 2
    storage.close()


# ---- what is there afterwards --------------------------------------------------------------------------


def test_G12_every_key_has_a_time_to_live_from_its_first_moment(
    server: RedisServer, storage: RedisStorage, manager: Manager
) -> None:
    """Looked at after every single request."""
    tap = tapped(storage)
    seen: list[int] = []

    def look(_: int) -> None:
        for life in lives(server).values():
            assert 0 < life <= 2_200_000
            seen.append(life)

    tap.after = look
    session = manager.new(stored(manager, user="anna"))
    session["page"] = 1
    session.bind("anna")
    session.save()
    session.regenerate_id(delete_old=False)
    session["page"] = 2
    session.ttl = 500
    session.save()
    session.regenerate_id()
    manager.sessions_of("anna")
    session.remove("page")
    session.save()
    session.destroy()
    assert len(seen) > 10


def test_S6_a_sessions_life_is_its_ttl(server: RedisServer, storage: RedisStorage, manager: Manager) -> None:
    session_id = stored(manager, user="anna")
    assert 990_000 < lives(server)[key_of(storage, session_id)] <= 1_000_000
    session = manager.new(session_id)
    session.ttl = 50
    session.save()
    assert 40_000 < lives(server)[key_of(storage, session_id)] <= 50_000


def test_S7_no_life_passes_the_absolute_age(server: RedisServer, storage: RedisStorage) -> None:
    manager = Manager(1000, storage, max_age=60)
    session_id = stored(manager, user="anna")
    assert 50_000 < lives(server)[key_of(storage, session_id)] <= 60_000
    session = manager.new(session_id)
    session["page"] = 1
    session.save()
    storage.flush()
    assert 50_000 < lives(server)[key_of(storage, session_id)] <= 60_000
    fresh = session.regenerate_id()
    assert 50_000 < lives(server)[key_of(storage, fresh)] <= 60_000


def test_S14_ttls_beyond_all_reason_are_taken(server: RedisServer, storage: RedisStorage) -> None:
    manager = Manager(4.6e9, storage)
    session_id = stored(manager, user="anna")
    assert read(manager, session_id) == {"user": "anna"}
    assert all(life > 0 for life in lives(server).values())


def test_an_emptied_session_is_deleted(server: RedisServer, manager: Manager) -> None:
    session = manager.new(stored(manager, user="anna"))
    session.clear()
    session.save()
    assert server.ok("DBSIZE") == 0


def test_nothing_is_left_of_a_rotated_and_destroyed_session(server: RedisServer, manager: Manager) -> None:
    session = manager.new(stored(manager, user="anna"))
    old_id = session.id
    session.regenerate_id(delete_old=False)
    manager.new(old_id).destroy()
    assert server.ok("DBSIZE") == 0


def test_V13_sessions_of_one_realm_or_prefix_are_unknown_in_another(new_storage: Open) -> None:
    session_id = stored(Manager(1000, new_storage()), user="anna")
    assert read(Manager(1000, new_storage(realm="other")), session_id) is None
    assert read(Manager(1000, new_storage(prefix="other:")), session_id) is None


def test_V13_an_empty_prefix_is_refused(new_storage: Open) -> None:
    with pytest.raises(StorageMisconfigured):
        new_storage(prefix="")


# ---- uses, noted and written later -------------------------------------------------------------------


def shorten(server: RedisServer, storage: RedisStorage, session_id: str) -> bytes:
    """As if it had been idle for a while."""
    key = key_of(storage, session_id)
    assert server.ok("PEXPIRE", key, 500_000) == 1
    return key


def test_uses_are_written_together(server: RedisServer, manager: Manager, new_storage: Open) -> None:
    """One round trip for all of a second."""
    teacher = new_storage()  # so that the server knows the script
    assert read(Manager(1000, teacher), stored(manager, user="anna"))
    teacher.flush()
    ids = [stored(manager, number=number) for number in range(50)]
    other = new_storage()
    keys = [shorten(server, other, session_id) for session_id in ids]
    for session_id in ids:
        assert read(Manager(1000, other), session_id)
    assert other.stats()["touches_waiting"] == 50
    tap = tapped(other)
    other.flush()
    assert tap.count == 1
    after = lives(server)
    assert all(990_000 < after[key] <= 1_000_000 for key in keys)
    assert other.stats()["touches_waiting"] == 0


def test_uses_are_written_when_the_storage_is_closed(
    server: RedisServer, manager: Manager, new_storage: Open
) -> None:
    session_id = stored(manager, user="anna")
    other = new_storage()
    key = shorten(server, other, session_id)
    assert read(Manager(1000, other), session_id)
    other.close()
    assert lives(server)[key] > 990_000


def test_uses_are_written_when_the_storage_is_closed_on_an_event_loop(
    server: RedisServer, manager: Manager, new_storage: Open
) -> None:
    session_id = stored(manager, user="anna")
    other = new_storage()
    key = shorten(server, other, session_id)

    async def use() -> None:
        await Manager(1000, other).new(session_id).aload()
        await other.aclose()

    asyncio.run(use())
    assert lives(server)[key] > 990_000


def test_uses_are_written_by_a_timer_of_the_event_loop(
    server: RedisServer, manager: Manager, new_storage: Open
) -> None:
    session_id = stored(manager, user="anna")
    other = new_storage()
    other._every = 0.05
    key = shorten(server, other, session_id)

    async def use() -> None:
        await Manager(1000, other).new(session_id).aload()
        for _ in range(100):
            if not other.stats()["touches_waiting"]:
                break
            await asyncio.sleep(0.1)
        await other.aclose()

    asyncio.run(use())
    assert lives(server)[key] > 980_000
    assert not other._driver.running


def test_uses_are_written_by_a_thread_where_there_is_no_event_loop(
    server: RedisServer, manager: Manager, new_storage: Open
) -> None:
    session_id = stored(manager, user="anna")
    other = new_storage()
    other._every = 0.05
    key = shorten(server, other, session_id)
    assert read(Manager(1000, other), session_id)
    eventually(lambda: lives(server)[key] > 900_000, "the thread writes")


def test_G11_a_session_that_ends_soon_is_touched_at_once(
    server: RedisServer, manager: Manager, new_storage: Open
) -> None:
    """A session of two seconds lives as long as it is used."""
    session = manager.new()
    session["user"] = "anna"
    session.ttl = 2
    session.save()
    other = new_storage()
    key = key_of(other, session.id)
    assert server.ok("PEXPIRE", key, 1900, "LT") in (0, 1)
    server.ok("PERSIST", key)
    assert read(Manager(1000, other), session.id)
    assert 0 < lives(server)[key] <= 2000


def test_a_use_is_noted_once_in_a_while(manager: Manager, new_storage: Open) -> None:
    session_id = stored(manager, user="anna")
    other = new_storage()
    for _ in range(5):
        read(Manager(1000, other), session_id)
        other.flush()
    assert other.stats()["touches"] == 1


@pytest.mark.parametrize("policy", ["noeviction", "volatile-lru", "allkeys-lfu"])
def test_R25_a_server_that_may_evict_sessions_is_reported_once(
    server: RedisServer, manager: Manager, new_storage: Open, policy: str, caplog: pytest.LogCaptureFixture
) -> None:
    session_id = stored(manager, user="anna")
    other = new_storage()
    other._every = 0.0
    server.ok("CONFIG", "SET", "maxmemory-policy", policy, "maxmemory", 1 << 30)
    try:
        read(Manager(1000, other), session_id)
        eventually(lambda: other._inspected, "it looks")
        other._driver.stop(PATIENCE)
        other._write_touches()
    finally:
        server.ok("CONFIG", "SET", "maxmemory-policy", "noeviction", "maxmemory", 0)
    assert caplog.text.count("may evict") == (policy != "noeviction")


def test_R7_a_late_touch_makes_no_session(server: RedisServer, manager: Manager, new_storage: Open) -> None:
    session_id = stored(manager, user="anna")
    other = new_storage()
    assert read(Manager(1000, other), session_id)
    manager.new(session_id).destroy()
    other.flush()
    assert server.ok("DBSIZE") == 0


def test_S6_a_late_touch_does_not_change_a_ttl_set_since(
    server: RedisServer, manager: Manager, new_storage: Open
) -> None:
    """ "log me out in a minute" in one process, a use from before it in another."""
    session_id = stored(manager, user="anna")
    other = new_storage()
    assert read(Manager(1000, other), session_id)
    session = manager.new(session_id)
    session.ttl = 60
    session.save()
    other.flush()
    assert lives(server)[key_of(other, session_id)] <= 60_000


def test_a_touch_that_failed_is_tried_again(server: RedisServer, manager: Manager, new_storage: Open) -> None:
    session_id = stored(manager, user="anna")
    other = new_storage()
    key = shorten(server, other, session_id)
    assert read(Manager(1000, other), session_id)
    tap = tapped(other)

    def fail(_: int) -> None:
        raise StorageUnavailable

    tap.before = fail
    with pytest.raises(StorageUnavailable):
        other.flush()
    tap.before = None
    other.flush()
    assert lives(server)[key] > 990_000


def test_what_is_no_session_among_those_of_a_user_hides_no_other(
    server: RedisServer, manager: Manager, storage: RedisStorage
) -> None:
    """All are read at once; the server refuses one of the reads."""
    ids = []
    for _ in range(3):
        with manager.new() as session:
            session.bind("ann")
        ids.append(session.id)
    key = key_of(storage, ids[1])
    server.ok("DEL", key)
    server.ok("LPUSH", key, "of somebody else's")
    found = [name for name, _ in storage.user_sessions("ann")]
    assert sorted(found) == sorted(storage.locator(name) for name in (ids[0], ids[2]))


def test_loops_of_other_threads_may_come_and_go_while_one_notes_a_use(
    server: RedisServer, manager: Manager, new_storage: Open
) -> None:
    """Each loop has a timer; whoever sets one looks which of the others are over."""
    session_id = stored(manager, user="anna")
    storage: Any = new_storage()

    class Over:
        """While it is looked at, another thread's loop begins to be served."""

        def is_closed(self) -> bool:
            storage._timers[asyncio.new_event_loop()] = None
            return True

    over = [Over() for _ in range(3)]
    storage._timers.update(dict.fromkeys(over))
    asyncio.run(storage.aload_record(session_id, TTL))
    others = [loop for loop, timer in storage._timers.items() if timer is None]
    assert len(others) == 3
    assert not set(over) & set(others)
    for loop in others:
        loop.close()


def test_R7_a_touch_rewrites_no_data(server: RedisServer, manager: Manager, new_storage: Open) -> None:
    session_id = stored(manager, user="anna")
    other = new_storage()
    before = server.ok("DUMP", key_of(other, session_id))
    shorten(server, other, session_id)
    assert read(Manager(1000, other), session_id)
    other.flush()
    assert server.ok("DUMP", key_of(other, session_id)) == before


# ---- late and second writes ----------------------------------------------------------------------------


def caught(tap: Tap, do: Callable[[], object]) -> Callable[[], Any]:
    """`do()`, whose last request is not answered in time; returns what lets it land after all."""

    def cut(_: int) -> None:
        raise StorageUnavailable

    tap.before = cut
    with pytest.raises(StorageUnavailable):
        do()
    tap.before = None
    return tap.sent[-1]


def test_R23_a_commit_that_lands_late_changes_nothing_after_a_newer_one(
    storage: RedisStorage, manager: Manager, new_storage: Open
) -> None:
    session_id = stored(manager, user="anna")
    session = manager.new(session_id)
    session["page"] = "late"
    land = caught(tapped(storage), session.save)
    other = Manager(1000, new_storage())
    with other.new(session_id) as newer:
        newer["page"] = "newer"
    land()
    assert read(other, session_id) == {"user": "anna", "page": "newer"}


def test_R23_V5_a_commit_that_lands_late_does_not_revive_a_destroyed_session(
    server: RedisServer, storage: RedisStorage, manager: Manager
) -> None:
    session_id = stored(manager, user="anna")
    session = manager.new(session_id)
    session["page"] = "late"
    land = caught(tapped(storage), session.save)
    manager.new(session_id).destroy()
    land()
    assert server.ok("DBSIZE") == 0


def test_R23_V5_a_commit_that_lands_late_does_not_hit_a_session_reborn_under_the_id(
    storage: RedisStorage, manager: Manager
) -> None:
    session_id = stored(manager, user="anna")
    session = manager.new(session_id)
    session["page"] = "anna's"
    land = caught(tapped(storage), session.save)
    manager.new(session_id).destroy()
    reborn = manager.new()
    reborn.set_id(session_id)
    reborn["user"] = "bert"
    reborn.save()
    land()
    assert read(manager, session_id) == {"user": "bert"}


def test_R23_S5_a_rotation_that_lands_late_does_not_end_a_newer_state(
    storage: RedisStorage, manager: Manager
) -> None:
    """The session goes on under its old id; what was copied is nobody's."""
    session = manager.new(stored(manager, user="anna"))
    session.load()
    tap = tapped(storage)

    def cut_the_second(number: int) -> None:
        if number == 2:
            raise StorageUnavailable

    tap.before = cut_the_second
    with pytest.raises(StorageUnavailable):
        session.regenerate_id()
    tap.before = None
    land = tap.sent[-1]
    with manager.new(session.id) as newer:
        newer["page"] = 1
    land()
    assert read(manager, session.id) == {"user": "anna", "page": 1}


def test_R23_a_create_that_lands_late_takes_no_id_in_use(storage: RedisStorage, manager: Manager) -> None:
    first = manager.new()
    first.set_id("a-chosen-id")
    first["user"] = "anna"
    land = caught(tapped(storage), first.save)
    second = manager.new()
    second.set_id("a-chosen-id")
    second["user"] = "bert"
    second.save()
    land()
    assert read(manager, "a-chosen-id") == {"user": "bert"}


def test_R22_requests_executed_twice_have_one_effect(storage: RedisStorage, manager: Manager) -> None:
    """The first answer was lost, and the request was sent again."""
    tap = tapped(storage)
    tap.twice = True
    session = manager.new()
    session["count"] = 0
    session.save()
    for _ in range(3):
        session.modify("count", lambda count: count + 1)
    session.regenerate_id(delete_old=False)
    session["page"] = 1
    session.bind("anna")
    session.save()
    tap.twice = False
    assert read(manager, session.id) == {"count": 3, "page": 1, "_bound_user": "anna"}
    tap.twice = True
    session.destroy()
    assert read(manager, session.id) is None


def test_R22_a_commit_executed_twice_counts_once_though_others_came_between(
    storage: RedisStorage, manager: Manager, new_storage: Open
) -> None:
    """It finds its token among the last ones."""
    session_id = stored(manager, count=0)
    other = Manager(1000, new_storage())
    other.new(session_id).load()
    session = manager.new(session_id)
    session.load()
    tap = tapped(storage)
    tap.twice = True
    others = 0

    def commit_meanwhile(_: int) -> None:
        nonlocal others
        others += 1
        other.new(session_id).modify("count", lambda count: count + 1)

    tap.between = commit_meanwhile
    for _ in range(5):
        session.modify("count", lambda count: count + 1)
    assert read(other, session_id) == {"count": 5 + others}


def test_R22_S5_a_rotation_executed_twice_makes_no_second_session(
    storage: RedisStorage, manager: Manager
) -> None:
    """The second try cannot tell its own deletion from a log-out, so it takes the side of the log-out."""
    session = manager.new(stored(manager, user="anna"))
    old_id = session.id
    tap = tapped(storage)
    tap.twice = True
    with pytest.raises(SessionGone):
        session.regenerate_id()
    tap.twice = False
    assert read(manager, old_id) is None
    assert read(manager, session.id) is None


# ---- bytes that are no session ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [b"", b"x", b"\x80\x04\x95K.", b'{"user": "anna"}', b"\0" * 200, b"CySR" + b"\0" * 100],
    ids=["empty", "short", "pickle", "json", "zeros", "almost"],
)
def test_V6_R13_foreign_bytes_are_a_missing_session(server: RedisServer, raw: bytes) -> None:
    """And no exception for the user."""
    storage = RedisStorage(server.url, timeout=5.0)
    manager = Manager(1000, storage)
    session_id = stored(manager, user="anna")
    session = manager.new(session_id)
    session["page"] = 1
    server.ok("SET", key_of(storage, session_id), raw)
    assert read(manager, session_id) is None
    with pytest.raises(SessionGone):
        session.save()
    assert server.ok("GET", key_of(storage, session_id)) == raw
    storage.close()


def test_R13_a_key_of_another_type_is_a_missing_session(
    server: RedisServer, storage: RedisStorage, manager: Manager
) -> None:
    session_id = stored(manager, user="anna")
    session = manager.new(session_id)
    session["page"] = 1
    key = key_of(storage, session_id)
    server.ok("DEL", key)
    server.ok("RPUSH", key, "foreign")
    assert read(manager, session_id) is None
    with pytest.raises(SessionGone):
        session.save()
    manager.new(session_id).destroy()
    storage.flush()
    assert server.ok("TYPE", key) == b"list"
    assert storage.stats()["corrupt"] > 0


def test_R13_no_flipped_bit_gives_other_data(server: RedisServer) -> None:
    """Every single byte; what may change is the note of the last use, which is not data."""
    storage = RedisStorage(server.url, timeout=5.0)
    manager = Manager(1000, storage)
    session_id = stored(manager, user="anna")
    key = key_of(storage, session_id)
    raw = server.ok("GET", key)
    for place in range(len(raw)):
        damaged = bytearray(raw)
        damaged[place] ^= 0x10
        server.ok("SET", key, bytes(damaged), "KEEPTTL")
        assert read(manager, session_id) == ({"user": "anna"} if place < 8 else None), place
    for length in range(len(raw)):
        server.ok("SET", key, raw[:length], "KEEPTTL")
        assert read(manager, session_id) is None
    storage.close()


def test_R43_no_part_of_a_hash_is_taken_for_the_whole(server: RedisServer) -> None:
    """Each field missing, damaged, left over from before, or another one's."""
    storage = RedisHashStorage(server.url, timeout=5.0)
    manager = Manager(1000, storage)
    session_id = stored(manager, user="anna", page=1, cart=["apple"])
    key = key_of(storage, session_id)
    whole = server.ok("HGETALL", key)
    fields = dict(zip(whole[::2], whole[1::2], strict=True))
    with manager.new(session_id) as session:
        session["page"] = 2
    newer = server.ok("HGETALL", key)

    def shows(changed: dict[bytes, bytes | None]) -> dict[str, Any] | None:
        server.ok("DEL", key)
        state: dict[bytes, bytes | None] = {**fields, **changed}
        server.ok("HSET", key, *(part for pair in state.items() if pair[1] is not None for part in pair))
        return read(manager, session_id)

    assert shows({}) == {"user": "anna", "page": 1, "cart": ["apple"]}
    for field in fields:
        assert shows({field: None}) is None
    assert shows({b"=extra": fields[b"=page"]}) is None
    assert shows({b"=user": fields[b"=page"], b"=page": fields[b"=user"]}) is None
    assert shows({b"=page": dict(zip(newer[::2], newer[1::2], strict=True))[b"=page"]}) is None
    for field, value in fields.items():
        for place in range(8 if field == b"" else 0, len(value)):
            damaged = bytearray(value)
            damaged[place] ^= 0x10
            assert shows({field: bytes(damaged)}) is None, (field, place)
    storage.close()


def test_V11_a_session_copied_under_another_id_is_missing(
    server: RedisServer, storage: RedisStorage, manager: Manager
) -> None:
    """No user's data under another's id."""
    anna, bert = stored(manager, user="anna"), stored(manager, user="bert")
    server.ok("COPY", key_of(storage, anna), key_of(storage, bert), "REPLACE")
    assert read(manager, bert) is None
    assert read(manager, anna) == {"user": "anna"}


def test_R13_S20_corrupt_sessions_are_counted_and_logged_once_without_a_name(
    server: RedisServer, storage: RedisStorage, manager: Manager, caplog: pytest.LogCaptureFixture
) -> None:
    ids = [stored(manager, user="anna") for _ in range(3)]
    anna = key_of(storage, ids[0])
    server.ok("COPY", anna, key_of(storage, ids[1]), "REPLACE")
    server.ok("COPY", anna, key_of(storage, ids[2]), "REPLACE")
    told: list[str] = []
    manager.on("corrupt", lambda event: told.append(event.session))
    with caplog.at_level(logging.DEBUG):
        for session_id in ids[1:]:
            assert read(manager, session_id) is None
    assert storage.stats()["corrupt"] == 2
    assert len(told) == 2
    assert caplog.text.count("treated as missing") == 1
    for session_id in ids:
        assert session_id not in caplog.text
        assert storage_key(session_id) not in caplog.text


# ---- many at once ---------------------------------------------------------------------------------------


def test_R42_loads_of_one_session_in_one_turn_share_one_read(
    server: RedisServer, storage: RedisStorage, manager: Manager, verb: str
) -> None:
    session_id = stored(manager, user="anna")
    calls(server)

    async def load() -> dict[str, Any]:
        session = manager.new(session_id)
        await session.aload()
        return session.get_map()

    async def all_at_once() -> list[dict[str, Any]]:
        found = await asyncio.gather(*(load() for _ in range(50)))
        await storage.aclose()
        return found

    assert asyncio.run(all_at_once()) == [{"user": "anna"}] * 50
    assert calls(server)[verb] == 1
    assert storage.stats()["shared_reads"] == 49


def test_R5_a_cancelled_load_takes_no_other_with_it(storage: RedisStorage, manager: Manager) -> None:
    """The one that asks for all is cancelled."""
    session_id = stored(manager, user="anna")

    async def load() -> dict[str, Any]:
        session = manager.new(session_id)
        await session.aload()
        return session.get_map()

    async def all_at_once() -> list[Any]:
        tasks = [asyncio.ensure_future(load()) for _ in range(10)]
        await asyncio.sleep(0)
        for task in tasks[:3]:
            task.cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        await storage.aclose()
        return found

    found = asyncio.run(all_at_once())
    assert all(isinstance(answer, asyncio.CancelledError) for answer in found[:3])
    assert found[3:] == [{"user": "anna"}] * 7


def test_R20_R21_a_failed_load_fails_for_all_that_share_it(storage: RedisStorage, manager: Manager) -> None:
    """At once, not one after the other."""
    session_id = stored(manager, user="anna")
    asked = 0

    async def fail(*_: Any, **__: Any) -> None:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0)
        raise StorageUnavailable

    async def all_at_once() -> list[Any]:
        loads = [storage.aload_record(session_id, TTL) for _ in range(10)]
        return await asyncio.gather(*loads, return_exceptions=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage._client, "acall_packed", fail)
        assert all(isinstance(answer, StorageUnavailable) for answer in asyncio.run(all_at_once()))
    assert asked == 1


def test_R40_what_is_kept_in_memory_is_bounded(new_storage: Open) -> None:
    storage = new_storage(cache=20_000)
    manager = Manager(1000, storage)
    ids = [stored(manager, number=number, padding="x" * 400) for number in range(100)]
    assert 5 < storage.stats()["cached"] < 20
    assert storage._held <= 20_000
    assert [read(manager, session_id)["number"] for session_id in ids] == list(range(100))  # type: ignore[index]
    assert storage._held <= 20_000
    for session_id in ids:
        manager.new(session_id).destroy()
    assert (storage._held, storage.stats()["cached"]) == (0, 0)


def test_a_commit_of_what_is_not_in_memory_reads_it_first(storage: RedisStorage, new_storage: Open) -> None:
    record = Record.build({"user": "anna"}, storage.now_ns())
    assert storage.create_record("an-id", record, TTL)
    other = new_storage()
    merged = other.commit_record("an-id", record, Delta({"page": 1}), TTL)
    assert merged is not None
    assert merged.to_dict() == {"user": "anna", "page": 1}


# ---- a user's sessions -----------------------------------------------------------------------------------


def test_S8_sessions_of_a_user_are_found_by_other_processes(manager: Manager, new_storage: Open) -> None:
    for number in range(5):
        session = manager.new()
        session["number"] = number
        session.bind("anna")
        session.save()
    other = Manager(1000, new_storage())
    assert [info.data["number"] for info in other.sessions_of("anna")] == [0, 1, 2, 3, 4]
    assert other.revoke("anna") == 5
    assert other.sessions_of("anna") == []
    assert read(manager, session.id) is None


def test_S8_the_index_forgets_sessions_long_gone(
    server: RedisServer, storage: RedisStorage, manager: Manager
) -> None:
    """At the next look or the next log-in."""
    index = storage._index("anna")
    for _ in range(3):
        session = manager.new()
        session.bind("anna")
        session.save()
        session.destroy()
    assert server.ok("ZCARD", index) == 3
    for name in server.ok("ZRANGE", index, 0, -1):
        server.ok("ZADD", index, "XX", 1_000_000, name)
    manager.sessions_of("anna")
    assert server.ok("EXISTS", index) == 0
    server.ok("ZADD", index, 1_000_000, storage_key("gone"))
    session = manager.new()
    session.bind("anna")
    session.save()
    assert server.ok("ZRANGE", index, 0, -1) == [storage_key(session.id).encode()]


def test_S8_an_index_that_was_lost_comes_back_with_use(
    server: RedisServer, storage: RedisStorage, manager: Manager, new_storage: Open
) -> None:
    """Evicted, or deleted by an operator."""
    session = manager.new()
    session.bind("anna")
    session.save()
    server.ok("DEL", storage._index("anna"))
    other = new_storage()
    assert read(Manager(1000, other), session.id)
    other.flush()
    assert len(manager.sessions_of("anna")) == 1
    assert 2_100_000 < lives(server)[storage._index("anna")] <= 2_120_000


def test_S20_S21_the_index_names_no_user_and_no_id(server: RedisServer, manager: Manager) -> None:
    session = manager.new()
    session.bind("anna@example.com")
    session.save()
    names = b"".join(server.ok("KEYS", "*"))
    assert b"anna" not in names
    index = next(key for key in server.ok("KEYS", "*") if b"user:" in key)
    assert session.id.encode() not in b"".join(server.ok("ZRANGE", index, 0, -1))


# ---- counting ------------------------------------------------------------------------------------------


def test_only_live_sessions_of_the_prefix_are_counted(
    server: RedisServer, manager: Manager, new_storage: Open
) -> None:
    odd = Manager(1000, new_storage(prefix="a*[b]?\\"))
    for number in range(3):
        stored(odd, number=number)
    session = manager.new()
    session.bind("anna")
    session.save()
    session.regenerate_id(delete_old=False)
    server.ok("SET", "cysession:" + "x" * 64, "foreign")
    server.ok("SET", "other:" + "x" * 64, "foreign")
    assert len(manager.storage) == 1  # type: ignore[arg-type]
    assert len(odd.storage) == 3  # type: ignore[arg-type]
