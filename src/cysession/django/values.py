"""Keys and values that Django's JSON serializer would have taken, as what a storage keeps."""

from typing import Any

__all__ = ["plain", "plain_key"]


def plain_key(key: object) -> str:
    if isinstance(key, str):
        return str.__str__(key)
    raise TypeError(
        f"session keys are str, not {type(key).__name__}: Django's JSON serializer would give {key!r:.40} back as "
        "text in the next request; convert it yourself"
    )


def plain(value: Any) -> Any:
    """`value` without subclasses of the basic types; itself if it has none."""
    kind = type(value)
    if isinstance(value, dict):
        copy: Any = {plain(key): plain(item) for key, item in value.items()}
        same = kind is dict and all(a is b and value[b] is copy[a] for a, b in zip(copy, value, strict=False))
        return value if same else copy
    for base in (list, tuple, set, frozenset):
        if isinstance(value, base):
            copy = base(plain(item) for item in value)
            same = kind is base and all(a is b for a, b in zip(value, copy, strict=False))
            return value if same else copy
    if isinstance(value, str):
        return value if kind is str else str.__str__(value)
    if isinstance(value, int):
        return value if kind in (int, bool) else int.__int__(value)
    if isinstance(value, float):
        return value if kind is float else float.__float__(value)
    return value
