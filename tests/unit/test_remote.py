"""What the core does for sessions in Redis, against the same in plain Python: strings, times to live, commands."""

import hashlib
import struct
from typing import Any
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cysession import Delta, NotSerializable, Record, SessionTooLarge, codec
from cysession._core import (
    StoredRemote,
    packed,
    stored_remote,
    stored_string,
    string_attempt,
    string_version,
    use_lasts,
)

NOW = 1_800_000_000 * 10**9
NO_CAP = 2**63 - 1
TOKENS = bytes(range(32))
FRONT = b"*5\r\n$5\r\nSWAP!\r\n"

keys = st.text(max_size=8)
data = st.dictionaries(
    keys, st.one_of(st.none(), st.integers(), st.text(max_size=30), st.binary(max_size=99))
)
moments = st.integers(0, 2**62)
idles = st.one_of(st.just(0), st.integers(1, 146 * 365 * 86400 * 10**9))
clocks = st.sampled_from([None, lambda: 0.0])


def record_with(values: dict[str, Any], *, cap: int = NO_CAP, ttl: int = 0) -> Record:
    return Record.build(values, NOW, cap, ttl, 7)


def stored_with(*, cap: int = NO_CAP, own: int = 0, idle: int = 0, head: bytes = b"") -> StoredRemote:
    return stored_remote(record_with({"a": 1}, cap=cap, ttl=own), None, idle, NOW, TOKENS, head, head, 0)


def arguments(command: bytes) -> list[bytes]:
    """Of what follows the front."""
    assert command.startswith(FRONT)
    rest, found = command[len(FRONT) :], list[bytes]()
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        assert size[:1] == b"$"
        found.append(rest[: int(size[1:])])
        assert rest[int(size[1:]) :][:2] == b"\r\n"
        rest = rest[int(size[1:]) + 2 :]
    return found


# ---- strings -----------------------------------------------------------------------------------------------


@given(
    data, idles, st.integers(-(2**63), 2**63 - 1), st.binary(min_size=32, max_size=32), st.binary(max_size=90)
)
def test_a_string_is_the_last_use_the_tokens_and_a_record_bound_to_them(
    values: dict[str, Any], idle: int, used: int, tokens: bytes, key: bytes
) -> None:
    record, seed = record_with(values), crc32(key)
    made = stored_string(record, idle, used, tokens, seed)
    framed = codec.encode(record, idle=idle, bound_to=tokens, seed=seed)
    assert made.head == struct.pack("<q", used) + tokens + framed
    assert made.raw is made.head
    assert made.size == len(made.head)
    assert (made.record, made.alias, made.checks) == (record, None, None)
    assert (made.idle, made.used, made.tokens) == (idle, used, tokens)


def test_a_string_has_four_tokens() -> None:
    for tokens in (b"", bytes(31), bytes(33)):
        with pytest.raises(ValueError, match="four"):
            stored_string(record_with({}), 0, NOW, tokens, 0)


def test_what_is_stored_remotely_is_made_by_functions_only() -> None:
    with pytest.raises(TypeError):
        StoredRemote()


# ---- times -------------------------------------------------------------------------------------------------


