"""Encryption at rest: nothing readable on disk, nothing exchangeable, no weak or default key (V12, Z9)."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cysession import Delta, FileStorage, Manager, Record, codec
from cysession.errors import SessionGone, StorageMisconfigured
from cysession.ids import storage_key

pytest.importorskip("cryptography")

TTL = 100_000_000_000
OLD, NEW = b"o" * 32, "n" * 43


def path_of(root: Path, name: str, realm: str = "") -> Path:
    key = storage_key(name, realm)
    return root / key[0] / key[1] / key[2:]


Open = Callable[..., FileStorage]


@pytest.fixture
def open_storage(tmp_path: Path) -> Open:
    def make(*keys: bytes | str, **options: Any) -> FileStorage:
        return FileStorage(tmp_path / "s", durability="none", sweep_every=0, keys=keys, **options)

    return make


def put(storage: FileStorage, name: str, user: str) -> Record:
    made = Record.build({"user": user}, storage.now_ns())
    assert storage.create_record(name, made, TTL)
    return made


def test_a_sealed_session_works_like_any_other(open_storage: Open, tmp_path: Path) -> None:
    manager = Manager(storage=open_storage(NEW))
    with manager.new() as session:
        session["user"] = "ada-lovelace"
        first = session.id
    with manager.new(first) as session:
        session["cart"] = [(1, 2)]
        second = session.regenerate_id(delete_old=False)
    reader = Manager(storage=open_storage(NEW))
    for name in first, second:
        assert reader.new(name).get_map() == {"user": "ada-lovelace", "cart": [(1, 2)]}
    stored = b"".join(p.read_bytes() for p in (tmp_path / "s").rglob("*") if p.is_file())
    assert b"ada" not in stored and b"cart" not in stored and storage_key(second).encode() not in stored
    with reader.new(second) as session:
        session.destroy()
    assert manager.new(first).is_new


def test_V12_two_users_ciphertexts_cannot_be_swapped(open_storage: Open, tmp_path: Path) -> None:
    storage = open_storage(NEW)
    put(storage, "a", "ada")
    put(storage, "b", "bob")
    one, two = path_of(tmp_path / "s", "a"), path_of(tmp_path / "s", "b")
    bytes_one, bytes_two = one.read_bytes(), two.read_bytes()
    one.write_bytes(bytes_two)
    two.write_bytes(bytes_one)
    fresh = open_storage(NEW)
    assert fresh.load_record("a", TTL) is fresh.load_record("b", TTL) is None

    # An attacker who can write also computes checksums; the seal itself has to refuse.
    for path, name, data in ((one, "a", bytes_two), (two, "b", bytes_one)):
        header, payload = codec.unframe(data, bound_to=storage_key("b" if name == "a" else "a").encode())
        forged = Record.build({}, header.created, header.cap, 0, header.birth)
        key = storage_key(name).encode()
        path.write_bytes(
            codec.frame(forged, payload, flags=codec.FLAG_SEALED, idle=header.idle, bound_to=key)
        )
        codec.unframe(path.read_bytes(), bound_to=key)  # looks right from outside
        assert fresh.load_record(name, TTL) is None
    assert fresh.stats()["corrupt"] == 4


@pytest.mark.parametrize("field", ["birth", "created", "cap", "idle", "alias"])
def test_V12_identity_and_deadlines_are_sealed_too(open_storage: Open, tmp_path: Path, field: str) -> None:
    storage = open_storage(NEW)
    made = Record.build({"user": "ada"}, storage.now_ns(), storage.now_ns() + TTL)
    storage.create_record("a", made, TTL)
    path, key = path_of(tmp_path / "s", "a"), storage_key("a").encode()
    header, payload = codec.unframe(path.read_bytes(), bound_to=key)
    times = {"birth": header.birth, "created": header.created, "cap": header.cap}
    idle, flags = header.idle, codec.FLAG_SEALED
    if field in times:
        times[field] += 1
    elif field == "idle":
        idle += 1
    else:
        flags |= codec.FLAG_ALIAS
    forged = Record.build({}, times["created"], times["cap"], 0, times["birth"])
    path.write_bytes(codec.frame(forged, payload, flags=flags, idle=idle, bound_to=key))
    fresh = open_storage(NEW)
    assert fresh.load_record("a", TTL) is None and fresh.stats()["corrupt"] == 1


def test_V12_every_flipped_byte_of_a_sealed_payload_is_refused(open_storage: Open, tmp_path: Path) -> None:
    storage = open_storage(NEW)
    made = put(storage, "a", "ada")
    path, key = path_of(tmp_path / "s", "a"), storage_key("a").encode()
    header, payload = codec.unframe(path.read_bytes(), bound_to=key)
    for n in range(len(payload)):
        bad = payload[:n] + bytes([payload[n] ^ 1]) + payload[n + 1 :]
        path.write_bytes(codec.frame(made, bad, flags=codec.FLAG_SEALED, idle=header.idle, bound_to=key))
        assert open_storage(NEW).load_record("a", TTL) is None
    for cut in range(0, len(payload), 7):
        path.write_bytes(
            codec.frame(made, payload[:cut], flags=codec.FLAG_SEALED, idle=header.idle, bound_to=key)
        )
        assert open_storage(NEW).load_record("a", TTL) is None


def test_V12_the_first_key_seals_and_every_key_opens(open_storage: Open) -> None:
    before = open_storage(OLD)
    made = put(before, "a", "ada")
    rotated = open_storage(NEW, OLD)
    found = rotated.load_record("a", TTL)
    assert found is not None and found["user"] == "ada"
    assert open_storage(NEW).load_record("a", TTL) is None
    rotated.commit_record("a", made, Delta({"x": 1}), TTL)  # sealed anew, with the first key
    assert open_storage(NEW).get("a", "user") == "ada"
    stale = open_storage(OLD)
    assert stale.load_record("a", TTL) is None and stale.stats()["corrupt"] == 1
    with pytest.raises(SessionGone):
        stale.commit_record("a", made, Delta({"x": 2}), TTL)


def test_V6_there_is_no_way_back_to_plain_records(open_storage: Open) -> None:
    put(open_storage(), "plain", "mallory")
    put(open_storage(NEW), "sealed", "ada")
    assert open_storage(NEW).load_record("plain", TTL) is None
    assert open_storage().load_record("sealed", TTL) is None


def test_V13_realms_do_not_open_each_others_records(open_storage: Open, tmp_path: Path) -> None:
    put(open_storage(NEW, realm="one"), "a", "ada")
    there = path_of(tmp_path / "s", "a", "two")
    there.parent.mkdir(parents=True)
    there.write_bytes(path_of(tmp_path / "s", "a", "one").read_bytes())
    assert open_storage(NEW, realm="two").load_record("a", TTL) is None


def test_Z9_no_nonce_is_used_twice(open_storage: Open, tmp_path: Path) -> None:
    storage = open_storage(NEW)
    made = put(storage, "a", "ada")
    nonces = set()
    for n in range(200):
        storage.commit_record("a", made, Delta({"n": n}), TTL)
        _, payload = codec.unframe(
            path_of(tmp_path / "s", "a").read_bytes(), bound_to=storage_key("a").encode()
        )
        nonces.add(payload[8:20])
    assert len(nonces) == 200
    for one, two in itertools.pairwise(sorted(nonces)):
        assert one != two


@pytest.mark.parametrize("key", [b"", b"x" * 31, "", "x" * 31])
def test_V12_short_keys_are_refused_and_never_quoted(open_storage: Open, key: bytes | str) -> None:
    with pytest.raises(StorageMisconfigured, match="32") as caught:
        open_storage(NEW, key)
    text = key if isinstance(key, str) else key.decode()
    assert not text or text not in str(caught.value)


def test_one_key_in_place_of_a_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageMisconfigured, match="list"):
        FileStorage(tmp_path / "s", keys="k" * 43)


def test_without_the_package_keys_are_refused_and_say_what_to_install(
    open_storage: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cysession.storage.file.seal.find_spec", lambda name: None)
    with pytest.raises(StorageMisconfigured, match=r"pip install cysession\[crypto\]"):
        open_storage(NEW)


def test_the_sweeper_needs_no_key(open_storage: Open) -> None:
    put(open_storage(NEW), "a", "ada")
    storage = open_storage()
    storage.use_clock(lambda: 4e9)
    assert storage.sweep() == 1
