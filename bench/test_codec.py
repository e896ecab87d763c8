"""What do the bytes of a session cost? The codec beside the serializers that peers use, and drawing an id.

msgpack alone is the floor: the codec adds the header, the checksum and the types of its own. JSON cannot hold what a
session can (bytes, tuples, times); it is here because signed-cookie and Redis sessions of other libraries are JSON.
"""

import json
import secrets
import uuid
from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from cysession import Record, codec
from cysession.ids import new_id, storage_key

SMALL = {"uid": "u00000001", "name": "user number 000000001", "csrf": f"{1:032x}"}
CART = {**SMALL, "cart": [{"sku": f"sku-{n:04d}", "count": n, "price": 1.5 * n} for n in range(20)]}
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


@pytest.mark.parametrize("size", DATA)
@pytest.mark.parametrize("kind", ["cysession codec", "msgpack", "json"])
def test_encode(benchmark: Any, size: str, kind: str) -> None:
    benchmark.group, benchmark.name = f"codec: encode {size}", kind
    benchmark(encoders(DATA[size])[kind])


@pytest.mark.parametrize("size", DATA)
@pytest.mark.parametrize("kind", ["cysession codec", "msgpack", "json"])
def test_decode(benchmark: Any, size: str, kind: str) -> None:
    benchmark.group, benchmark.name = f"codec: decode {size}", kind
    benchmark(decoders(DATA[size])[kind])


@pytest.mark.parametrize("kind", ["cysession new_id", "secrets.token_urlsafe", "uuid4"])
def test_id(benchmark: Any, kind: str) -> None:
    benchmark.group, benchmark.name = "ids: drawing one", kind
    benchmark(
        {
            "cysession new_id": new_id,
            "secrets.token_urlsafe": lambda: secrets.token_urlsafe(32),
            "uuid4": uuid.uuid4,
        }[kind]
    )


def test_storage_key(benchmark: Any) -> None:
    benchmark.group, benchmark.name = "ids: the name in a storage", "cysession storage_key"
    benchmark(storage_key, new_id())
