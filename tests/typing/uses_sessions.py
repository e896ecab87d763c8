"""A program as users write it: each line of it has to pass both type checkers, and reveal what it says."""

from collections.abc import Iterator, Mapping, MutableMapping
from datetime import timedelta
from typing import Any, assert_type

from cysession import (
    Event,
    FileStorage,
    Manager,
    MemoryStorage,
    Record,
    Session,
    SessionGone,
    SessionInfo,
    Stats,
)

manager = Manager(timedelta(hours=1), MemoryStorage(max_sessions=1000), max_age=86400, clock=lambda: 0.0)
by_url: Manager = Manager.from_url("file:///tmp/sessions", ttl=60)
files = Manager(storage=FileStorage("sessions"))


def sync_use(token: str | None) -> str:
    with manager.new(token) as session:
        assert_type(session, Session)
        visits: int = session.get("visits", 0)
        session["visits"] = visits + 1
        session.setdefault("cart", []).append("tea")
        session.set_map({"a": 1, "b": [None, 2.5, b"bytes"]})
        session.update({"c": (1, 2)}, d={"x"})
        session.remove("a", "b")
        removed: object = session.pop("gone", None)
        assert_type(session.get_map(), dict[str, Any])
        assert_type("visits" in session, bool)
        assert_type(session.is_new, bool)
        assert_type(session.created_at, float | None)
        assert_type(session.expires_at, float | None)
        session.ttl = 60
        session.ttl = timedelta(days=1)
        session.bind("anna")
        assert_type(session.user, str | None)
        assert_type(session.modify("count", lambda old: int(old) + 1, 0), int)
        assert_type(session.regenerate_id(), str)
        assert_type(session.regenerate_id(delete_old=False), str)
        for key in session:
            assert_type(key, str)
        del session["visits"]
        return session.id if removed is None else ""


async def async_use(token: str) -> None:
    async with manager.new(token) as session:
        assert_type(session, Session)
        await session.aload()
        total = await session.amodify("total", lambda old: float(old) + 0.5, 0.0)
        assert_type(total, float)
        await session.asave()
        assert_type(await session.aregenerate_id(), str)
        await session.adestroy()
    for info in await manager.asessions_of("anna"):
        assert_type(info, SessionInfo)
        assert_type(info.handle, str)
        assert_type(info.data, Record)
    assert_type(await manager.arevoke("anna", keep=None), int)


def takes_mappings(session: Session, record: Record) -> tuple[MutableMapping[str, Any], Mapping[str, Any]]:
    """A session can go wherever a mutable mapping can, a record wherever a mapping can."""
    return session, record


@manager.on("created")
def noted(event: Event) -> None:
    assert_type(event.kind, str)
    assert_type(event.user, str | None)


def gone(error: Exception) -> Iterator[str]:
    if isinstance(error, SessionGone):
        yield str(error)


stats: Stats = manager.stats()
assert_type(stats["created"], int)
assert_type(manager.revoke("anna"), int)
