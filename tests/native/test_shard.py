"""One shard (src/_table.pxd) with hashes of the test's choice: all ids in one cluster, clusters that wrap."""

import random
import sys
from types import ModuleType
from typing import Any

import pytest

TICK = 1 << 30
TTL = 1000 * TICK


def ids(*names: str) -> list[bytes]:
    return [name.encode() for name in names]


# ---- probing and backward-shift deletion ---------------------------------------------------------------


@pytest.mark.parametrize("home", range(8))
@pytest.mark.parametrize("victim", range(6))
def test_in_one_cluster_each_id_is_found_whoever_leaves(probe: ModuleType, home: int, victim: int) -> None:
    shard = probe.ShardProbe()
    names = ids(*"abcdef")
    for name in names:
        assert shard.add(name, home, None, 0, TTL) == "done"
        shard.check()
    assert shard.remove(names[victim], home, None, 0) == ("done", None)
    shard.check()
    for name in names:
        expected = "missing" if name == names[victim] else "done"
        assert shard.get(name, home, 0, TTL)[0] == expected


def test_a_cluster_wraps_around_the_end_and_closes_its_hole(probe: ModuleType) -> None:
    shard = probe.ShardProbe()
    for name, home in ((b"a", 6), (b"b", 6), (b"c", 6), (b"d", 7), (b"e", 0)):
        shard.add(name, home, None, 0, TTL)
    assert shard.layout() == [b"c", b"d", b"e", None, None, None, b"a", b"b"]
    shard.remove(b"a", 6, None, 0)
    assert shard.layout() == [b"d", b"e", None, None, None, None, b"b", b"c"]
    shard.check()
    shard.remove(b"c", 6, None, 0)
    assert shard.layout() == [b"e", None, None, None, None, None, b"b", b"d"]
    shard.check()


def test_an_entry_at_home_is_not_pulled_in_front_of_its_home(probe: ModuleType) -> None:
    shard = probe.ShardProbe()
    for name, home in ((b"a", 2), (b"b", 3), (b"c", 2), (b"d", 5)):
        shard.add(name, home, None, 0, TTL)
    assert shard.layout() == [None, None, b"a", b"b", b"c", b"d", None, None]
    shard.remove(b"a", 2, None, 0)
    assert shard.layout() == [None, None, b"c", b"b", None, b"d", None, None]
    shard.check()


def test_growth_keeps_a_cluster_together(probe: ModuleType) -> None:
    shard = probe.ShardProbe()
    names = [b"%d" % i for i in range(200)]
    for i, name in enumerate(names):
        shard.add(name, (1 << 40) - 1, None, 0, TTL)  # the last slot at every size
        assert len(shard) == i + 1
        shard.check()
    assert shard.counts["resizes"] == 6
    assert all(shard.get(name, (1 << 40) - 1, 0, TTL)[0] == "done" for name in names)


@pytest.mark.parametrize("length", [1, 3, 4, 7, 8, 9, 15, 16, 17, 43, 127, 128])
def test_equal_hashes_are_told_apart_by_every_byte_of_the_id(probe: ModuleType, length: int) -> None:
    shard = probe.ShardProbe()
    name = bytes(range(48, 48 + length)) if length < 80 else b"x" * length
    shard.add(name, 5, None, 0, TTL)
    for at in range(length):
        other = name[:at] + bytes([name[at] ^ 1]) + name[at + 1 :]
        assert shard.get(other, 5, 0, TTL)[0] == "missing"
    assert shard.get(name[:-1], 5, 0, TTL)[0] == "missing"
    assert shard.get(name + b"x", 5, 0, TTL)[0] == "missing"
    assert shard.get(name, 5, 0, TTL)[0] == "done"


@pytest.mark.parametrize(
    "hashes", [[7], [6, 7, 0], [0, 8, 16, 7, 15], [3, 1 << 63, (1 << 64) - 1, 2**32 + 7]]
)
@pytest.mark.parametrize("seed", range(5))
def test_random_histories_in_few_clusters_match_a_dict(
    probe: ModuleType, hashes: list[int], seed: int
) -> None:
    random_ = random.Random(f"{hashes}{seed}")
    shard, stored = probe.ShardProbe(), {}
    for _ in range(1200):
        i = random_.randrange(60)
        name, hash_ = b"id%d" % i, hashes[i % len(hashes)]
        what = random_.random()
        if what < 0.4:
            lease = probe.Lease()
            expected = "present" if name in stored else "done"
            assert shard.add(name, hash_, lease, 0, TTL) == expected
            stored.setdefault(name, lease)
        elif what < 0.5:
            expected = "present" if name in stored else "done"
            stored[name] = lease = probe.Lease()
            assert shard.add(name, hash_, lease, 0, TTL, True) == expected
        elif what < 0.85:
            assert shard.remove(name, hash_, None, 0)[0] == ("done" if name in stored else "missing")
            stored.pop(name, None)
        else:
            assert shard.get(name, hash_, 0, TTL) == (
                ("done", stored[name]) if name in stored else ("missing", None)
            )
        assert len(shard) == len(stored)
        shard.check()
    assert dict(shard.rows(0)) == stored
    shard.clear()
    shard.check()
    assert len(shard) == 0
    assert not any(shard.layout())


