"""FileStorage's record protocol: merging commits, final destroys, rotation, expiry (design 3, items 1-10)."""

import asyncio
import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from cysession import Delta, Manager, Record, codec
from cysession.errors import SessionGone, SessionTooLarge, StorageMisconfigured, StorageUnavailable
from cysession.ids import storage_key
from cysession.storage.file import FileStorage, records
from cysession.storage.file.records import Files, replace_file

SECOND = 1_000_000_000
TTL = 100 * SECOND


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["cached", "uncached"])
def storage(tmp_path: Path, clock: Clock, request: pytest.FixtureRequest) -> Iterator[FileStorage]:
    cache = 16384 if request.param == "cached" else 0
    made = FileStorage(tmp_path / "s", durability="none", sweep_every=0, cache=cache)
    made.use_clock(clock)
    yield made
    made.close()


def other(storage: FileStorage, **options: Any) -> FileStorage:
    """The same directory as another process sees it."""
    twin = FileStorage(storage._directory.path, durability="none", sweep_every=0, **options)
    twin.use_clock(storage.clock)
    return twin


def put(storage: FileStorage, name: str, data: dict[str, Any], **times: int) -> Record:
    made = Record.build(data, storage.now_ns(), **times)
    assert storage.create_record(name, made, TTL)
    return made


def load(storage: FileStorage, name: str) -> Record:
    found = storage.load_record(name, TTL)
    assert found is not None
    return found


def data(storage: FileStorage, name: str) -> dict[str, Any] | None:
    found = storage.load_record(name, TTL)
    return None if found is None else found.to_dict()


def path_of(storage: FileStorage, name: str, realm: str = "") -> Path:
    key = storage_key(name, realm)
    return Path(storage._directory.path, key[0], key[1], key[2:])


# ---- what is stored  ---------------------------------------------------------------------------------


def test_a_record_comes_back_as_it_was(storage: FileStorage) -> None:
    made = put(storage, "a", {"x": (1, 2)}, cap=storage.now_ns() + 77 * SECOND, ttl=5 * SECOND)
    for reader in storage, other(storage):
        found = load(reader, "a")
        assert found.to_dict() == {"x": (1, 2)}
        assert (found.birth, found.created, found.cap, found.ttl) == (
            *(made.birth, made.created),
            *(made.cap, made.ttl),
        )


def test_R43_whatever_is_cut_off_a_record_the_next_request_gets_a_fresh_session(tmp_path: Path) -> None:
    with Manager(ttl=60, storage=FileStorage(tmp_path / "s", sweep_every=0)) as manager:
        with manager.new() as session:
            session.update(user="ada", cart=[1, (2, 3)])
        storage = manager.storage
        assert isinstance(storage, FileStorage)
        path = path_of(storage, session.id)
        whole = path.read_bytes()
        for length in range(len(whole)):
            path.write_bytes(whole[:length])
            with manager.new(session.id) as again:
                assert "user" not in again
                again["n"] = length
            assert again.id != session.id and manager.new(again.id)["n"] == length
            manager.new(again.id).destroy()
        assert manager.stats()["corrupt"] >= len(whole)


def test_the_file_holds_just_the_codecs_bytes(storage: FileStorage) -> None:
    made = put(storage, "a", {"x": 1})
    found = path_of(storage, "a").read_bytes()
    assert found == codec.encode(made, idle=TTL, bound_to=storage_key("a").encode())


def test_V3_S21_no_id_is_ever_part_of_a_name_or_a_file(storage: FileStorage) -> None:
    evil = ["../x", "/abs", "..", "a\0b", "x" * 300, "%2e%2e", "A" * 43, "CON", "a.", "\ud800"]
    for name in evil:
        made = put(storage, name, {"x": 1})
        storage.commit_record(name, made, Delta({"y": 2}), TTL)
        storage.rename_record(name, name + "new", made, TTL, SECOND)
    root = Path(storage._directory.path)
    entries = list(root.rglob("*"))
    assert {p.parent.parent.parent for p in entries if p.is_file() and ".cysession" not in p.parts} == {root}
    assert sorted(p.name for p in root.parent.iterdir()) == [root.name]
    text = b"".join(p.read_bytes() for p in entries if p.is_file()) + repr(entries).encode()
    assert b"A" * 43 not in text and b"x" * 20 not in text
    for name in evil:
        assert storage.delete_record(name) and storage.load_record(name + "new", TTL) is None


