"""Remove what has expired.

Servers clean up by themselves while they run; this is for a timer where none runs for long, and for the moment before
a backup. It is harmless beside running servers: one process of a host sweeps at a time.
"""

import argparse
import time

from .numbers import seconds
from .output import Output, count, duration
from .target import add_target, opened, shown

__all__ = ["add_to", "run"]


def add_to(parser: argparse.ArgumentParser) -> None:
    add_target(parser)
    parser.add_argument(
        "--seconds", type=seconds, metavar="S", help="stop after about this long (default: when done)"
    )


def run(args: argparse.Namespace, output: Output) -> int:
    begun = time.monotonic()
    with opened(args.storage) as manager:
        removed = manager.storage.sweep(args.seconds)
    took = time.monotonic() - begun
    output.result(
        {"storage": shown(args.storage), "removed": removed, "seconds": round(took, 3)},
        [f"removed {count(removed)} in {duration(took)}"],
    )
    return 0
