"""The codec's payloads written by msgpack and a little Python: what the compiled encoder is compared with."""

from typing import Any

import msgpack

from cysession import codec

__all__ = ["packed"]

MARKS = {tuple: b"t", set: b"s", frozenset: b"f"}


def packed(value: object) -> bytes:
    made: bytes = msgpack.packb(value, default=_extended, strict_types=True)
    return made


def _extended(value: Any) -> object:
    kind = type(value)
    if kind in MARKS:
        members = sorted(value, key=packed) if kind is not tuple else value
        return [msgpack.ExtType(codec.EXT_CONTAINER, MARKS[kind]), *members]
    return msgpack.ExtType(*codec._to_ext(value))