def test_V13_realms_share_a_directory_and_no_session(storage: FileStorage) -> None:
    put(storage, "a", {"x": 1})
    shop = other(storage, realm="shop")
    assert shop.load_record("a", TTL) is None
    put(shop, "a", {"x": "shop"})
    assert data(storage, "a") == {"x": 1} and data(shop, "a") == {"x": "shop"}


# ---- create, commit, destroy  ------------------------------------------------------------------------


def test_create_must_not_exist(storage: FileStorage, clock: Clock) -> None:
    put(storage, "a", {"x": 1})
    assert not other(storage).create_record("a", Record.build({"x": 2}, 0), TTL)
    assert data(storage, "a") == {"x": 1}
    clock.now += 100  # expired is gone, whether or not it was cleaned up
    assert other(storage).create_record("a", Record.build({"x": 3}, 0), TTL)
    assert data(storage, "a") == {"x": 3}


def test_R2_commits_of_different_keys_merge_and_of_the_same_key_the_later_wins(storage: FileStorage) -> None:
    put(storage, "a", {"x": 0, "old": 1})
    twin = other(storage)
    one, two = load(storage, "a"), load(twin, "a")
    storage.commit_record("a", one, Delta({"x": 1, "same": "first"}), TTL)
    after = twin.commit_record("a", two, Delta({"y": 2, "same": "second"}, removed=["old"]), TTL)
    assert after is not None and after.birth == one.birth
    for reader in storage, twin, other(storage):
        assert data(reader, "a") == {"x": 1, "same": "second", "y": 2}


def test_V5_destroy_is_final(storage: FileStorage) -> None:
    base = put(storage, "a", {"x": 1})
    twin = other(storage)
    load(twin, "a")
    assert storage.delete_record("a") and not storage.delete_record("a")
    for late in storage, twin:
        with pytest.raises(SessionGone):
            late.commit_record("a", base, Delta({"x": 2}), TTL)
        assert not late.touch_record("a", base, TTL)
        assert late.rename_record("a", "b", base, TTL, 0) is None
        assert late.load_record("a", TTL) is late.load_record("b", TTL) is None
    assert not path_of(storage, "a").exists()


def test_V5_a_commit_never_lands_in_a_session_reborn_under_the_same_id(storage: FileStorage) -> None:
    base = put(storage, "a", {"x": 1})
    twin = other(storage)
    load(twin, "a")
    storage.delete_record("a")
    put(storage, "a", {"x": 9})  # as long as the old one, in the same tick of the clock
    assert data(twin, "a") == {"x": 9}
    with pytest.raises(SessionGone):
        twin.commit_record("a", base, Delta({"x": 2}), TTL)
    assert not twin.touch_record("a", base, TTL)
    assert data(storage, "a") == {"x": 9}


def test_no_two_commits_under_a_clock_that_stands_still_have_the_same_time(storage: FileStorage) -> None:
    """A freed inode number may come back at once: then the time alone tells two states of a session apart."""
    base = put(storage, "a", {"x": 0})
    times = [path_of(storage, "a").stat().st_mtime_ns]
    for n in range(5):
        storage.commit_record("a", base, Delta({"x": n}), TTL)
        times.append(path_of(storage, "a").stat().st_mtime_ns)
    assert len(set(times)) == 6


def test_a_commit_that_leaves_no_data_deletes(storage: FileStorage) -> None:
    base = put(storage, "a", {"x": 1})
    assert storage.commit_record("a", base, Delta(cleared=True), TTL) is None
    assert storage.load_record("a", TTL) is None and not path_of(storage, "a").exists()
    assert not storage.delete_record("a")


