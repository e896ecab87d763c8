"""What only ASGI has: messages in order, websockets, cancellation, event loops; no client library."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import subprocess
import sys
import threading
import warnings
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from cysession import (
    Manager,
    MemoryStorage,
    Session,
    SessionClosed,
    StorageMisconfigured,
    StorageUnavailable,
)
from cysession.asgi import SessionMiddleware
from cysession.testing import FakeClock
from tests.web.sites import Reply, call, cookie, http_scope
from tests.web.storages import DictStorage, DirectStorage, WaitingStorage

Message = dict[str, Any]
START: Message = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}
BODY: Message = {"type": "http.response.body", "body": b"ok"}


@pytest.fixture(params=[MemoryStorage, DirectStorage, WaitingStorage])
def manager(request: pytest.FixtureRequest) -> Manager:
    return Manager(3600, request.param())


def live(manager: Manager, **data: Any) -> str:
    session = manager.new()
    session.set_map(data or {"n": 1})
    session.save()
    return session.id


async def respond(send: Any) -> None:
    await send(START)
    await send(BODY)


# -- the response -----------------------------------------------------------------------------------------


def test_R3_the_commit_comes_before_the_first_message_to_the_server(manager: Manager) -> None:
    seen: list[object] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["session"]["n"] = 1
        await respond(send)

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            session_id = (
                dict(message["headers"])[b"set-cookie"].partition(b"=")[2].partition(b";")[0].decode()
            )
            seen.append(manager.new(session_id).get("n"))

    asyncio.run(SessionMiddleware(app, manager)(http_scope(), never, send))
    assert seen == [1]


def test_R3_a_write_after_the_headers_raises_and_is_never_lost_silently(manager: Manager) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        session = scope["session"]
        session["n"] = 2
        await send(START)
        assert session["n"] == 2  # reading goes on
        for write in (
            lambda: session.set("late", 1),
            session.clear,
            lambda: session.pop("n"),
            session.regenerate_id,
        ):
            with pytest.raises(SessionClosed):
                write()
        await send(BODY)

    session_id = live(manager)
    assert asyncio.run(call(SessionMiddleware(app, manager), cookie(session_id))).status == 200
    assert manager.new(session_id).get_map() == {"n": 2}


def test_R3_S15_a_first_look_after_the_headers_raises(manager: Manager) -> None:
    """Vary has not been sent, so even a read could give one user's page to another."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        if not manager.storage.does_io:  # else the middleware has read it
            with pytest.raises(SessionClosed):
                scope["session"].get("n")
        with pytest.raises(SessionClosed):
            scope["session"]["n"] = 2
        await send(BODY)

    session_id = live(manager)
    assert asyncio.run(call(SessionMiddleware(app, manager), cookie(session_id))).cookies == []
    assert manager.new(session_id)["n"] == 1


def test_R3_every_chunk_of_a_stream_passes_untouched(manager: Manager) -> None:
    chunks = [{"type": "http.response.body", "body": b"%d" % n, "more_body": n < 4} for n in range(5)]
    trailer = {"type": "http.response.trailers", "headers": [], "more_trailers": False}
    sent: list[Message] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["session"]["n"] = 1
        await send({"type": "http.response.debug", "info": {}})
        await send(START)
        for message in (*chunks, trailer):
            await send(message)

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(SessionMiddleware(app, manager)(http_scope(), never, send))
    assert sent[0] == {"type": "http.response.debug", "info": {}}
    assert all(a is b for a, b in zip(sent[2:], [*chunks, trailer], strict=True))


def test_R3_server_sent_events_change_the_session_through_a_handle_of_their_own(manager: Manager) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        session_id = scope["session"].id
        await send(START)
        for number in range(3):
            async with manager.new(session_id) as session:
                await session.aload()
                session["n"] += 1
            await send({**BODY, "body": b"data: %d\n\n" % number, "more_body": number < 2})

    session_id = live(manager)
    reply = asyncio.run(call(SessionMiddleware(app, manager), cookie(session_id)))
    assert reply.body.count(b"data:") == 3 and manager.new(session_id)["n"] == 4


