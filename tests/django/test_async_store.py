"""The async twins of SessionStore do what the others do, and wait where the storage waits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.conf import settings
from django.contrib.sessions.backends.base import CreateError, UpdateError
from django.contrib.sessions.exceptions import SessionInterrupted
from django.utils.safestring import mark_safe

from cysession import Manager, NotSerializable
from cysession.django import SessionStore
from cysession.testing import FakeClock
from tests.web.storages import WaitingStorage

Scene = Callable[[], Awaitable[None]]


async def stored(**data: Any) -> SessionStore:
    store = SessionStore()
    await store.aupdate(data)
    await store.asave()
    return again(store)


def again(store: SessionStore) -> SessionStore:
    return SessionStore(store.session_key)


async def kept(store: SessionStore) -> dict[str, Any]:
    return dict(await again(store).aitems())


async def reads_and_writes() -> None:
    store = await stored(a=1, b=[1])
    assert await store.aget("a") == 1 and await store.aget("c", "none") == "none"
    assert await store.ahas_key("a") and list(await store.akeys()) == ["a", "b"]
    assert list(await store.avalues()) == [1, [1]]
    assert store.accessed is True and store.modified is False
    await store.aset("c", 3)
    assert await store.apop("a") == 1 and await store.asetdefault("d", 4) == 4
    assert store.modified is True
    await store.asave()
    assert await kept(store) == {"b": [1], "c": 3, "d": 4}


async def changes_in_place() -> None:
    store = await stored(deep={"list": [1]})
    (await store.aget("deep"))["list"].append(2)
    assert store.modified is True
    await store.asave()
    assert await kept(store) == {"deep": {"list": [1, 2]}}


async def merges_by_key() -> None:
    one = await stored(a=1, b=1)
    other = again(one)
    await one.aset("a", 2)
    await other.aset("b", 2)
    await one.asave()
    await other.asave()
    assert await kept(one) == {"a": 2, "b": 2}


async def creates() -> None:
    store = SessionStore()
    await store.acreate()
    assert store.modified and await store.aexists(store.session_key)
    assert not await store.aexists("A" * 43) and not await store.aexists("../x")
    with pytest.raises(CreateError):
        await store.asave(must_create=True)
    named = SessionStore("chosen-by-the-server")
    await named.asave(must_create=True)
    assert named.session_key == "chosen-by-the-server" and await named.aexists(named.session_key)


async def drops_unknown_keys() -> None:
    store = SessionStore("A" * 43)
    assert await store.aget("a") is None and store.session_key is None
    await store.aset("a", 1)
    await store.asave()
    assert store.session_key != "A" * 43 and await kept(store) == {"a": 1}


async def never_brings_a_deleted_session_back() -> None:
    one = await stored(a=1)
    await one.aset("a", 2)
    await again(one).aflush()
    with pytest.raises(UpdateError):
        await one.asave()
    with pytest.raises(UpdateError):
        await again(one).asave()
    with pytest.raises(SessionInterrupted):
        await one.acycle_key()
    assert not await one.aexists(one.session_key)


async def cycles_keys() -> None:
    store = await stored(a=1)
    old = store.session_key
    await store.acycle_key()
    assert store.session_key != old and not await store.aexists(old)
    assert await kept(store) == {"a": 1}
    fresh = SessionStore()
    await fresh.aset("b", 1)
    await fresh.acycle_key()
    assert await kept(fresh) == {"b": 1}


async def flushes_and_deletes() -> None:
    store = await stored(a=1)
    key = store.session_key
    await store.aflush()
    assert store.session_key is None and store.is_empty() and not await store.aexists(key)
    other = await stored(a=1)
    await store.adelete(other.session_key)
    await store.adelete()
    assert not await other.aexists(other.session_key)


async def keeps_test_cookies() -> None:
    store = SessionStore()
    await store.aset_test_cookie()
    await store.asave()
    store = again(store)
    assert await store.atest_cookie_worked()
    await store.adelete_test_cookie()
    assert not await store.atest_cookie_worked()


async def takes_what_json_takes() -> None:
    store = await stored(a=1)
    await store.aset(mark_safe("safe"), [mark_safe("<b>")])
    await store.asave()
    assert await kept(store) == {"a": 1, "safe": ["<b>"]}
    with pytest.raises(TypeError, match="session keys are str"):
        await store.aset(1, "a")  # type: ignore[arg-type]
    await store.aset("bad", [object()])
    with pytest.raises(NotSerializable):
        await store.asave()


async def ends_at_once_with_an_expiry_in_the_past() -> None:
    store = await stored(a=1)
    await store.aset_expiry(-1)
    await store.asave()
    assert not await store.aexists(store.session_key)


async def is_unchanged_by_an_idle_save() -> None:
    store = await stored(a=1)
    await store.asave()
    assert await kept(store) == {"a": 1}


SCENES: list[Scene] = [
    *(reads_and_writes, changes_in_place, merges_by_key, creates, drops_unknown_keys),
    *(never_brings_a_deleted_session_back, cycles_keys, flushes_and_deletes, keeps_test_cookies),
    *(takes_what_json_takes, ends_at_once_with_an_expiry_in_the_past, is_unchanged_by_an_idle_save),
]


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
def test_an_async_session(manager: Manager, scene: Scene) -> None:
    asyncio.run(scene())  # type: ignore[arg-type]
    if isinstance(manager.storage, WaitingStorage):
        assert manager.storage.waits > 0


def test_async_expiry(manager: Manager, clock: FakeClock) -> None:
    async def run() -> None:
        store = await stored(a=1)
        assert await store.aget_expiry_age() == settings.SESSION_COOKIE_AGE
        await store.aset_expiry(timedelta(hours=1))
        await store.asave()
        assert await store.aget_expiry_age() == 3600
        assert await store.aget_expiry_date() == datetime.fromtimestamp(clock() + 3600, UTC)
        assert await store.aget_expire_at_browser_close() is False
        clock.advance(3601)
        assert not await store.aexists(store.session_key)
        late = again(store)
        assert await late.aget("a") is None and late.session_key is None
        await SessionStore.aclear_expired()

    asyncio.run(run())


def test_one_session_in_a_thread_and_on_the_loop(manager: Manager) -> None:
    """What an async view does under Django's own middleware, which runs in a thread."""

    async def run() -> None:
        store = await stored(n=0)
        for number in range(5):
            await store.aset("n", number)
            await asyncio.to_thread(store.save)
        assert await kept(store) == {"n": 4}

    asyncio.run(run())
