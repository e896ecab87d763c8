"""What do the bytes of a session cost, beside the serializers that peers use?

msgpack alone is the floor: the codec adds the header, the checksum and the types of its own. JSON cannot hold what a
session can (bytes, tuples, times); it is here because signed-cookie and Redis sessions of other libraries are JSON.
"""

import json
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from race import Race

from cysession import Record, codec

SMALL = {"uid": "u00000001", "name": "user number 000000001", "csrf": f"{1:032x}"}
CART = {**SMALL, "cart": [{"sku": f"sku-{n:04d}", "count": n, "price": 1.5 * n} for n in range(20)]}
NOTES = {
    "msgpack": "header, checksum, limits, sets, Decimals, times and UUIDs",
    "json": "header, checksum, limits, bytes, tuples, sets, times",
}
CALLS = 50
DATA = {"3 short strings": SMALL, "a cart of 20": CART}


def encoders(data: dict[str, Any]) -> dict[str, Callable[[], object]]:
    record = Record.build(data, 1, Record.NEVER)
    return {
        "cysession codec": lambda: codec.encode(record),
        "msgpack": lambda: msgpack.packb(data),
        "json": lambda: json.dumps(data, separators=(",", ":")).encode(),
    }


def decoders(data: dict[str, Any]) -> dict[str, Callable[[], object]]:
    encoded = codec.encode(Record.build(data, 1, Record.NEVER))
    packed, text = msgpack.packb(data), json.dumps(data).encode()
    return {
        "cysession codec": lambda: codec.decode(encoded),
        "msgpack": lambda: msgpack.unpackb(packed),
        "json": lambda: json.loads(text),
    }


def repeated(call: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        for _ in range(CALLS):
            call()

    return run


@pytest.mark.parametrize("size", DATA)
@pytest.mark.parametrize("way", [encoders, decoders], ids=["encode", "decode"])
def test_codec(race: Race, size: str, way: Callable[[Any], dict[str, Callable[[], object]]]) -> None:
    race(
        f"{way.__name__.removesuffix('rs')} {size}",
        {name: repeated(call) for name, call in way(DATA[size]).items()},
        operations=CALLS,
        notes=NOTES,
    )
