"""How many sessions there are, how large and how old; one user's sessions.

Nothing that is printed lets anybody use a session. A user's sessions are named by their handles, which `revoke` takes.
"""

import argparse
import heapq
import itertools
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Final

from cysession import Manager, SessionInfo
from cysession.errors import NotSupported
from cysession.ids import well_formed
from cysession.storage import Storage, Summary

from .numbers import natural, positive
from .output import Output, ago, count, duration, size, table
from .target import add_target, learn_ttl, opened, shown, user

__all__ = ["add_to", "run"]

MINUTE, HOUR, DAY = 60, 3600, 86400
AGES: Final = (
    (MINUTE, "a minute"),
    (HOUR, "an hour"),
    (DAY, "a day"),
    (7 * DAY, "a week"),
    (30 * DAY, "30 days"),
)
SIZES: Final = ((256, "256 B"), (1024, "1 KiB"), (4096, "4 KiB"), (65536, "64 KiB"))


def add_to(parser: argparse.ArgumentParser) -> None:
    add_target(parser)
    parser.add_argument(
        "--user", type=user, metavar="USER", help="this user's sessions, as bound with Session.bind(user)"
    )
    parser.add_argument(
        "--keys", action="store_true", help="with --user: also the names of the keys in each session"
    )
    parser.add_argument(
        "--values", action="store_true", help="with --user: also what is stored; mind who looks on"
    )
    parser.add_argument("--limit", type=positive, metavar="N", help="look at no more than N sessions")
    parser.add_argument(
        "--largest", type=natural(), default=0, metavar="N", help="name the N largest by their locators"
    )


def run(args: argparse.Namespace, output: Output) -> int:
    with opened(args.storage) as manager:
        if args.user is not None:
            return _user(manager, args, output)
        return _all(manager.storage, args, output)


# ---- all sessions -------------------------------------------------------------------------------------------


def _all(storage: Storage, args: argparse.Namespace, output: Output) -> int:
    census = Census(args.largest)
    for summary in output.track(itertools.islice(storage.scan(), args.limit), "sessions"):
        if well_formed(summary.locator):  # an id, which nobody is to see
            summary = summary._replace(locator=storage.fingerprint(summary.locator))
        census.add(summary)
    data = {"storage": shown(args.storage), "limited": census.sessions == args.limit, **census.as_dict()}
    output.result(data, census.lines(shown(args.storage)))
    return 0


class Census:
    """Adds summaries up, in a memory that does not grow with their number."""

    def __init__(self, largest: int = 0) -> None:
        self.now = time.time()
        self.sessions = self.bound = self.bytes = self.biggest = self.sealed = 0
        self.oldest: float | None = None
        self.next_end: float | None = None
        self.ages = Counter[str]()
        self.uses = Counter[str]()
        self.sizes = Counter[str]()
        self._keep = largest
        self._largest: list[tuple[int, str]] = []

    def add(self, one: Summary) -> None:
        self.sessions += 1
        self.bound += bool(one.bound)
        self.sealed += one.bound is None
        self.bytes += one.size
        self.biggest = max(self.biggest, one.size)
        self.oldest = one.created_at if self.oldest is None else min(self.oldest, one.created_at)
        if one.expires_at is not None:
            self.next_end = one.expires_at if self.next_end is None else min(self.next_end, one.expires_at)
        self.ages[_bin(self.now - one.created_at, AGES)] += 1
        self.sizes[_bin(one.size, SIZES)] += 1
        if one.used_at is not None:
            self.uses[_bin(self.now - one.used_at, AGES)] += 1
        if self._keep:
            push = heapq.heappush if len(self._largest) < self._keep else heapq.heappushpop
            push(self._largest, (one.size, one.locator))

    def as_dict(self) -> dict[str, Any]:
        return {
            "sessions": self.sessions,
            "bound_to_users": None if self.sealed else self.bound,
            "bytes": self.bytes,
            "largest_bytes": self.biggest,
            "oldest_seconds": None if self.oldest is None else round(self.now - self.oldest, 3),
            "next_expiry_seconds": None if self.next_end is None else round(self.next_end - self.now, 3),
            "created_within": _told(self.ages, AGES),
            "used_within": _told(self.uses, AGES) if self.uses else None,
            "size_up_to": _told(self.sizes, SIZES),
            "largest": [{"bytes": number, "locator": name} for number, name in self.largest()],
        }

    def largest(self) -> list[tuple[int, str]]:
        return sorted(self._largest, reverse=True)

    def lines(self, storage: str) -> Iterator[str]:
        bound = "unknown: encrypted" if self.sealed else count(self.bound)
        yield f"{storage}: {count(self.sessions)} sessions, {size(self.bytes)}"
        if not self.sessions:
            return
        yield f"bound to users  {bound}"
        yield f"size            {size(self.bytes / self.sessions)} on average, {size(self.biggest)} the largest"
        yield f"oldest          began {ago(None if self.oldest is None else self.now - self.oldest)}"
        if self.next_end is not None:
            yield f"next to expire  in {duration(max(0.0, self.next_end - self.now))}"
        yield ""
        rows = [["", "began", "last used"]]
        for _, label in (*AGES, (0, "longer")):
            within = f"within {label}" if label != "longer" else "longer ago"
            rows.append([within, count(self.ages[label]), count(self.uses[label]) if self.uses else "-"])
        yield from table(rows)
        yield ""
        labels = [label for _, label in SIZES]
        rows = [["size", "sessions"], *([f"up to {label}", count(self.sizes[label])] for label in labels)]
        yield from table([*rows, ["larger", count(self.sizes["longer"])]])
        if self._largest:
            yield ""
            yield from table(
                [["largest", "size"], *([name, size(number)] for number, name in self.largest())]
            )


