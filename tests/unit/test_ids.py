"""Ids: unpredictable (S1, V1), checked before use (S4, V3), never stored or logged as they are (S20, S21)."""

import os
import subprocess
import sys
import time
from base64 import urlsafe_b64decode
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cysession import ids

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # these tests fork beside threads

SAFE = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def test_S1_a_fresh_id_is_43_url_safe_characters_and_well_formed() -> None:
    for _ in range(1000):
        session_id = ids.new_id()
        assert len(session_id) == 43 and set(session_id) <= set(SAFE) and ids.well_formed(session_id)


def test_S1_ids_never_repeat_and_have_no_fixed_column() -> None:
    made = [ids.new_id() for _ in range(20_000)]
    assert len(set(made)) == len(made)
    for column in range(42):  # the last character carries only 4 bits
        counts = Counter(session_id[column] for session_id in made)
        expected = len(made) / 64
        chi2 = sum((counts[c] - expected) ** 2 / expected for c in SAFE)
        assert chi2 < 150, column  # 63 degrees of freedom: p = 1e-9 per column


def test_S2_an_id_says_nothing_of_when_where_or_for_whom_it_was_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Drawn one after the other by one process while the clock stands still: half of all bits differ all the same."""
    for name in ("time", "time_ns", "monotonic", "monotonic_ns"):
        monkeypatch.setattr(time, name, lambda: 0)
    drawn = [int.from_bytes(urlsafe_b64decode(ids.new_id() + "="), "big") for _ in range(1001)]
    apart = sum((a ^ b).bit_count() for a, b in pairwise(drawn)) / 1000
    assert 126 < apart < 130  # of 256 bits; a mean of 1,000 has a standard deviation of 0.25


def test_V1_a_failing_random_generator_raises_and_has_no_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(size: int) -> bytes:
        raise OSError("no entropy")

    monkeypatch.setattr(os, "urandom", broken)
    with pytest.raises(OSError, match="no entropy"):
        ids.new_id()


def test_S1_two_forked_children_never_share_an_id() -> None:
    readers = []
    for _ in range(2):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(write, "\n".join(ids.new_id() for _ in range(100)).encode())
            os._exit(0)
        os.close(write)
        os.waitpid(pid, 0)
        readers.append(set(os.read(read, 65536).decode().split()))
        os.close(read)
    assert len(readers[0]) == len(readers[1]) == 100 and not readers[0] & readers[1]


@pytest.mark.parametrize(
    "bad",
    ["", "a" * 129, "../x", "..\\x", "/abs", "a/b", "a.b", "a b", "a\n", "\na", "a\0b", "*",
     "a\r\nSet-Cookie: x", "%2e%2e", "é", "١٢٣", "a\ud800", b"abc", None, 7, ["a"]],
)  # fmt: skip
def test_S4_anything_but_1_to_128_safe_characters_is_not_an_id(bad: object) -> None:
    assert ids.well_formed(bad) is False


@given(st.text())
def test_S4_the_grammar_holds_for_any_text(text: str) -> None:
    assert ids.well_formed(text) == (0 < len(text) <= 128 and set(text) <= set(SAFE))


# "#" marks a locator, which already holds the key. It is no character of ids, so no client can present one.
IDS = st.text().filter(lambda text: not text.startswith("#"))


@given(IDS, st.text())
def test_V3_a_storage_key_is_64_hex_digits_whatever_comes_in(session_id: str, realm: str) -> None:
    key = ids.storage_key(session_id, realm)
    assert len(key) == 64 and set(key) <= set("0123456789abcdef")


@given(IDS, st.text(), IDS, st.text())
def test_V13_realms_never_share_a_key(id_a: str, realm_a: str, id_b: str, realm_b: str) -> None:
    same = ids.storage_key(id_a, realm_a) == ids.storage_key(id_b, realm_b)
    assert same == ((id_a, realm_a) == (id_b, realm_b))


def test_a_storage_key_never_changes_between_releases() -> None:
    plain, shop = ids.storage_key("A" * 43), ids.storage_key("A" * 43, "shop")
    assert plain == "9dae8a3cfdff6ed34a69068cfa0ff8620ef74a2ce45a47c90d90268b336b0254"
    assert shop == "2b193f2649f0b0be7f12d2402549bf361cf7b0d876f0352808319d30f85c675d"


def test_S20_a_fingerprint_is_short_stable_here_and_unrelated_elsewhere() -> None:
    session_id = ids.new_id()
    mark = ids.fingerprint(session_id)
    assert len(mark) == 8 and mark == ids.fingerprint(session_id) and mark != ids.fingerprint(ids.new_id())
    code = f"from cysession.ids import fingerprint; print(fingerprint({session_id!r}))"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(there.stdout.strip()) == 8 and there.stdout.strip() != mark