def test_what_a_commit_refuses_leaves_the_old_record(storage: FileStorage) -> None:
    base = put(storage, "a", {"x": 1})
    with pytest.raises(SessionTooLarge):
        storage.commit_record("a", base, Delta({"x": "y" * 5000}, max_bytes=1000), TTL)
    assert data(storage, "a") == data(other(storage), "a") == {"x": 1}
    storage.commit_record("a", base, Delta({"y": 2}), TTL)  # and the lock is free again


def test_no_two_writes_under_a_clock_that_stands_still_look_alike(storage: FileStorage) -> None:
    put(storage, "a", {"n": 1000})
    twin = other(storage)
    for n in range(1001, 1060):
        storage.commit_record("a", load(storage, "a"), Delta({"n": n}), TTL)
        assert data(twin, "a") == {"n": n}


def test_Z10_what_a_reader_changes_is_its_own(storage: FileStorage) -> None:
    put(storage, "a", {"cart": [1]})
    load(storage, "a")["cart"].append(2)
    assert data(storage, "a") == {"cart": [1]}


# ---- expiry  -----------------------------------------------------------------------------------------


def test_S6_idle_time_ends_to_the_millisecond_and_slides(storage: FileStorage, clock: Clock) -> None:
    put(storage, "a", {"x": 1})
    clock.now += 99.999
    assert data(other(storage), "a") == {"x": 1}
    clock.now += 99.999
    assert data(storage, "a") == {"x": 1}
    clock.now += 100.0
    assert storage.load_record("a", TTL) is other(storage).load_record("a", TTL) is None
    with pytest.raises(SessionGone):
        storage.commit_record("a", Record.build({}, 0), Delta({"x": 1}), TTL)


def test_S7_no_touch_passes_the_absolute_deadline(storage: FileStorage, clock: Clock) -> None:
    base = put(storage, "a", {"x": 1}, cap=storage.now_ns() + 150 * SECOND)
    for _ in range(2):
        clock.now += 74.9995
        assert storage.touch_record("a", base, TTL)
    clock.now += 0.001
    assert not storage.touch_record("a", base, TTL)
    with pytest.raises(SessionGone):
        storage.commit_record("a", base, Delta({"x": 2}), TTL)
    assert storage.rename_record("a", "b", base, TTL, 0) is None


def test_a_sessions_own_ttl_counts_instead_of_the_managers(storage: FileStorage, clock: Clock) -> None:
    base = put(storage, "a", {"x": 1}, ttl=10 * SECOND)
    clock.now += 9.999
    storage.commit_record("a", base, Delta(ttl=20 * SECOND), TTL)
    clock.now += 19.999
    assert load(storage, "a").ttl == 20 * SECOND
    clock.now += 20
    assert storage.load_record("a", TTL) is None


def test_R7_a_touch_rewrites_nothing_and_is_throttled(storage: FileStorage, clock: Clock) -> None:
    put(storage, "a", {"x": 1})
    path = path_of(storage, "a")
    before = path.stat()
    clock.now += 4.9  # less than ttl / 20
    load(storage, "a")
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    clock.now += 0.2
    load(storage, "a")
    after = path.stat()
    assert after.st_mtime_ns - before.st_mtime_ns == 5_100_000_000 and after.st_ino == before.st_ino
    assert storage.load_record("unknown", TTL) is None and not path_of(storage, "unknown").exists()


def test_R7_a_touch_never_undoes_a_commit(storage: FileStorage, clock: Clock) -> None:
    base = put(storage, "a", {"x": 1})
    twin = other(storage)
    load(twin, "a")
    storage.commit_record("a", base, Delta({"x": 2}), TTL)
    clock.now += 50
    assert data(twin, "a") == {"x": 2} and data(storage, "a") == {"x": 2}