def test_the_messages_and_headers_of_the_app_are_not_changed(manager: Manager) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["session"]["n"] = 1
        await respond(send)

    before = {**START, "headers": list(START["headers"])}
    for _ in range(3):
        reply = asyncio.run(call(SessionMiddleware(app, manager)))
        assert len(reply.cookies) == 1 and before == START


def test_headers_may_be_missing_or_any_iterable(manager: Manager) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["session"]["n"] = 1
        start = {"type": "http.response.start", "status": 200}
        if scope["path"] == "/generator":
            start["headers"] = ((b"x-%d" % n, b"v") for n in range(2))
        await send(start)
        await send(BODY)

    assert len(asyncio.run(call(SessionMiddleware(app, manager))).cookies) == 1
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(SessionMiddleware(app, manager)(http_scope(path="/generator"), never, send))
    assert [name for name, _ in sent[0]["headers"]][:2] == [b"x-0", b"x-1"]


def test_unknown_scopes_pass_through(manager: Manager) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope, receive, send))

    scope = {"type": "surprise"}
    asyncio.run(SessionMiddleware(app, manager)(scope, never, respond))
    assert scope == {"type": "surprise"} and seen == [(scope, never, respond)]


# -- start and stop ---------------------------------------------------------------------------------------


class HouseStorage(DictStorage):
    """Notes in `diary` when it is read and closed."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.error = error
        self.diary: list[str] = []

    async def aload_record(self, *args: Any) -> Any:
        self.diary.append("storage reads")
        if self.error is not None:
            raise self.error
        return await super().aload_record(*args)

    async def aclose(self) -> None:
        self.diary.append("storage closes")
        if isinstance(self.error, OSError):
            raise self.error


def serve(app: Any, storage: HouseStorage, **options: Any) -> list[Message]:
    """What a server does at its start and its stop, with an app that may say no."""
    sent: list[Message] = []
    turns = iter(["lifespan.startup", "lifespan.shutdown"])

    async def receive() -> Message:
        message = {"type": next(turns)}
        storage.diary.append(f"server: {message['type']}")
        return message

    async def send(message: Message) -> None:
        sent.append(message)
        storage.diary.append(f"to server: {message['type']}")

    middleware = SessionMiddleware(app, Manager(3600, storage), **options)
    asyncio.run(middleware({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send))
    return sent


def house(storage: HouseStorage) -> Any:
    """An app with a start and a stop of its own."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for step in ("startup", "shutdown"):
            assert (await receive())["type"] == f"lifespan.{step}"
            storage.diary.append(f"app: {step}")
            await send({"type": f"lifespan.{step}.complete"})

    return app


def test_the_storage_is_up_before_the_app_and_closed_after_it() -> None:
    storage = HouseStorage()
    serve(house(storage), storage)
    assert storage.diary == [
        "server: lifespan.startup",
        "storage reads",
        "app: startup",
        "to server: lifespan.startup.complete",
        "server: lifespan.shutdown",
        "app: shutdown",
        "storage closes",
        "to server: lifespan.shutdown.complete",
    ]


@pytest.mark.parametrize("refusal", [KeyError("session"), AssertionError("http only"), None])
def test_an_app_without_a_lifespan_gets_its_storage_closed_too(refusal: Exception | None) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if refusal is not None:
            raise refusal

    storage = HouseStorage()
    serve(app, storage)
    assert storage.diary == [
        "server: lifespan.startup",
        "storage reads",
        "to server: lifespan.startup.complete",
        "server: lifespan.shutdown",
        "storage closes",
        "to server: lifespan.shutdown.complete",
    ]