@given(idles, idles, idles, moments, moments, st.one_of(st.just(NO_CAP), moments), clocks)
def test_a_key_lives_as_long_as_its_session_rounded_up(
    own: int, ttl: int, idle: int, now: int, used: int, cap: int, clock: Any
) -> None:
    found = stored_with(cap=cap, own=own, idle=idle).life(ttl, now, used, clock)
    longest = own or ttl or idle
    left = (min(used + longest, cap) if longest else cap) - now
    expected = min(-(-left // 10**6), 100 * 365 * 86400 * 1000)
    if expected > 0 and clock is not None:
        expected += 3600 * 1000
    assert found == max(expected, 0)


@given(idles, idles, st.integers(-120, 120), st.integers(-5, 120))
def test_a_use_does_for_a_while(own: int, ttl: int, age: int, cap: int) -> None:
    """A twentieth of the idle time, a minute at the most; and the session must live."""
    noted = NOW - age * 10**9
    stored = stored_with(cap=NOW + cap * 10**9, own=own)
    lasts = min((own or ttl) // 20, 60 * 10**9)
    assert use_lasts(own or ttl) == lasts
    assert stored.rests(noted, ttl, lambda: NOW / 10**9) == (0 <= NOW - noted < lasts and cap > 0)


def test_without_a_clock_the_wall_decides() -> None:
    stored = stored_with(cap=NO_CAP, own=3600 * 10**9)
    assert not stored.rests(0, 0, None)
    assert not stored_with(cap=1, own=3600 * 10**9).rests(NOW, 0, None)


# ---- versions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 5, 8, 9, 47, 48, 49, 200, 1031, 1032, 1033, 70_000])
def test_a_version_is_all_but_the_last_use_or_a_digest_of_it(size: int) -> None:
    """A digest has 40 bytes, and no whole version has."""
    raw = bytes(n % 251 for n in range(size))
    digest = hashlib.sha1(raw[8:], usedforsecurity=False).hexdigest().encode()
    assert string_version(raw) == (raw[8:] if 40 < size - 8 <= 1024 else digest)


# ---- attempts ----------------------------------------------------------------------------------------------


@given(data, data, st.sets(keys), st.booleans())
def test_an_attempt_shows_what_it_read_and_brings_what_comes_of_it(
    before: dict[str, Any], values: dict[str, Any], removed: set[str], cleared: bool
) -> None:
    stored = stored_string(record_with({**before, "here": 1}), 0, NOW, TOKENS, 99)
    delta = Delta(values, removed, cleared)
    made, command = string_attempt(stored, delta, b"newtoken", 10**10, lambda: NOW / 10**9, FRONT, b"key", 99)
    merged = delta.apply(stored.record, NOW, stored.record.cap)
    expected = None if merged is None else stored_string(merged, 10**10, NOW, b"newtoken" + TOKENS[:24], 99)
    head, life = (b"", b"0") if expected is None else (expected.head, b"%d" % (10_000 + 3_600_000))
    assert arguments(command) == [b"key", string_version(stored.head), head, life]
    assert (made is None) == (merged is None)
    if made is not None and merged is not None:
        assert made.head == head
        assert dict(made.record) == dict(merged)


def test_an_attempt_computes_and_refuses_like_the_delta() -> None:
    stored = stored_string(record_with({"n": 1}), 0, NOW, TOKENS, 0)

    def attempt(delta: Delta) -> StoredRemote | None:
        return string_attempt(stored, delta, b"newtoken", 0, None, FRONT, b"key", 0)[0]

    made = attempt(Delta.computing("n", lambda n: n + 1))
    assert made is not None and dict(made.record) == {"n": 2}
    with pytest.raises(NotSerializable):
        attempt(Delta({"n": object()}))
    with pytest.raises(SessionTooLarge):
        attempt(Delta({"n": "x" * 2000}, max_bytes=1000))


# ---- commands ----------------------------------------------------------------------------------------------


@given(st.lists(st.one_of(st.binary(max_size=2000), st.integers(-(2**70), 2**70)), max_size=6))
def test_parts_are_packed_with_their_lengths(parts: list[bytes | int]) -> None:
    texts = [part if isinstance(part, bytes) else b"%d" % part for part in parts]
    expected = b"".join([b"$%d\r\n%b\r\n" % (len(text), text) for text in texts])
    assert packed(b"front", tuple(parts), b"back") == b"front" + expected + b"back"


def test_a_part_is_bytes_or_an_int() -> None:
    for part in ("text", None, [1]):
        with pytest.raises(TypeError):
            packed(b"", (part,), b"")  # type: ignore[arg-type]
