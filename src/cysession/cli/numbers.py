"""Numbers among the arguments: what is out of range is a wrong argument, said by argparse."""

import argparse
import math
from collections.abc import Callable
from typing import Final

__all__ = ["LAST_PORT", "natural", "positive", "seconds"]

LAST_PORT: Final = 65535


def natural(most: int | None = None) -> Callable[[str], int]:
    """0, 1, 2 ... up to `most`."""

    def parse(text: str) -> int:
        value = int(text) if text.isascii() and text.isdigit() else -1
        if value < 0 or (most is not None and value > most):
            raise argparse.ArgumentTypeError(
                f"{text!r:.20} is no number from 0 {f'to {most}' if most else 'on'}"
            )
        return value

    return parse


def positive(text: str) -> int:
    if not (value := natural()(text)):
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def seconds(text: str) -> float:
    """More than nothing, and an end."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r:.20} is no number of seconds above 0")
    return value