def _bin(value: float, bounds: Iterable[tuple[int, str]]) -> str:
    return next((label for bound, label in bounds if value <= bound), "longer")


def _told(counts: Counter[str], bounds: Iterable[tuple[int, str]]) -> dict[str, int]:
    """Counts by the bin's upper bound, in seconds or bytes."""
    return {**{str(bound): counts[label] for bound, label in bounds}, "more": counts["longer"]}


# ---- one user's ---------------------------------------------------------------------------------------------


def _user(manager: Manager, args: argparse.Namespace, output: Output) -> int:
    learn_ttl(manager.storage, args.user)
    rows = [_described(manager, info, locator) for info, locator in _sessions(manager, args.user)]
    for row in rows:
        row["keys"] = len(row["data"])
        if args.keys or args.values:
            row["key_names"] = sorted(row["data"])
        if not args.values:
            del row["data"]
    output.result({"storage": shown(args.storage), "user": args.user, "sessions": rows}, _lines(rows, args))
    return 0


def _sessions(manager: Manager, user: str) -> Iterator[tuple[SessionInfo, str]]:
    locators = {record.handle: locator for locator, record in manager.storage.user_sessions(user)}
    for info in manager.sessions_of(user):
        yield info, locators.get(info.handle, "")


def _described(manager: Manager, info: SessionInfo, locator: str) -> dict[str, Any]:
    now, summary = time.time(), None
    if locator:
        try:
            summary = manager.storage.summary(locator)
        except NotSupported:
            summary = None
    used = None if summary is None or summary.used_at is None else now - summary.used_at
    ends = None if summary is None or summary.expires_at is None else summary.expires_at - now
    return {
        "handle": info.handle,
        "age_seconds": round(now - info.created_at, 3),
        "used_seconds_ago": None if used is None else round(used, 3),
        "expires_in_seconds": None if ends is None else round(ends, 3),
        "bytes": info.data.size if summary is None else summary.size,
        "data": info.data.to_dict(),
    }


def _lines(rows: list[dict[str, Any]], args: argparse.Namespace) -> Iterator[str]:
    if not rows:
        yield "no live session is bound to this user"
        return
    cells = [["handle", "began", "last used", "expires in", "size", "keys"]]
    for row in rows:
        cells.append(
            [
                row["handle"],
                ago(row["age_seconds"]),
                ago(row["used_seconds_ago"]),
                duration(row["expires_in_seconds"]),
                size(row["bytes"]),
                str(row["keys"]),
            ]
        )
    yield from table(cells)
    for row in rows if args.keys or args.values else ():
        yield ""
        yield row["handle"]
        for key in row["key_names"]:
            name = (
                key if key.isprintable() else repr(key)
            )  # whoever chose it: no control codes for this terminal
            yield f"  {name} = {row['data'][key]!r}" if args.values else f"  {name}"
