"""The packed form (src/_pack.pxd): compare, copy and find, at every length that takes another path."""

import struct
from types import ModuleType

import pytest

KEY_BOXED = 0x80
STR, SHARED = 5, 7
SOURCE = bytes(i * 7 % 251 for i in range(1200))


def entry(key: bytes, value: bytes = b"", tag: int = STR) -> bytes:
    return struct.pack("=BBH", tag, len(key), len(value)) + key + value


@pytest.mark.parametrize("n", [*range(40), 63, 64, 65, 255, 256, 1023])
def test_equal_sees_every_byte_and_none_beyond(probe: ModuleType, n: int) -> None:
    for start in (0, 1, 5):
        other = b"\x00" * 3 + SOURCE[start : start + n] + b"\xff" * 9
        assert probe.equal(SOURCE, other, start, 3, n)
        for at in range(n):
            changed = bytearray(other)
            changed[3 + at] ^= 0x80
            assert not probe.equal(SOURCE, bytes(changed), start, 3, n)


@pytest.mark.parametrize("n", [*range(150), 255, 256, 257, 1023])
def test_copy_moves_exactly_its_run(probe: ModuleType, n: int) -> None:
    for start in (0, 1, 7):
        assert probe.copied(SOURCE, start, n, 40) == b"\xee" * 40 + SOURCE[start : start + n] + b"\xee" * 40


def test_an_empty_pack_holds_nothing(probe: ModuleType) -> None:
    assert probe.find(b"", b"a") is None
    assert probe.find(b"", b"") is None


def test_the_entries_of_a_pack_follow_each_other(probe: ModuleType) -> None:
    pack = entry(b"a", b"1") + entry(b"", b"none") + entry(b"k" * 255, b"v" * 1023) + entry(b"e", b"", 0)
    assert probe.entries(pack) == [
        (STR, b"a", b"1"),
        (STR, b"", b"none"),
        (STR, b"k" * 255, b"v" * 1023),
        (0, b"e", b""),
    ]


def test_find_takes_the_whole_key_and_only_keys(probe: ModuleType) -> None:
    bait = entry(b"wanted", b"wrong")
    pack = entry(b"want", bait) + entry(b"wanted!", b"") + entry(b"wanteD", b"") + entry(b"wanted", b"right")
    found = probe.find(pack, b"wanted")
    assert probe.entries(pack[found:]) == [(STR, b"wanted", b"right")]
    assert probe.find(pack, b"wante") is None


def test_find_tells_the_longest_keys_apart(probe: ModuleType) -> None:
    keys = [b"k" * 254, b"k" * 255, b"k" * 254 + b"x", b"x" + b"k" * 254]
    pack = b"".join(entry(key, b"%d" % i) for i, key in enumerate(keys))
    for i, key in enumerate(keys):
        assert probe.entries(pack[probe.find(pack, key) :])[0] == (STR, key, b"%d" % i)


def test_find_passes_by_keys_that_are_references(probe: ModuleType) -> None:
    address = b"ADDRESS!"
    pack = (
        entry(address, b"boxed key", STR | KEY_BOXED)
        + entry(b"b", b"\0" * 12, SHARED)
        + entry(address, b"plain")
    )
    assert probe.find(pack, address) == len(entry(address, b"boxed key")) + len(entry(b"b", b"\0" * 12))
    assert probe.find(pack[: len(entry(address, b"boxed key"))], address) is None
