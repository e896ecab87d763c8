"""The fuzz targets (tests/fuzz) themselves: their seeds are accepted, and what must not happen is found."""

import random
from collections.abc import Callable

import pytest

from cysession import codec

pytest.importorskip("cryptography")  # one of the targets is a sealed record
pytest.importorskip("hiredis")  # others are what Redis answers
from tests.fuzz import targets

SEEDS = list(targets.seeds())


@pytest.mark.parametrize("number", range(len(SEEDS)))
def test_every_seed_is_accepted_by_its_target(number: int) -> None:
    seed = SEEDS[number]
    targets.TARGETS[seed[0]](seed[1:])  # run() would also take CorruptRecord for an answer


def test_the_seeds_reach_every_target() -> None:
    assert {seed[0] for seed in SEEDS} == set(range(len(targets.TARGETS)))


def damaged(seed: bytes, dice: random.Random) -> bytes:
    """One to three bytes changed, left out or doubled; the first, which chooses the target, stays."""
    data = bytearray(seed)
    for _ in range(dice.randint(1, 3)):
        at = dice.randrange(1, len(data))
        how = dice.randrange(4)
        if how == 0:
            data[at] ^= 1 << dice.randrange(8)
        elif how == 1:
            data[at] = dice.choice((0, 0x7F, 0x80, 0xC0, 0xC7, 0xD9, 0xDC, 0xFF))
        elif how == 2:
            del data[at:]
        else:
            data[at:at] = data[at : at + dice.randint(1, 8)]
        if len(data) < 2:
            break
    return bytes(data)


def test_Z7_damaged_records_raise_nothing_but_CorruptRecord() -> None:
    dice = random.Random(4)
    for _ in range(5_000):
        targets.run(damaged(dice.choice(SEEDS), dice))


def leaking(data: bytes) -> object:
    raise ValueError("not caught by the decoder")


def accepting(data: bytes, context: bytes) -> bytes:
    return codec.pack({"user": "somebody else"})


@pytest.mark.parametrize(
    ("place", "name", "broken", "found"),
    [(codec, "_unpack", leaking, ValueError), (targets.SEALER, "open", accepting, AssertionError)],
)
def test_a_decoder_that_is_broken_is_found(
    monkeypatch: pytest.MonkeyPatch,
    place: object,
    name: str,
    broken: Callable[..., object],
    found: type[Exception],
) -> None:
    monkeypatch.setattr(place, name, broken)
    with pytest.raises(found):
        for seed in SEEDS:
            targets.run(seed)
