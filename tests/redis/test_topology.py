"""Clusters whose slots move and nodes die (R28), sentinels that fail over (R26)."""

import random
import threading
from typing import Any

import pytest

from cysession.errors import StorageMisconfigured, StorageUnavailable
from cysession.storage.redis.client import Client, _slot
from cysession.storage.redis.wire import Script
from tests.redis.servers import Cluster, RedisServer, SentinelSetup, eventually, slot_of
from tests.redis.sides import SIDES, Caller

pytestmark = pytest.mark.redis


@pytest.fixture(params=SIDES)
def side(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_slots_are_those_of_the_specification() -> None:
    for key in (b"", b"k", b"123456789", b"{a}b", b"b{a}", b"{}x", b"{", b"}{", b"a{b{c}d}", b"{a}{b}"):
        assert _slot(key) == slot_of(key), key
    assert _slot(b"123456789") == 0x31C3  # the example of the specification


def test_every_key_goes_to_its_node(cluster: Cluster, side: str) -> None:
    with Caller(side, cluster.url) as caller:
        assert caller.client.is_cluster
        keys = [b"k%d" % n for n in range(100)]
        assert caller.together([(b"SET", k, k * 3) for k in keys]) == [b"OK"] * 100
        assert caller.together([(b"GET", k) for k in keys]) == [k * 3 for k in keys]
    assert all(int(node.ok("DBSIZE")) > 10 for node in cluster.nodes)
    assert sum(int(node.ok("DBSIZE")) for node in cluster.nodes) == 100


def test_R28_a_moved_slot_is_followed_and_remembered(cluster: Cluster, side: str) -> None:
    """MOVED."""
    key = b"{moves}1"
    script = Script("return redis.call('GET', KEYS[1])")
    with Caller(side, cluster.url) as caller:
        caller.call(b"SET", key, b"v")
        for _ in range(3):
            old = cluster.owner(slot_of(key))
            cluster.move(slot_of(key))
            assert caller.call(b"GET", key) == b"v"
            assert caller.call_many(key, [(b"GET", key), (b"STRLEN", key)]) == [b"v", 1]
            assert caller.run_script(script, key) == b"v"
            old.ok("CONFIG", "RESETSTAT")
            for _ in range(5):
                assert caller.call(b"GET", key) == b"v"
            assert "errorstat_MOVED" not in old.info("errorstats")


def test_R28_in_the_middle_of_a_move(cluster: Cluster, side: str) -> None:
    """ASK; keys that have moved and keys that have not, in one batch too."""
    slot = slot_of(b"{here}")
    with Caller(side, cluster.url) as caller:
        for n in range(4):
            caller.call(b"SET", b"{here}%d" % n, b"v%d" % n)
        source, target = cluster.begin_move(slot)
        try:
            source.ok("MIGRATE", target.host, target.port, "", 0, 5000, "KEYS", "{here}0", "{here}2")
            batch = [(b"GET", b"{here}%d" % n) for n in range(4)]
            assert caller.call_many(b"{here}", batch) == [b"v0", b"v1", b"v2", b"v3"]
            assert caller.call(b"SET", b"{here}new", b"v") == b"OK"
            assert caller.call(b"GET", b"{here}new") == b"v"
            # Two keys, one here and one there: the cluster says TRYAGAIN until the move is over.
            with pytest.raises(StorageUnavailable):
                caller.call_many(b"{here}", [(b"MGET", b"{here}0", b"{here}1")])
        finally:
            cluster.move_keys(slot, source, target)
            cluster.end_move(slot, source, target)
        assert caller.call_many(b"{here}", batch) == [b"v0", b"v1", b"v2", b"v3"]


@pytest.mark.stress
def test_R28_slots_move_under_load(cluster: Cluster, side: str) -> None:
    """To and fro, while sixteen callers write and read keys of their own: nothing is lost or mixed up."""
    stop = threading.Event()
    slot = slot_of(b"{busy}")
    failed: list[BaseException] = []

    def mover() -> None:
        try:
            while not stop.is_set():
                cluster.move(slot)
        except BaseException as error:
            failed.append(error)

    with Caller(side, cluster.url, timeout=5.0) as caller:
        caller.call(b"PING")
        thread = threading.Thread(target=mover)
        thread.start()
        try:
            for turn in range(60):
                keys = [b"{busy}%d" % n for n in range(16)]
                values = [b"%d-%d" % (turn, n) for n in range(16)]
                results = caller.together(
                    [(b"SET", k, v) for k, v in zip(keys, values, strict=True)], retry=True
                )
                assert results == [b"OK"] * 16
                assert caller.together([(b"GET", k) for k in keys], retry=True) == values
        finally:
            stop.set()
            thread.join()
    assert failed == []


def test_a_node_that_dies_takes_only_its_slots_along(side: str) -> None:
    with Cluster() as cluster, Caller(side, cluster.url, timeout=0.5) as caller:
        keys = {node.port: next(_keys_of(cluster, node)) for node in cluster.nodes}
        for key in keys.values():
            caller.call(b"SET", key, b"v")
        dead = cluster.nodes[0]  # also the one that the URL names
        dead.kill()
        with pytest.raises(StorageUnavailable):
            caller.call(b"GET", keys[dead.port])
        for node in cluster.nodes[1:]:

            def answers(key: bytes = keys[node.port]) -> bool:
                try:
                    return bool(caller.call(b"GET", key, retry=True) == b"v")
                except StorageUnavailable:
                    return False

            eventually(answers, "the other nodes' keys are served")
        dead.start()

        def back() -> bool:
            try:
                return bool(caller.call(b"SET", keys[dead.port], b"w") == b"OK")
            except StorageUnavailable:
                return False

        eventually(back, "the node is found again")


def _keys_of(cluster: Cluster, node: RedisServer) -> Any:
    n = 0
    while True:
        key = b"key %d" % n
        if cluster.owner(slot_of(key)) is node:
            yield key
        n += 1


def test_R21_a_hung_node_leaves_the_others_alone(cluster: Cluster, side: str) -> None:
    """Even if the slots are not known yet, and it is the hung one that would be asked for them first."""
    hosts = ",".join(f"{n.host}:{n.port}" for n in cluster.nodes)
    with cluster.nodes[0].frozen(), Caller(side, f"redis+cluster://{hosts}", timeout=1.0) as caller:
        key = next(_keys_of_alive(cluster))
        assert caller.call(b"SET", key, b"v", retry=True) == b"OK"


def _keys_of_alive(cluster: Cluster) -> Any:
    alive = cluster.nodes[1]
    ranges = [
        (first, last) for first, last, master, *_ in alive.ok("CLUSTER", "SLOTS") if master[1] == alive.port
    ]
    for n in range(100_000):
        key = b"key %d" % n
        if any(first <= slot_of(key) <= last for first, last in ranges):
            yield key


def test_a_server_that_is_no_cluster(server: RedisServer, side: str) -> None:
    with Caller(side, f"redis+cluster://{server.host}:{server.port}") as caller:
        with pytest.raises(StorageMisconfigured, match="cluster"):
            caller.call(b"GET", b"k")


# --- sentinels ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["kill", "freeze"])
def test_R26_failover(sentinel: SentinelSetup, side: str, fault: str) -> None:
    """Errors, and only errors, until the replica is promoted; then it is found without help."""
    with Caller(side, sentinel.url) as caller:
        caller.call(b"SET", b"k", b"v")
        eventually(lambda: sentinel.replica.ok("GET", "k") == b"v", "the replica has it")
        getattr(sentinel.master, fault)()
        with pytest.raises(StorageUnavailable):
            caller.call(b"GET", b"k")
        answers = set()

        def writes() -> bool:
            try:
                answers.add(caller.call(b"GET", b"k", retry=True))
                return bool(caller.call(b"SET", b"after", b"w") == b"OK")
            except StorageUnavailable:
                return False

        eventually(writes, "the new master is found", 30)
        assert answers == {b"v"}
        assert sentinel.current() == sentinel.replica.port
        assert sentinel.replica.ok("GET", "after") == b"w"
        if fault == "freeze":
            sentinel.master.thaw()


def test_sentinels_that_hang_or_are_gone(sentinel: SentinelSetup, side: str) -> None:
    """Any one that answers is enough, and there is time left for it."""
    sentinel.sentinels[0].kill()
    with sentinel.sentinels[1].frozen(), Caller(side, sentinel.url, timeout=1.0) as caller:
        assert caller.call(b"SET", b"k", b"v") == b"OK"
    sentinel.sentinels[2].kill()
    sentinel.sentinels[1].kill()
    with Caller(side, sentinel.url) as caller:
        with pytest.raises(StorageUnavailable, match="sentinel"):
            caller.call(b"GET", b"k")


def test_an_unknown_service(sentinel: SentinelSetup, side: str) -> None:
    with Caller(side, sentinel.url.replace(sentinel.name, "other")) as caller:
        with pytest.raises(StorageUnavailable, match="'other'"):
            caller.call(b"GET", b"k")


def test_a_master_that_is_none_any_more_is_not_believed(sentinel: SentinelSetup, side: str) -> None:
    """The sentinels still name it, but it says itself that it is a replica."""
    for s in sentinel.sentinels:
        s.freeze()
    with Caller(side, sentinel.url) as caller:
        with pytest.raises(StorageUnavailable):
            caller.call(b"GET", b"k")
    sentinel.sentinels[0].thaw()
    sentinel.master.ok("REPLICAOF", sentinel.replica.host, sentinel.replica.port)
    chance = random.Random(2)
    with Caller(side, sentinel.url, timeout=1.0) as caller:
        for _ in range(chance.randrange(3, 6)):
            try:
                caller.call(b"SET", b"k", b"v")
            except StorageUnavailable as error:
                assert "master" in str(error)
    for s in sentinel.sentinels[1:]:
        s.thaw()


def test_single_server_clients_have_one_node(server: RedisServer) -> None:
    client = Client(server.url)
    assert not client.is_cluster
    assert len(client.nodes) == 1
