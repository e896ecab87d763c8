"""The user index: which sessions a user has, for "log out everywhere" and lists of devices.

One record a user, under a name that no client can present. It maps the locators of the user's sessions to the
time they were noted (seconds), and is only a hint: whose session a record is, the record itself says. So an entry
may be stale, but no session may be missing. Therefore a session is noted

    before its record first says whose it is    a crash in between leaves an entry, not an unknown session
    under its fresh id, before it is renamed    a log-out in between finds one of the two

and an entry goes only when its session is gone and it is older than those two steps can take. The index lives
longer than the sessions in it: whatever notes the use of a bound session renews it.

The algorithms are generators that ask for calls of the record protocol, ("load_record", name, ttl), and are sent
the answers: `run` makes the calls, `arun` awaits their async twins.
"""

import contextlib
from collections.abc import Generator, Iterable, Mapping
from typing import Any, Final, Protocol, TypeVar

from cysession._core import Delta, Record
from cysession.errors import SessionGone, StorageUnavailable

__all__ = ["USER_KEY", "arun", "find", "index_life", "index_name", "is_index", "note", "owned", "run"]

T = TypeVar("T")
Steps = Generator[tuple[Any, ...], Any, T]

USER_KEY: Final = "_bound_user"
"""The key of a session's data that names its user: what `Session.bind` sets."""

INDEX: Final = "@"  # what names of indexes begin with, and ids never do
SECOND: Final = 1_000_000_000
SETTLE: Final = 60  # seconds after which a session that was noted is there, or never will be
LOOKED_AT: Final = 4  # entries judged by each note: more than it adds, so an index cannot grow for ever
TRIES: Final = 8


class Store(Protocol):
    """What is asked of a storage at once; the rest is asked for by steps."""

    ttl: float

    def now_ns(self) -> int: ...
    def locator(self, session_id: str) -> str: ...


def index_name(user: str) -> str:
    """The name of a user's index record."""
    from hashlib import sha256  # here: see ids.storage_key

    return INDEX + sha256(b"cysession-user:" + user.encode("utf-8", "surrogatepass")).hexdigest()


def is_index(name: str) -> bool:
    return name.startswith(INDEX)


def index_life(ttl: int) -> int:
    """Idle ns of an index whose sessions have `ttl`. Their use is noted up to min(60 s, ttl / 20) late."""
    return 2 * ttl + 120 * SECOND


def owned(record: Record | None, user: str) -> bool:
    """Whether this is a live session of that user."""
    return record is not None and record.get(USER_KEY) == user


def note(storage: Store, user: str, session_id: str, ttl: int) -> Steps[None]:
    """Add a session to the user's index, and drop a few entries whose sessions are gone."""
    name, life = index_name(user), index_life(ttl)
    locator = storage.locator(session_id)
    index = yield "load_record", name, life
    gone: list[str] = []
    if index is not None:
        gone = yield from _dead(storage, user, list(index)[:LOOKED_AT], index, ttl)
    change = Delta({locator: storage.now_ns() // SECOND}, [entry for entry in gone if entry != locator])
    for _ in range(TRIES):
        if index is None:
            first = change.apply(None, storage.now_ns(), Record.NEVER)
            if (yield "create_record", name, first, life):
                return
        else:
            try:
                yield "commit_record", name, index, change, life
                return
            except SessionGone:
                pass
        index = yield "load_record", name, life
    raise StorageUnavailable(
        "the index of the user's sessions changes faster than it can be written; try again"
    )


def find(storage: Store, user: str) -> Steps[list[tuple[str, Record]]]:
    """(locator, record) of the user's live sessions. One that is being rotated may be there twice."""
    name, ttl = index_name(user), round(storage.ttl * SECOND)
    found: dict[str, Record] = {}
    seen: dict[str, object] = {}
    while True:  # until the index says nothing new: a session may have been renamed while we looked
        index = yield "peek_record", name, index_life(ttl)
        fresh = [] if index is None else [locator for locator in index if locator not in seen]
        if index is None or not fresh:
            break
        for locator in fresh:
            seen[locator] = index[locator]
            record = yield "peek_record", locator, ttl
            if owned(record, user):
                found[locator] = record
    for locator in seen:  # noted a moment ago and not there yet: it may be by now
        if locator not in found and not _settled(seen[locator], storage):
            record = yield "peek_record", locator, ttl
            if owned(record, user):
                found[locator] = record
    gone = [locator for locator in seen if locator not in found and _settled(seen[locator], storage)]
    if index is not None and gone:
        with contextlib.suppress(SessionGone):
            yield "commit_record", name, index, Delta(removed=gone), index_life(ttl)
    return list(found.items())


def _dead(
    storage: Store, user: str, locators: Iterable[str], index: Mapping[str, object], ttl: int
) -> Steps[list[str]]:
    gone = []
    for locator in locators:
        if _settled(index[locator], storage):
            record = yield "peek_record", locator, ttl
            if not owned(record, user):
                gone.append(locator)
    return gone


def _settled(noted: object, storage: Store) -> bool:
    return not isinstance(noted, int) or storage.now_ns() // SECOND - noted > SETTLE


# ---- making the calls -------------------------------------------------------------------------------------


def run(storage: Store, steps: Steps[T]) -> T:
    answer: Any = None
    failure: Exception | None = None
    while True:
        try:
            method, *args = steps.send(answer) if failure is None else steps.throw(failure)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        answer = failure = None
        try:
            answer = getattr(storage, method)(*args)
        except Exception as error:
            failure = error


async def arun(storage: Store, steps: Steps[T]) -> T:
    answer: Any = None
    failure: Exception | None = None
    while True:
        try:
            method, *args = steps.send(answer) if failure is None else steps.throw(failure)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        answer = failure = None
        try:
            answer = await getattr(storage, "a" + method)(*args)
        except Exception as error:
            failure = error
