"""The Redis storages in a cluster: every request names keys of one slot, whatever the operation."""

from collections.abc import Iterator

import pytest

from cysession import Manager, RedisHashStorage, RedisStorage
from tests.redis.servers import Cluster

pytestmark = pytest.mark.redis

KINDS = {"string": RedisStorage, "hash": RedisHashStorage}


@pytest.fixture(params=KINDS)
def manager(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[Manager]:
    with Manager(1000, KINDS[request.param](cluster.url, timeout=5.0)) as made:
        yield made


def nodes_in_use(cluster: Cluster) -> int:
    return sum(node.ok("DBSIZE") > 0 for node in cluster.nodes)


def test_R28_sessions_spread_over_the_nodes(manager: Manager, cluster: Cluster) -> None:
    ids = []
    for number in range(60):
        with manager.new() as session:
            session["number"] = number
        ids.append(session.id)
    assert nodes_in_use(cluster) == 3
    assert [manager.new(session_id)["number"] for session_id in ids] == list(range(60))
    assert len(manager.storage) == 60  # type: ignore[arg-type]


def test_R28_S5_S8_a_whole_life_across_slots(manager: Manager, cluster: Cluster) -> None:
    """Rotation and the user's index touch keys of several nodes, one at a time."""
    for number in range(20):
        session = manager.new()
        session["number"] = number
        session.save()
        session.bind("anna")
        session.save()
        old_id = session.id
        fresh = session.regenerate_id(delete_old=False)
        with manager.new(old_id) as late:
            late["late"] = True
        session = manager.new(fresh)
        assert session.get_map() == {"number": number, "_bound_user": "anna", "late": True}
        session.regenerate_id()
        assert manager.new(old_id).get_map() == {}
    assert [info.data["number"] for info in manager.sessions_of("anna")] == list(range(20))
    assert manager.revoke("anna") == 20
    assert manager.sessions_of("anna") == []
    assert all(node.ok("PTTL", key) > 0 for node in cluster.nodes for key in node.ok("KEYS", "*"))


def test_uses_of_many_slots_are_written_together(manager: Manager, cluster: Cluster) -> None:
    ids = []
    for number in range(60):
        with manager.new() as session:
            session["number"] = number
        ids.append(session.id)
    keys = [(node, key) for node in cluster.nodes for key in node.ok("KEYS", "*")]
    for node, key in keys:
        node.ok("PEXPIRE", key, 500_000)
    with Manager(1000, type(manager.storage)(cluster.url, timeout=5.0)) as other:  # type: ignore[call-arg]
        for session_id in ids:
            other.new(session_id).load()
    assert all(node.ok("PTTL", key) > 900_000 for node, key in keys)