# ---- deadlines -----------------------------------------------------------------------------------------


def test_a_deadline_counts_to_the_nanosecond_however_late_the_wheel_is(probe: ModuleType) -> None:
    shard = probe.ShardProbe()
    shard.add(b"a", 1, None, 100, 50)
    assert shard.get(b"a", 1, 149, 1, False)[0] == "done"
    assert shard.get(b"a", 1, 150, 1, False)[0] == "missing"
    assert len(shard) == 1


def test_a_lease_bounds_what_a_touch_gives(probe: ModuleType) -> None:
    shard = probe.ShardProbe()
    shard.add(b"own", 1, probe.Lease(ttl=10), 0, TTL)
    shard.add(b"cap", 2, probe.Lease(cap=15), 0, 12)
    assert shard.get(b"own", 1, 9, TTL)[0] == "done"
    assert shard.get(b"cap", 2, 9, TTL)[0] == "done"
    assert shard.get(b"own", 1, 18, TTL)[0] == "done"
    assert shard.get(b"own", 1, 28, TTL)[0] == "missing"
    assert shard.get(b"cap", 2, 14, TTL)[0] == "done"
    assert shard.get(b"cap", 2, 15, TTL)[0] == "missing"


def test_a_swap_takes_the_fresh_lease_and_can_shorten_the_deadline(probe: ModuleType) -> None:
    shard = probe.ShardProbe()
    old = probe.Lease()
    shard.add(b"a", 1, old, 0, TTL)
    assert shard.swap(b"a", 1, old, probe.Lease(ttl=5 * TICK), 0, TTL) == ("done", None)
    shard.check()
    assert shard.expire(7 * TICK, 100)[0] is False
    assert shard.dropped == [b"a"]  # memory comes back by the new deadline, not by the old one


# ---- sweeping ------------------------------------------------------------------------------------------


def test_an_add_sweeps_two_for_one(probe: ModuleType) -> None:
    shard = probe.ShardProbe()
    for i in range(100):
        shard.add(b"old%d" % i, i, None, 0, TICK)
    for i in range(50):
        before = len(shard)
        shard.add(b"new%d" % i, i, None, 10 * TICK, TTL)
        assert len(shard) == before - 1
        shard.check()
    assert len(shard) == 50
    assert shard.counts["expired"] == 100
    assert shard.counts["largest_slice"] == 2


def test_a_get_sweeps_two_once_a_tick(probe: ModuleType) -> None:
    shard = probe.ShardProbe()
    for i in range(10):
        shard.add(b"old%d" % i, i, None, 0, TICK)
    shard.get(b"x", 1, 5 * TICK, TTL)
    assert len(shard) == 8
    for tick in range(6, 10):
        shard.get(b"x", 1, tick * TICK, TTL)
    assert len(shard) == 0


def test_an_add_over_an_expired_id_buries_it_once(probe: ModuleType) -> None:
    shard = probe.ShardProbe()
    first, second = probe.Lease(), probe.Lease()
    shard.add(b"a", 1, first, 0, 10)
    assert shard.add(b"a", 1, second, 10, TTL) == "done"
    assert shard.dropped == [b"a"]
    assert shard.get(b"a", 1, 11, TTL) == ("done", second)
    assert shard.counts["expired"] == 1
    shard.expire(100 * TICK, 100)
    assert shard.dropped == [b"a"]


def test_a_live_session_that_is_replaced_has_neither_expired_nor_been_created(probe: ModuleType) -> None:
    shard = probe.ShardProbe()
    first, second = probe.Lease(), probe.Lease()
    shard.add(b"a", 1, first, 0, TTL)
    assert shard.add(b"a", 1, second, 5, 10, True) == "present"
    assert shard.dropped == []
    assert shard.get(b"a", 1, 14, 1, False) == ("done", second)
    assert shard.get(b"a", 1, 15, 1, False) == ("missing", None)
    assert (shard.counts["created"], shard.counts["expired"]) == (1, 0)
    shard.check()  # its deadline moved to the front


def test_a_session_takes_over_a_sign_of_its_id(probe: ModuleType) -> None:
    shard = probe.ShardProbe()
    lease = probe.Lease()
    shard.add(b"a", 1, lease, 0, TTL)
    shard.rename(b"a", 1, lease, "b", 0, 100)
    assert shard.add(b"a", 1, lease, 5, TTL) == "present"
    assert shard.add(b"a", 1, lease, 5, TTL, True) == "done"
    assert shard.get(b"a", 1, 6, TTL) == ("done", lease)
    shard.check()


