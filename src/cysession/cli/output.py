"""What the commands print: results as text or JSON on stdout, progress and errors on stderr.

rich is used where it is installed and a person is watching; without it the text is the same and the bars are missing.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar

__all__ = ["Output", "ago", "count", "duration", "size", "table"]

T = TypeVar("T")

BAR_AFTER: Final = 0.5  # seconds of work before a bar is worth showing


class Output:
    """Where a command's result goes.

    Args:
        as_json: one JSON document on stdout in place of text.
        quiet: no progress.
    """

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet

    def result(self, data: Mapping[str, Any], text: Iterable[str]) -> None:
        """The whole result: `data` as JSON, or the lines of `text`."""
        if self.as_json:
            print(json.dumps(data, indent=2, default=str))
        else:
            for line in text:
                print(line)
        sys.stdout.flush()

    def step(self, data: Mapping[str, Any], text: str) -> None:
        """One of many results, as soon as it is there: a line of JSON, or one of text."""
        print(json.dumps(data, default=str) if self.as_json else text, flush=True)

    def note(self, text: str) -> None:
        """For the person who is watching; never part of the result."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def track(self, items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
        """The items, with a bar on stderr if somebody watches and rich is there."""
        bar = None if self.quiet or not sys.stderr.isatty() else _bar(what, total)
        if bar is None:
            yield from items
            return
        with bar:
            yield from bar.track(items, total=total, description=what)


class _Bar(Protocol):
    def __enter__(self) -> "_Bar": ...
    def __exit__(self, *_: object) -> object: ...
    def track(self, items: Iterable[T], *, total: float | None, description: str) -> Iterator[T]: ...


def _bar(what: str, total: int | None) -> _Bar | None:
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    except ModuleNotFoundError:
        return None
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bar: Any = Progress(*columns, console=Console(stderr=True), transient=True)
    return bar  # type: ignore[no-any-return]


# ---- figures for people -------------------------------------------------------------------------------------


def count(number: float) -> str:
    return f"{number:,.0f}"


def size(number: float) -> str:
    """Bytes: "312 B", "1.4 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1000 or unit == "GiB":
            return f"{number:.0f} {unit}" if unit == "B" or number >= 100 else f"{number:.1f} {unit}"
        number /= 1024
    raise AssertionError  # unreachable


def duration(seconds: float | None) -> str:
    """The two largest units: "3 d 4 h", "12 min", "0.2 s"; "-" for None."""
    if seconds is None:
        return "-"
    if seconds < 0:
        return f"-{duration(-seconds)}"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    parts = [(whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "min"), (whole % 60, "s")]
    first = next(place for place, (number, _) in enumerate(parts) if number)
    return " ".join(f"{number} {unit}" for number, unit in parts[first : first + 2] if number)


def ago(seconds: float | None) -> str:
    return "-" if seconds is None else f"{duration(seconds)} ago"


def table(rows: Sequence[Sequence[str]], *, left: int = 1, head: bool = True) -> Iterator[str]:
    """Rows of cells as lines: the first `left` columns to the left, the others to the right; a line below the head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for number, row in enumerate(rows):
        cells = [
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
        if head and number == 0:
            yield "  ".join("-" * width for width in widths)