def test_an_app_that_fails_to_start_is_reported_by_itself() -> None:
    async def raises(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        raise LookupError("no database")

    async def reports(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    storage = HouseStorage()
    with pytest.raises(LookupError):
        serve(raises, storage)
    assert not any("to server" in entry for entry in storage.diary)
    storage = HouseStorage()
    assert serve(reports, storage) == [{"type": "lifespan.startup.failed", "message": "no database"}]
    assert storage.diary[-2:] == ["storage closes", "to server: lifespan.startup.failed"]


def test_R24_a_misconfigured_storage_stops_the_start() -> None:
    storage = HouseStorage(StorageMisconfigured("wrong password for the session storage"))
    (message,) = serve(house(storage), storage)
    assert message["type"] == "lifespan.startup.failed" and "wrong password" in message["message"]
    assert "app: startup" not in storage.diary


def test_R20_a_storage_that_is_down_at_the_start_may_come_up_later(caplog: pytest.LogCaptureFixture) -> None:
    storage = HouseStorage(StorageUnavailable("connection refused"))
    sent = serve(house(storage), storage)
    assert [message["type"] for message in sent] == [
        "lifespan.startup.complete",
        "lifespan.shutdown.complete",
    ]
    assert "does not answer at start-up: connection refused" in caplog.text


def test_a_storage_that_cannot_be_closed_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    storage = HouseStorage()
    storage.aload_record = DictStorage.aload_record.__get__(storage)  # type: ignore[method-assign]
    storage.error = OSError("disk full")
    sent = serve(house(storage), storage)
    assert sent[-1] == {"type": "lifespan.shutdown.failed", "message": "sessions: disk full"}
    assert "could not be closed" in caplog.text


def test_close_at_shutdown_false_leaves_the_manager_to_its_owner() -> None:
    storage = HouseStorage()
    serve(house(storage), storage, close_at_shutdown=False)
    assert "storage closes" not in storage.diary


def test_memory_can_be_used_again_after_a_shutdown() -> None:
    """Test clients start and stop an app many times. Expired sessions still leave by themselves."""
    manager = Manager(3600, MemoryStorage())
    for _ in range(3):
        session_id = live(manager)
        assert manager.new(session_id)["n"] == 1
        asyncio.run(manager.aclose())
        assert manager.new(session_id).is_new
    live(manager)
    assert any(thread.name == "cysession-expiry" for thread in threading.enumerate())
    manager.close()


# -- failures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", range(6))
def test_R5_a_cancelled_request_commits_all_or_nothing(step: int) -> None:
    """Cancelled at each await in turn: the session is as before or as after, and the next request works."""
    manager = Manager(3600, WaitingStorage())
    session_id = live(manager, a=0, b=0)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["session"].set_map({"a": 1, "b": 1})
        await asyncio.sleep(0)
        await respond(send)

    async def scenario() -> None:
        task = asyncio.create_task(call(SessionMiddleware(app, manager), cookie(session_id)))
        for _ in range(step):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(scenario())
    assert manager.new(session_id).get_map() in ({"a": 0, "b": 0}, {"a": 1, "b": 1})
    assert asyncio.run(call(SessionMiddleware(app, manager), cookie(session_id))).status == 200
    assert manager.new(session_id).get_map() == {"a": 1, "b": 1}


def test_R4_after_an_exception_the_session_takes_no_more_writes(manager: Manager) -> None:
    kept: list[Session] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        kept.append(scope["session"])
        scope["session"]["n"] = 2
        raise LookupError

    with pytest.raises(LookupError):
        asyncio.run(call(SessionMiddleware(app, manager)))
    with pytest.raises(SessionClosed):
        kept[0]["n"] = 3


def test_R4_an_app_that_never_answers_commits_nothing(manager: Manager) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["session"]["n"] = 2

    session_id = live(manager)
    sent: list[Message] = []
    asyncio.run(SessionMiddleware(app, manager)(http_scope(cookie(session_id)), never, collect(sent)))
    assert sent == [] and manager.new(session_id)["n"] == 1


@pytest.mark.parametrize("started", [False, True])
def test_R4_a_new_id_reaches_the_client_although_the_app_raised(manager: Manager, started: bool) -> None:
    """The old id is dead: without the new one, the session would be lost to its owner."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await scope["session"].aregenerate_id()
        scope["session"]["n"] = 2
        if started:
            await send(START)
        raise LookupError("a bug of the app")

    session_id = live(manager)
    sent: list[Message] = []
    with pytest.raises(LookupError):
        asyncio.run(SessionMiddleware(app, manager)(http_scope(cookie(session_id)), never, collect(sent)))
    reply = Reply(sent[0]["status"], list(sent[0]["headers"]), b"")
    assert reply.status == (200 if started else 500) and len(sent) == 2 - started
    assert reply.session_id != session_id
    assert manager.new(reply.session_id)["n"] == (2 if started else 1)
    assert reply.all(b"connection") == [b"close"] * (not started)


@pytest.mark.parametrize("work", ["nothing", "change", "destroy"])
def test_R4_otherwise_what_the_app_raised_is_left_to_the_server(manager: Manager, work: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if work == "change":
            scope["session"]["n"] = 2
        elif work == "destroy":
            await scope["session"].adestroy()
        raise LookupError("a bug of the app")

    for headers in ([], cookie(live(manager))):
        sent: list[Message] = []
        with pytest.raises(LookupError):
            asyncio.run(SessionMiddleware(app, manager)(http_scope(headers), never, collect(sent)))
        assert sent == []


def test_R5_a_cancelled_request_is_not_answered(manager: Manager) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await scope["session"].aregenerate_id()
        raise asyncio.CancelledError

    sent: list[Message] = []

    async def scenario() -> None:
        with pytest.raises(asyncio.CancelledError):
            await SessionMiddleware(app, manager)(http_scope(cookie(live(manager))), never, collect(sent))

    asyncio.run(scenario())
    assert sent == []


def broken_while(manager: Manager, work: Callable[[Any], Awaitable[None]]) -> tuple[Any, str]:
    """An app whose storage fails from its first step on."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["session"]["n"] = 2
        manager.storage.broken = True  # type: ignore[attr-defined]
        await work(send)

    return app, live(manager)


@pytest.mark.parametrize("storage", [DirectStorage, WaitingStorage])
def test_R20_the_app_learns_that_its_answer_was_replaced(storage: type[DictStorage]) -> None:
    learned: list[BaseException] = []

    async def work(send: Any) -> None:
        try:
            await send(START)
        except StorageUnavailable as error:
            learned.append(error)
        await send({**START, "status": 500})  # too late: the 503 is on its way
        await send(BODY)

    manager = Manager(3600, storage())
    app, session_id = broken_while(manager, work)
    reply = asyncio.run(call(SessionMiddleware(app, manager), cookie(session_id)))
    assert reply.status == 503 and len(learned) == 1


@pytest.mark.parametrize("storage", [DirectStorage, WaitingStorage])
def test_R20_a_500_page_made_for_a_failed_storage_becomes_503(storage: type[DictStorage]) -> None:
    """The error middleware of a framework may sit inside ours, and would answer 500."""

    def framework(inner: Any) -> Any:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            try:
                await inner(scope, receive, send)
            except Exception:
                await send({**START, "status": 500})
                await send(BODY)
                raise

        return app

    manager = Manager(3600, storage())

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        manager.storage.broken = True  # type: ignore[attr-defined]
        await scope["session"].asave()
        scope["session"]["n"] = 2
        await scope["session"].asave()

    reply = asyncio.run(call(SessionMiddleware(framework(inner), manager), cookie(live(manager))))
    assert reply.status == 503 and reply.cookies == []


def test_R20_an_answer_that_has_begun_is_not_answered_again() -> None:
    manager = Manager(3600, DirectStorage())

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        manager.storage.broken = True  # type: ignore[attr-defined]
        manager.new(session_id).load()

    session_id = live(manager)
    sent: list[Message] = []
    with pytest.raises(StorageUnavailable):
        asyncio.run(SessionMiddleware(app, manager)(http_scope(), never, collect(sent)))
    assert [message["type"] for message in sent] == ["http.response.start"]


def test_an_error_page_of_the_app_leaves_after_a_failed_commit(manager: Manager) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["session"]["n"] = [object()]
        try:
            await send(START)
        except Exception:
            await send({**START, "status": 400})
        await send(BODY)

    reply = asyncio.run(call(SessionMiddleware(app, manager)))
    assert reply.status == 400 and reply.cookies == [] and reply.all(b"vary") == [b"Cookie"]


def test_R20_a_failed_storage_is_503_also_out_of_a_group_of_tasks(manager: Manager) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())

    async def fail() -> None:
        raise StorageUnavailable("the storage is down")

    assert asyncio.run(call(SessionMiddleware(app, manager))).status == 503


def test_R4_an_error_beside_a_failed_storage_is_the_apps_own(manager: Manager) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise ExceptionGroup("both", [StorageUnavailable("the storage is down"), LookupError("a bug")])

    with pytest.raises(ExceptionGroup):
        asyncio.run(call(SessionMiddleware(app, manager)))


# -- strangers --------------------------------------------------------------------------------------------


def test_V8_R40_a_hundred_thousand_strangers_leave_nothing_behind() -> None:
    """In the storage or anywhere else: the blocks that the interpreter has allocated stay about as many."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        session = scope["session"]
        assert session.get("user") is None
        if scope["method"] == "DELETE":
            session.destroy()
        await send(START)
        await send(BODY)

    async def swallow(message: Message) -> None:
        pass

    async def strangers(count: int) -> None:
        for number in range(count):
            method = "GET" if number % 2 else "DELETE"
            await middleware(http_scope(cookie(f"{number:043d}"), method), never, swallow)

    with Manager(3600, MemoryStorage()) as manager:
        middleware = SessionMiddleware(app, manager)
        asyncio.run(strangers(1000))
        gc.collect()
        before = sys.getallocatedblocks()
        asyncio.run(strangers(100_000))
        gc.collect()
        assert len(manager.storage) == 0  # type: ignore[arg-type]
        assert sys.getallocatedblocks() - before < 1000


# -- event loops ------------------------------------------------------------------------------------------


def test_a_storage_that_does_io_is_awaited_before_and_after_the_app() -> None:
    storage = WaitingStorage()
    manager = Manager(3600, storage)
    session_id = live(manager)
    waits: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        waits.append(storage.waits)
        assert scope["session"]["n"] == 1
        scope["session"]["n"] = 2
        waits.append(storage.waits)
        await respond(send)
        waits.append(storage.waits)

    asyncio.run(call(SessionMiddleware(app, manager), cookie(session_id)))
    assert waits == [1, 1, 2]


def test_V11_64_users_at_once_see_only_their_own(manager: Manager) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        session = scope["session"]
        own = scope["user"]
        if "secret" in session:
            assert session["secret"] == own
        session["secret"] = own
        await asyncio.sleep(0)
        session["n"] = session.get("n", 0) + 1
        await asyncio.sleep(0)
        assert session["secret"] == own
        await respond(send)

    middleware = SessionMiddleware(app, manager)

    async def user(number: int) -> str:
        headers = []
        for _ in range(8):
            sent: list[Message] = []
            await middleware(http_scope(headers, user=number), never, collect(sent))
            reply = Reply(sent[0]["status"], sent[0]["headers"], b"")
            headers = cookie(reply.session_id) if reply.cookies else headers
        return headers[0][1].decode().partition("=")[2]

    async def everybody() -> list[str]:
        return await asyncio.gather(*(user(number) for number in range(64)))

    for number, session_id in enumerate(asyncio.run(everybody())):
        assert manager.new(session_id).get_map() == {"secret": number, "n": 8}


def test_several_event_loops_one_after_the_other(manager: Manager) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["session"]["n"] = scope["session"].get("n", 0) + 1
        await respond(send)

    middleware = SessionMiddleware(app, manager)
    session_id = asyncio.run(call(middleware)).session_id
    for _ in range(3):
        asyncio.run(call(middleware, cookie(session_id)))
    assert manager.new(session_id)["n"] == 4


# -- websockets -------------------------------------------------------------------------------------------


def ws_scope(headers: Any = (), **more: Any) -> Message:
    return {**http_scope(headers), "type": "websocket", "scheme": "wss", "subprotocols": [], **more}


def ws(app: Any, manager: Manager, headers: Any = (), **more: Any) -> list[Message]:
    sent: list[Message] = []
    asyncio.run(SessionMiddleware(app, manager)(ws_scope(headers, **more), never, collect(sent)))
    return sent


def test_a_websocket_gets_its_cookie_with_the_handshake(manager: Manager) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["session"]["n"] = 1
        await send({"type": "websocket.accept", "headers": [(b"x-own", b"1")]})
        scope["session"]["n"] = 2
        await send({"type": "websocket.send", "text": "hello"})

    accept, message = ws(app, manager)
    reply = Reply(101, accept["headers"], b"")
    assert accept["headers"][0] == (b"x-own", b"1") and message == {"type": "websocket.send", "text": "hello"}
    assert manager.new(reply.session_id)["n"] == 2


def test_a_websocket_commits_in_between_and_at_the_end(manager: Manager) -> None:
    session_id = live(manager)
    seen: list[object] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        scope["session"]["n"] = 2
        await scope["session"].asave()
        seen.append(manager.new(session_id)["n"])
        scope["session"]["n"] = 3

    assert "set-cookie" not in str(ws(app, manager, cookie(session_id)))
    assert seen == [2] and manager.new(session_id)["n"] == 3


def test_R4_a_websocket_that_raises_drops_what_was_not_committed(manager: Manager) -> None:
    session_id = live(manager)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        scope["session"]["n"] = 2
        raise LookupError

    with pytest.raises(LookupError):
        ws(app, manager, cookie(session_id))
    assert manager.new(session_id)["n"] == 1


def test_a_session_that_no_browser_could_learn_of_is_not_stored(
    manager: Manager, caplog: pytest.LogCaptureFixture
) -> None:
    async def late(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        assert scope["session"].get("n") is None
        scope["session"]["n"] = 1

    async def rejected(scope: Any, receive: Any, send: Any) -> None:
        scope["session"]["n"] = 1
        await send({"type": "websocket.close", "code": 4001})

    for app in (late, rejected):
        ws(app, manager)
        assert len(manager.storage) == 0  # type: ignore[arg-type]
        assert "dropped" in caplog.text
        caplog.clear()


def test_a_known_session_is_committed_even_if_the_handshake_is_refused(manager: Manager) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["session"]["refusals"] = 1
        await send({"type": "websocket.close", "code": 4001})

    session_id = live(manager)
    ws(app, manager, cookie(session_id))
    assert manager.new(session_id)["refusals"] == 1


def test_a_new_id_after_the_handshake_is_reported(manager: Manager, caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["session"].get("n")
        await send({"type": "websocket.accept"})
        await scope["session"].aregenerate_id()

    ws(app, manager, cookie(live(manager)))
    assert "new id after a websocket handshake" in caplog.text


def test_V5_a_log_out_elsewhere_drops_what_a_websocket_changed_at_its_end(
    manager: Manager, caplog: pytest.LogCaptureFixture
) -> None:
    session_id = live(manager)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        scope["session"]["n"] = 2
        manager.new(session_id).destroy()

    ws(app, manager, cookie(session_id))
    assert manager.new(session_id).is_new and "has ended meanwhile" in caplog.text


def test_S6_a_long_websocket_stays_alive_by_asave() -> None:
    clock = FakeClock()
    manager = Manager(60, MemoryStorage(), clock=clock)
    session_id = live(manager)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        for _ in range(10):
            clock.advance(50)
            await scope["session"].asave()

    ws(app, manager, cookie(session_id))  # without a look, a handle costs and keeps nothing
    assert manager.new(session_id).is_new

    async def looks(scope: Any, receive: Any, send: Any) -> None:
        scope["session"].get("n")
        await app(scope, receive, send)

    session_id = live(manager)
    ws(looks, manager, cookie(session_id))
    assert manager.new(session_id)["n"] == 1


@pytest.mark.parametrize("storage", [DirectStorage, WaitingStorage])
@pytest.mark.parametrize("extensions", [{}, {"websocket.http.response": {}}])
def test_R20_a_websocket_whose_storage_fails_is_refused(
    storage: type[DictStorage], extensions: Message
) -> None:
    manager = Manager(3600, storage())
    session_id = live(manager)
    manager.storage.broken = True  # type: ignore[attr-defined]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["session"]["n"] = 2
        await send({"type": "websocket.accept"})

    first = ws(app, manager, cookie(session_id), extensions=extensions)[0]
    if extensions:
        assert (first["type"], first["status"]) == ("websocket.http.response.start", 503)
    else:
        assert (first["type"], first["code"]) == ("websocket.close", 1013)


def test_a_denial_response_of_the_app_carries_the_cookie(manager: Manager) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["session"]["n"] = 1
        await send({"type": "websocket.http.response.start", "status": 403, "headers": []})
        await send({"type": "websocket.http.response.body", "body": b"no"})

    start = ws(app, manager, extensions={"websocket.http.response": {}})[0]
    assert manager.new(Reply(403, start["headers"], b"").session_id)["n"] == 1


# -- frameworks -------------------------------------------------------------------------------------------


def test_starlette_hands_the_session_out_as_request_session(manager: Manager) -> None:
    starlette = pytest.importorskip("starlette.applications")
    from starlette.middleware import Middleware
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    async def home(request: Request) -> PlainTextResponse:
        request.session["n"] = request.session.get("n", 0) + 1
        request.session.setdefault("cart", []).append("tea")
        return PlainTextResponse(f"{request.session['n']} {len(request.session['cart'])}")

    async def fail(request: Request) -> PlainTextResponse:
        request.session["n"] = 99
        raise LookupError

    routes = [Route("/", home), Route("/fail", fail)]
    inside = starlette.Starlette(routes=routes, middleware=[Middleware(SessionMiddleware, manager=manager)])
    outside = SessionMiddleware(starlette.Starlette(routes=routes), manager)
    for app in (inside, outside):
        session_id = asyncio.run(call(app)).session_id
        with pytest.raises(LookupError):
            asyncio.run(app(http_scope(cookie(session_id), path="/fail"), never, collect([])))
        assert asyncio.run(call(app, cookie(session_id))).body == b"2 2"


def test_starlette_storage_failures_answer_503_inside_and_outside() -> None:
    starlette = pytest.importorskip("starlette.applications")
    from starlette.middleware import Middleware
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    async def home(request: Request) -> PlainTextResponse:
        request.session["n"] = 1
        manager.storage.broken = True  # type: ignore[attr-defined]
        return PlainTextResponse("stored")

    async def read(request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(request.session.get("n")))

    routes = [Route("/", home), Route("/read", read)]
    manager = Manager(3600, DirectStorage())
    inside = starlette.Starlette(routes=routes, middleware=[Middleware(SessionMiddleware, manager=manager)])
    for app in (inside, SessionMiddleware(starlette.Starlette(routes=routes), manager)):
        for path in ("/", "/read"):
            manager.storage.broken = False  # type: ignore[attr-defined]
            session_id = live(manager)
            manager.storage.broken = path == "/read"  # type: ignore[attr-defined]
            sent: list[Message] = []
            # A framework makes a RuntimeError of an exception after its answer.
            with contextlib.suppress(StorageUnavailable, RuntimeError):
                asyncio.run(app(http_scope(cookie(session_id), path=path), never, collect(sent)))
            assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
            assert sent[0]["status"] == 503


def test_no_framework_is_imported() -> None:
    code = "import sys, cysession.asgi; print({'starlette', 'fastapi', 'http.cookies'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert out.stdout.strip() == "set()"


def test_servers_take_the_middleware_for_asgi_3(manager: Manager) -> None:
    """They ask whether `__call__` is a coroutine function."""
    import inspect

    assert inspect.iscoroutinefunction(SessionMiddleware(respond, manager).__call__)  # type: ignore[arg-type]


def test_S9_the_warning_names_the_line_that_made_the_middleware(manager: Manager) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        SessionMiddleware(respond, manager, insecure=True)  # type: ignore[arg-type]
    assert [w.filename for w in caught] == [__file__]


@pytest.mark.parametrize(
    ("scheme", "headers", "told"),
    [
        ("http", [(b"host", b"192.0.2.7:8000")], 1),
        ("ws", [], 1),
        ("https", [(b"host", b"192.0.2.7:8000")], 0),
        ("http", [(b"host", b"localhost:8000")], 0),
        ("http", [(b"host", b"127.0.0.1")], 0),
        ("http", [(b"host", b"shop.example"), (b"x-forwarded-proto", b"https")], 0),
    ],
)
def test_S9_why_a_browser_will_not_keep_the_cookie_stands_in_the_log_once(
    scheme: str, headers: Any, told: int, manager: Manager, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["session"]["n"] = 2
        await send({"type": "websocket.accept"} if scope["type"] == "websocket" else START)

    middleware = SessionMiddleware(app, manager)
    scope = {**(ws_scope(headers) if scheme == "ws" else http_scope(headers)), "scheme": scheme}
    for _ in range(3):
        sent: list[Message] = []
        asyncio.run(middleware(dict(scope), never, collect(sent)))
        assert b"set-cookie" in dict(sent[0]["headers"])
    assert caplog.text.count("over plain http") == told


async def never() -> Message:
    raise AssertionError("nothing is received here")


def collect(sent: list[Message]) -> Any:
    async def send(message: Message) -> None:
        sent.append(message)

    return send