def test_R7_a_touch_that_hits_the_successor_of_what_was_read_misleads_nobody(
    storage: FileStorage, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = put(storage, "a", {"n": 1})
    twin = other(storage)
    load(twin, "a")
    touch = twin._files.touch

    def late_touch(place: Any, mtime: int) -> bool:
        storage.commit_record("a", base, Delta({"n": 2}), TTL)  # between the look and the touch
        return touch(place, mtime)

    clock.now += 50
    with monkeypatch.context() as patch:
        patch.setattr(twin._files, "touch", late_touch)
        assert data(twin, "a") == {"n": 1}
    assert data(twin, "a") == {"n": 2}
    twin.commit_record("a", base, Delta({"m": 3}), TTL)
    assert data(storage, "a") == data(twin, "a") == {"n": 2, "m": 3}


def test_R15_a_clock_put_back_ends_no_session_and_prolongs_none(storage: FileStorage, clock: Clock) -> None:
    put(storage, "a", {"x": 1}, cap=storage.now_ns() + 1000 * SECOND)
    clock.now -= 7200
    assert data(storage, "a") == {"x": 1}  # notes a use: the idle time counts from here
    clock.now += 100
    assert storage.load_record("a", TTL) is None


def test_the_wall_clock_is_used_when_none_is_given(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path / "s", durability="none", sweep_every=0)
    assert storage.create_record("a", Record.build({"x": 1}, storage.now_ns()), SECOND // 5)
    assert storage.load_record("a", SECOND // 5) is not None
    time.sleep(0.21)
    assert storage.load_record("a", SECOND // 5) is None


# ---- rotation  ---------------------------------------------------------------------------------------


def test_S5_a_rotated_id_is_dead_at_once(storage: FileStorage) -> None:
    base = put(storage, "a", {"x": 1}, ttl=7 * SECOND)
    twin = other(storage)
    load(twin, "a")
    moved = storage.rename_record("a", "b", base, TTL, 0)
    assert moved is not None and moved.birth == base.birth and moved.ttl == base.ttl
    for reader in storage, twin:
        assert reader.load_record("a", TTL) is None and data(reader, "b") == {"x": 1}
        with pytest.raises(SessionGone):
            reader.commit_record("a", base, Delta({"x": 2}), TTL)
    assert not path_of(storage, "a").exists()


def test_the_grace_of_an_old_id_leads_to_the_new_record_and_ends(storage: FileStorage, clock: Clock) -> None:
    base = put(storage, "a", {"x": 1})
    twin = other(storage)
    load(twin, "a")
    storage.rename_record("a", "b", base, TTL, 30 * SECOND)
    clock.now += 29.999
    assert data(twin, "a") == {"x": 1}
    twin.commit_record("a", base, Delta({"y": 2}), TTL)  # a request that still holds the old id
    assert data(storage, "b") == data(storage, "a") == {"x": 1, "y": 2}
    assert not storage.create_record("a", base, TTL)
    assert storage.touch_record("a", base, TTL)
    clock.now += 0.001
    assert storage.load_record("a", TTL) is twin.load_record("a", TTL) is None
    assert data(storage, "b") == {"x": 1, "y": 2}


def test_a_chain_of_rotations_is_followed_and_cut_by_one_without_grace(storage: FileStorage) -> None:
    base = put(storage, "a", {"x": 1})
    storage.rename_record("a", "b", base, TTL, 30 * SECOND)
    storage.rename_record("a", "c", base, TTL, 30 * SECOND)  # through the old id
    assert [data(storage, name) for name in "abc"] == [{"x": 1}] * 3
    storage.rename_record("c", "d", base, TTL, 0)  # a login: nobody keeps an older id
    assert [data(storage, name) for name in "abcd"] == [None, None, None, {"x": 1}]


def test_S7_grace_does_not_pass_the_absolute_deadline(storage: FileStorage, clock: Clock) -> None:
    base = put(storage, "a", {"x": 1}, cap=storage.now_ns() + 10 * SECOND)
    storage.rename_record("a", "b", base, TTL, 30 * SECOND)
    clock.now += 10
    assert storage.load_record("a", TTL) is storage.load_record("b", TTL) is None


def test_V5_destroying_through_an_old_id_destroys_the_session(storage: FileStorage) -> None:
    base = put(storage, "a", {"x": 1})
    twin = other(storage)
    load(twin, "a")
    storage.rename_record("a", "b", base, TTL, 30 * SECOND)
    storage.rename_record("b", "c", base, TTL, 30 * SECOND)
    assert twin.delete_record("a")
    assert [data(storage, name) for name in "abc"] == [None] * 3


def test_an_alias_leads_only_to_the_session_it_was_made_for(storage: FileStorage) -> None:
    base = put(storage, "a", {"x": 1})
    storage.rename_record("a", "b", base, TTL, 30 * SECOND)
    storage.delete_record("b")
    put(storage, "b", {"x": "another user's"})
    assert storage.load_record("a", TTL) is None
    with pytest.raises(SessionGone):
        storage.commit_record("a", base, Delta({"x": 2}), TTL)
    assert not storage.delete_record("a") and data(storage, "b") == {"x": "another user's"}


def test_rotation_never_overwrites_another_session(storage: FileStorage) -> None:
    base = put(storage, "a", {"x": 1})
    put(storage, "b", {"x": 2})
    with pytest.raises(StorageUnavailable, match="id function"):
        storage.rename_record("a", "b", base, TTL, 0)
    assert data(storage, "a") == {"x": 1} and data(storage, "b") == {"x": 2}


# ---- what is not a record  ---------------------------------------------------------------------------


def test_R13_whatever_was_done_to_a_file_its_session_is_missing_and_counted(
    storage: FileStorage, caplog: pytest.LogCaptureFixture
) -> None:
    put(storage, "a", {"x": 1})
    put(storage, "b", {"x": 2})
    good, path = path_of(storage, "a").read_bytes(), path_of(storage, "a")
    changed = [good[:n] + bytes([good[n] ^ 1 << n % 8]) + good[n + 1 :] for n in range(len(good))]
    cut = [good[:n] for n in range(len(good))]
    junk = [good + b"\0", bytes(len(good)), b"\x80\x04}.", path_of(storage, "b").read_bytes()]
    with caplog.at_level(logging.DEBUG):
        for bad in changed + cut + junk:
            path.write_bytes(bad)
            assert storage.load_record("a", TTL) is None, bad
    assert storage.stats()["corrupt"] == len(changed + cut + junk)
    assert len(caplog.records) == 1 and path.name not in caplog.text
    path.write_bytes(good)
    assert data(storage, "a") == {"x": 1}


def test_a_corrupt_record_can_be_replaced_and_destroyed(storage: FileStorage) -> None:
    base = put(storage, "a", {"x": 1})
    path_of(storage, "a").write_bytes(b"junk")
    with pytest.raises(SessionGone):
        storage.commit_record("a", base, Delta({"x": 2}), TTL)
    put(storage, "a", {"x": 3})
    assert data(storage, "a") == {"x": 3}
    path_of(storage, "a").write_bytes(b"")
    assert not storage.delete_record("a") and not path_of(storage, "a").exists()


# ---- threads, loops, limits  -------------------------------------------------------------------------


def test_threads_share_a_cache_that_is_always_full(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path / "s", durability="none", sweep_every=0, cache=8)
    failures: list[BaseException] = []

    def work(worker: int) -> None:
        try:
            for n in range(150):
                put(storage, f"{worker}-{n}", {"n": n})
                assert dict(load(storage, f"{worker}-{n // 2}")) == {"n": n // 2}
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert storage.stats()["cached"] <= 8
    storage.close()


def test_R2_threads_lose_no_change(storage: FileStorage) -> None:
    put(storage, "a", {"start": 0})

    def work(worker: int) -> None:
        for n in range(25):
            storage.commit_record("a", load(storage, "a"), Delta({f"{worker}-{n}": n}), TTL)

    threads = [threading.Thread(target=work, args=(w,)) for w in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(load(storage, "a")) == 101


def test_R12_writers_in_one_directory_do_not_meet_under_a_temporary_name(tmp_path: Path) -> None:
    names: dict[str, list[str]] = {}
    for n in range(40_000):  # four sessions of one directory, each with a lock of its own
        key = storage_key(str(n))
        mates = names.setdefault(key[:2], [])
        if all(int(storage_key(mate)[62:], 16) % 64 != int(key[62:], 16) % 64 for mate in mates):
            mates.append(str(n))
        if len(mates) == 4:
            break
    storage = FileStorage(tmp_path / "s", durability="none", sweep_every=0)
    bases = {name: put(storage, name, {"n": -1}) for name in mates}
    failures: list[Exception] = []

    def work(name: str) -> None:
        try:
            for n in range(300):
                storage.commit_record(name, bases[name], Delta({"n": n}), TTL)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in mates]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and [load(storage, name)["n"] for name in mates] == [299] * 4
    storage.close()


def test_an_expired_session_takes_no_commit_also_if_this_process_has_just_seen_it(
    storage: FileStorage, clock: Clock
) -> None:
    base = put(storage, "a", {"x": 1})
    clock.now += TTL / SECOND
    with pytest.raises(SessionGone):
        storage.commit_record("a", base, Delta({"x": 2}), TTL)
    assert data(storage, "a") is None


def test_await_leaves_the_loop_free_while_the_disk_is_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = FileStorage(tmp_path / "s", durability="data", sweep_every=0)
    main, ticks = threading.get_ident(), 0
    flushed: list[int] = []
    moved: list[bool] = []

    def slow_disk(write: Any) -> Any:
        def wait(files: Files, *args: Any) -> Any:
            assert files._sync_file, "no flush"
            flushed.append(threading.get_ident())
            before, patience = ticks, time.monotonic() + 10
            while ticks == before and flushed[-1] != main and time.monotonic() < patience:
                time.sleep(0.001)  # the disk is as slow as the loop takes to go on
            moved.append(ticks > before)
            return write(files, *args)

        return wait

    async def life() -> None:
        monkeypatch.setattr(Files, "_replace", slow_disk(Files._replace))
        monkeypatch.setattr(Files, "exchange", slow_disk(Files.exchange))

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.005)
                ticks += 1

        ticker = asyncio.create_task(tick())
        manager = Manager(storage=storage)
        async with manager.new() as session:
            await session.aload()
            session["x"] = 1
        async with manager.new(session.id) as again:
            await again.aload()
            assert again["x"] == 1
            again["y"] = 2
        ticker.cancel()

    asyncio.run(life())
    assert len(flushed) == 2 and main not in flushed and moved == [True, True]
    storage.close()


def test_await_leaves_the_loop_free_while_a_read_notes_a_longer_ttl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = FileStorage(tmp_path / "s", durability="data", sweep_every=0)
    put(storage, "a", {"x": 1})
    writers = []

    def watched(*args: Any) -> int:
        writers.append(threading.get_ident())
        return replace_file(*args)

    async def life() -> None:
        monkeypatch.setattr(records, "replace_file", watched)
        for _ in range(2):
            found = await storage.aload_record("a", 10 * TTL)
            assert found is not None and found["x"] == 1
        assert await storage.atouch_record("a", found, 10 * TTL)

    asyncio.run(life())
    assert len(writers) == 1 and threading.get_ident() not in writers
    storage.close()


WRITES: dict[str, Callable[[FileStorage, Record], Coroutine[Any, Any, object]]] = {
    "create": lambda s, base: s.acreate_record("a", base, TTL),
    "commit": lambda s, base: s.acommit_record("a", base, Delta({"y": 2}), TTL),
    "load": lambda s, base: s.aload_record("a", 10 * TTL),  # which has a longer ttl to note
    "delete": lambda s, base: s.adelete_record("a"),
    "rename": lambda s, base: s.arename_record("a", "b", base, TTL, 30 * SECOND),
}


@pytest.mark.parametrize("durability", ["none", "full"])
@pytest.mark.parametrize("name", WRITES)
def test_await_leaves_the_loop_free_while_another_writer_has_the_lock(
    tmp_path: Path, name: str, durability: str
) -> None:
    """The other one lets go only when the loop gets to tell it."""
    storage = FileStorage(tmp_path / "s", durability=durability, sweep_every=0, lock_timeout=20)
    base = put(storage, "a", {"x": 1})
    stripe = int(storage_key("a")[-2:], 16) % 64
    held = os.open(tmp_path / "s" / ".cysession" / f"{stripe:02x}", os.O_RDONLY)

    async def meanwhile() -> None:
        fcntl.flock(held, fcntl.LOCK_EX)
        write = asyncio.ensure_future(WRITES[name](storage, base))
        await asyncio.sleep(0.05)
        assert not write.done()
        fcntl.flock(held, fcntl.LOCK_UN)
        await asyncio.wait_for(write, 10)

    asyncio.run(meanwhile())
    os.close(held)
    storage.close()


def test_the_cache_is_bounded_and_keeps_no_giants(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path / "s", durability="none", sweep_every=0, cache=10)
    for n in range(40):
        put(storage, f"id{n}", {"n": n})
    put(storage, "giant", {"x": b"x" * 100_000})
    assert storage.stats()["cached"] <= 10
    assert all(data(storage, f"id{n}") == {"n": n} for n in range(40)) and load(storage, "giant")
    assert "giant" not in storage._places


def test_len_counts_sessions_not_aliases_nor_the_dead(storage: FileStorage, clock: Clock) -> None:
    assert len(storage) == 0 and storage
    base = put(storage, "a", {"x": 1})
    put(storage, "b", {"x": 1}, ttl=SECOND)
    storage.rename_record("a", "c", base, TTL, 50 * SECOND)
    assert len(storage) == 2
    clock.now += 1
    assert len(storage) == 1


def test_a_closed_storage_says_so(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path / "s")
    base = put(storage, "a", {"x": 1})
    storage.close()
    storage.close()
    for use in (
        lambda: storage.load_record("a", TTL),
        lambda: storage.commit_record("a", base, Delta({"x": 2}), TTL),
        lambda: storage.create_record("b", base, TTL),
        lambda: storage.delete_record("a"),
        lambda: storage.sweep(),
    ):
        with pytest.raises(StorageUnavailable, match="closed"):
            use()


def test_GoFrames_methods_work_on_it(storage: FileStorage) -> None:
    storage.set("a", "x", 1, 100)
    storage.set_map("a", {"y": {2}}, 100)
    storage.remove("a", "x")
    assert storage.get_map("a") == {"y": {2}} and storage.get_size("a") == 1
    assert storage.get("a", "y") == {2} and storage.get("a", "z", 3) == 3
    storage.set_session("a", Record.build({"only": 1}, 0), 100)
    assert storage.get("a", "only") == 1 and storage.update_ttl("a", 100)
    assert storage.remove_all("a") and storage.get_session("a", 100) is None


@pytest.mark.parametrize("options", [{"durability": "some"}, {"keys": ["short"]}, {"keys": "x" * 32}])
def test_a_wrong_option_is_refused_at_once(tmp_path: Path, options: dict[str, Any]) -> None:
    pytest.importorskip("cryptography")
    with pytest.raises(StorageMisconfigured):
        FileStorage(tmp_path / "s", **options)


def test_a_handle_that_is_never_used_does_no_io(
    storage: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FileStorage, "load_record", None)
    Manager(storage=storage).new("A" * 43).close()


def test_V8_reads_of_unknown_ids_leave_nothing_behind(storage: FileStorage) -> None:
    manager = Manager(storage=storage)
    before = sorted(Path(storage._directory.path).rglob("*"))
    for n in range(100):
        with manager.new(f"{n:043d}") as session:
            session.get("x")
        storage.delete_record(f"{n:043d}")
    assert [
        p for p in sorted(Path(storage._directory.path).rglob("*")) if p.parent.name != ".cysession"
    ] == before