def test_removing_the_ids_of_a_fired_slot_between_slices(probe: ModuleType) -> None:
    shard = probe.ShardProbe()
    names = [b"%d" % i for i in range(32)]
    for name in names:
        shard.add(name, 7, None, 0, 5 * TICK)
    shard.expire(5 * TICK, 4)
    gone = set(shard.dropped)
    assert len(gone) == 4
    kept = [name for name in names if name not in gone]
    # Removal looks at the deadline too: by this clock the rest is gone, by an earlier one it is not.
    assert shard.remove(kept[0], 7, None, 5 * TICK)[0] == "missing"
    assert shard.remove(kept[0], 7, None, 4 * TICK)[0] == "done"
    shard.check()
    while shard.expire(5 * TICK, 1)[0]:
        shard.check()
    assert sorted(shard.dropped) == sorted(names)
    assert len(shard) == 0


@pytest.mark.parametrize("budget", [1, 2, 7, 1000])
def test_expire_looks_at_no_more_than_its_budget(probe: ModuleType, budget: int) -> None:
    shard = probe.ShardProbe()
    for i in range(64):
        shard.add(b"%d" % i, i * 7919, None, 0, 70 * TICK)
    more = True
    while more:
        before = len(shard)
        more, left = shard.expire(200 * TICK, budget)
        assert before - len(shard) <= budget - left
        shard.check()
    assert len(shard) == 0


# ---- swaps, removals, renames: only while what was expected is still there -----------------------------


def test_outcomes_when_somebody_was_faster(probe: ModuleType) -> None:
    shard = probe.ShardProbe()
    old, new, mine = probe.Lease(), probe.Lease(), probe.Lease()
    shard.add(b"a", 1, new, 0, TTL)
    assert shard.swap(b"a", 1, old, mine, 0, TTL) == ("changed", new)
    assert shard.remove(b"a", 1, old, 0) == ("changed", new)
    assert shard.rename(b"a", 1, old, "b", 0, TTL) == ("changed", new)
    assert shard.get(b"a", 1, 0, TTL) == ("done", new)
    assert shard.rename(b"a", 1, new, "b", 0, TTL) == ("done", None)
    assert shard.swap(b"a", 1, new, mine, 0, TTL) == ("renamed", "b")
    assert shard.remove(b"a", 1, new, 0) == ("renamed", "b")
    assert shard.rename(b"a", 1, new, "c", 0, TTL) == ("renamed", "b")
    assert shard.get(b"a", 1, 0, TTL) == ("renamed", "b")
    assert shard.remove(b"a", 1, None, 0) == ("renamed", "b")
    for outcome in (
        shard.swap(b"a", 1, new, mine, 0, TTL),
        shard.remove(b"a", 1, None, 0),
        shard.get(b"a", 1, 0, TTL),
    ):
        assert outcome == ("missing", None)


def test_a_sign_to_a_new_id_lasts_for_its_grace_and_no_touch_prolongs_it(probe: ModuleType) -> None:
    shard = probe.ShardProbe()
    lease = probe.Lease()
    shard.add(b"a", 1, lease, 0, TTL)
    shard.rename(b"a", 1, lease, "b", 0, 100)
    shard.check()
    assert shard.get(b"a", 1, 99, TTL) == ("renamed", "b")
    assert shard.get(b"a", 1, 100, TTL) == ("missing", None)
    assert shard.rows(50) == []


def test_a_session_without_data_is_expected_as_such(probe: ModuleType) -> None:
    shard = probe.ShardProbe()
    shard.add(b"a", 1, None, 0, TTL)
    assert shard.get(b"a", 1, 0, TTL) == ("done", None)
    lease = probe.Lease()
    assert shard.swap(b"a", 1, None, lease, 0, TTL) == ("done", None)
    assert shard.swap(b"a", 1, None, lease, 0, TTL) == ("changed", lease)
    assert shard.get(b"a", 1, 0, TTL) == ("done", lease)


def test_the_shard_owns_one_reference_and_gives_it_back(probe: ModuleType) -> None:
    lease, fresh = probe.Lease(), probe.Lease()

    def others(what: Any) -> int:
        return sys.getrefcount(what) - plain

    plain = 0
    plain = others(lease)
    shard = probe.ShardProbe()
    shard.add(b"a", 1, lease, 0, TTL)
    assert others(lease) == 1
    shard.add(b"a", 1, lease, 0, TTL)
    shard.get(b"a", 1, 0, TTL)
    shard.rows(0)
    shard.swap(b"a", 1, fresh, fresh, 0, TTL)
    shard.remove(b"a", 1, fresh, 0)
    assert (others(lease), others(fresh)) == (1, 0)
    shard.swap(b"a", 1, lease, fresh, 0, TTL)
    assert (others(lease), others(fresh)) == (0, 1)
    shard.rename(b"a", 1, fresh, "b", 0, TTL)
    assert others(fresh) == 0
    shard.add(b"c", 2, lease, 0, 5)
    shard.expire(9 * TICK, 10)
    assert others(lease) == 0
    shard.add(b"d", 3, lease, 0, TTL)
    shard.add(b"d", 3, fresh, 0, TTL, True)
    assert (others(lease), others(fresh)) == (0, 1)
    del shard
    assert others(fresh) == 0
