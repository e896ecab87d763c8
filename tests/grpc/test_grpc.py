"""Sessions over gRPC: every shape of call, on threads and on event loops. Names carry IDs of the security checklist."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from cysession import Manager, MemoryStorage, SessionClosed, SessionError, SessionGone, Storage
from cysession.grpc import AioSessionInterceptor, SessionInterceptor, current_session
from tests.grpc.servers import PATIENCE, SERVERS, SHAPES, Client, View
from tests.web.storages import DictStorage, DirectStorage, WaitingStorage

STORAGES: dict[str, Callable[[], Storage]] = {
    "memory": MemoryStorage,
    "direct": DirectStorage,
    "waiting": WaitingStorage,
}
STRANGER = "A" * 43

Connect = Callable[..., Client]

pytestmark = pytest.mark.usefixtures("no_id_is_logged")


@pytest.fixture(params=STORAGES)
def manager(request: pytest.FixtureRequest) -> Manager:
    return Manager(3600, STORAGES[request.param]())


@pytest.fixture(params=SERVERS)
def connect(request: pytest.FixtureRequest, manager: Manager) -> Iterator[Connect]:
    """connect(view, **options): a client of a server with this view."""
    undo: list[Callable[[], object]] = []

    def make(view: View, *, manager: Manager = manager, **options: Any) -> Client:
        running = SERVERS[request.param](view, manager, options)
        client = Client(running.__enter__())
        undo.append(lambda: (client.close(), running.__exit__(None, None, None)))
        return client

    yield make
    for step in reversed(undo):
        step()


def live(manager: Manager, **data: Any) -> str:
    with manager.new() as session:
        session.set_map(data or {"n": 1})
    return session.id


def stored(manager: Manager) -> int:
    return len(manager.storage)  # type: ignore[arg-type]


def count(request: bytes, context: Any) -> bytes:
    session = current_session()
    session["n"] = session.get("n", 0) + 1
    return str(session["n"]).encode()


def read(request: bytes, context: Any) -> bytes:
    return str(current_session().get("n", "nobody")).encode()


# -- the main job -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_a_session_lives_from_call_to_call(connect: Connect, manager: Manager, shape: str) -> None:
    client = connect(count)
    times = 1 if shape == "unary_unary" else 2
    first = client.call(shape)
    assert first.code is grpc.StatusCode.OK
    assert manager.new(first.session_id)["n"] == times
    again = client.call(shape, first.session_id)
    assert again.all() == [] and again.responses[-1] == b"%d" % (2 * times)
    assert manager.new(first.session_id)["n"] == 2 * times


def test_a_call_that_never_looks_stores_and_sends_nothing(connect: Connect, manager: Manager) -> None:
    client = connect(lambda request, context: b"ok")
    for session_id in ("", STRANGER, live(manager)):
        reply = client.call(session_id=session_id)
        assert (reply.responses, reply.trailing) == ([b"ok"], [])
    assert stored(manager) == 1


@pytest.mark.parametrize("shape", SHAPES)
def test_the_handlers_own_trailing_metadata_stay(connect: Connect, shape: str) -> None:
    def view(request: bytes, context: Any) -> bytes:
        context.set_trailing_metadata((("own", "1"), ("x-session-id", "forged")))
        return count(request, context)

    reply = connect(view).call(shape)
    assert reply.all("own") == ["1"] and len(reply.session_id) == 43


def test_another_metadata_key(connect: Connect) -> None:
    client = connect(count, metadata="shop-id")
    (session_id,) = client.call().all("shop-id")
    assert client.call(metadata=[("shop-id", session_id)]).responses == [b"2"]
    assert client.call(metadata=[("x-session-id", session_id)]).responses == [b"1"]


def test_send_id_false_takes_ids_and_hands_none_out(connect: Connect, manager: Manager) -> None:
    client = connect(count, send_id=False)
    assert client.call(session_id=live(manager)).responses == [b"2"]
    assert client.call().trailing == []


def test_log_out_tells_the_client_to_forget_the_id(connect: Connect, manager: Manager) -> None:
    def view(request: bytes, context: Any) -> bytes:
        current_session().destroy()
        return b"bye"

    assert connect(view).call(session_id=live(manager)).all() == [""]
    assert stored(manager) == 0


# -- commit points of streams -----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["unary_stream", "stream_stream"])
def test_a_stream_commits_at_its_end_or_by_save(connect: Connect, manager: Manager, shape: str) -> None:
    session_id = live(manager, n=0)
    seen: list[object] = []

    def view(request: bytes, context: Any) -> bytes:
        seen.append(manager.new(session_id)["n"])
        session = current_session()
        session["n"] += 1
        if session["n"] == 1:
            session.save()
        return b"ok"

    assert connect(view).call(shape, session_id).code is grpc.StatusCode.OK
    assert seen == [0, 1] and manager.new(session_id)["n"] == 2


@pytest.mark.parametrize("shape", ["unary_stream", "stream_stream"])
def test_responses_arrive_one_by_one(connect: Connect, shape: str) -> None:
    """The wrapper does not collect a stream before it passes it on."""
    gate = threading.Event()
    told: list[bytes] = []

    def view(request: bytes, context: Any) -> bytes:
        if told:
            assert gate.wait(PATIENCE)
        told.append(request)
        return count(request, context)

    rpc = connect(view).begin(shape)
    assert next(rpc) == b"1"
    gate.set()
    assert list(rpc) == [b"2"]


def test_after_the_call_the_session_takes_no_more_writes(connect: Connect) -> None:
    kept: list[Any] = []

    def view(request: bytes, context: Any) -> bytes:
        kept.append(current_session())
        return count(request, context)

    connect(view).call()
    with pytest.raises(SessionClosed):
        kept[0]["n"] = 5


# -- ids --------------------------------------------------------------------------------------------------


def test_S3_V2_an_id_that_nobody_issued_is_never_adopted(connect: Connect, manager: Manager) -> None:
    reply = connect(count).call(session_id=STRANGER)
    assert reply.session_id != STRANGER and stored(manager) == 1


@pytest.mark.parametrize("shape", SHAPES)
def test_S5_V2_log_in_changes_the_id_and_the_old_one_is_dead(
    connect: Connect, manager: Manager, shape: str
) -> None:
    def log_in(request: bytes, context: Any) -> bytes:
        session = current_session()
        if "user" not in session:
            session.regenerate_id()
        session["user"] = "anna"
        return b"hello"

    planted = live(manager)
    own = connect(log_in).call(shape, planted).session_id
    assert own != planted and manager.new(own).get_map() == {"n": 1, "user": "anna"}
    assert manager.new(planted).is_new


@pytest.mark.parametrize("bad", ["", "../x", "a b", "a.b", "A" * 129, "A" * 4000, "*", "a;b"])
@pytest.mark.parametrize("storage", [DirectStorage, WaitingStorage])
def test_S4_V3_what_is_no_id_never_reaches_a_storage(bad: str, storage: type[DictStorage]) -> None:
    manager = Manager(3600, storage())
    for server in ("threads", "aio"):
        with SERVERS[server](read, manager, {}) as port:
            client = Client(port)
            assert client.call(metadata=[("x-session-id", bad)]).responses == [b"nobody"]
            client.close()
    assert manager.storage.seen == []  # type: ignore[attr-defined]


def test_S10_binary_and_other_metadata_are_no_ids(connect: Connect, manager: Manager) -> None:
    session_id = live(manager)
    client = connect(read)
    for pair in [
        ("x-session-id-bin", session_id.encode()),
        ("session-id", session_id),
        ("cookie", session_id),
    ]:
        assert client.call(metadata=[pair]).responses == [b"nobody"]


def test_S16_of_twins_the_live_one_counts_in_both_orders(connect: Connect, manager: Manager) -> None:
    client, session_id = connect(read), live(manager)
    for values in ([session_id, STRANGER], [STRANGER, session_id], [session_id, session_id]):
        assert client.call(metadata=[("x-session-id", value) for value in values]).responses == [b"1"]
    both = [("x-session-id", session_id), ("x-session-id", live(manager))]
    assert client.call(metadata=both).responses == client.call(metadata=both[::-1]).responses == [b"nobody"]


@pytest.mark.parametrize("interceptor", [SessionInterceptor, AioSessionInterceptor])
@pytest.mark.parametrize(
    "key", ["", "X-Session-Id", "grpc-session", "session-bin", "a b", "content-type", "a:b", "té"]
)
def test_wrong_keys_raise_at_start(interceptor: Any, key: str) -> None:
    with pytest.raises(ValueError, match="cannot carry ids"):
        interceptor(Manager(storage=MemoryStorage()), metadata=key)


def test_V11_many_clients_at_once_see_only_their_own(connect: Connect, manager: Manager) -> None:
    barrier_free = {str(number): live(manager, secret=str(number)) for number in range(32)}

    def view(request: bytes, context: Any) -> bytes:
        session = current_session()
        secret = session["secret"]
        session["n"] = session.get("n", 0) + 1
        assert current_session() is session
        return str(secret).encode()

    client = connect(view)
    calls = {
        secret: [
            client.begin(shape, [("x-session-id", session_id)]) for shape in ("unary_unary", "stream_stream")
        ]
        for secret, session_id in barrier_free.items()
    }
    for secret, (unary, stream) in calls.items():
        assert unary.result() == secret.encode() and list(stream) == [secret.encode()] * 2


def test_outside_of_a_call_there_is_no_session() -> None:
    with pytest.raises(SessionError, match="no session here"):
        current_session()


# -- failures ---------------------------------------------------------------------------------------------


def fail(request: bytes, context: Any) -> Any:
    count(request, context)
    raise LookupError("a bug of the app")


def abort(request: bytes, context: Any) -> Any:
    count(request, context)
    return context.abort(grpc.StatusCode.NOT_FOUND, "no such thing")


def set_code(request: bytes, context: Any) -> Any:
    count(request, context)
    context.set_code(grpc.StatusCode.NOT_FOUND)
    context.set_details("no such thing")
    return b"discarded"


ERRORS = {"raises": fail, "aborts": abort, "sets a code": set_code}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("error", ERRORS)
def test_R4_a_call_that_fails_drops_the_changes(
    connect: Connect, manager: Manager, shape: str, error: str
) -> None:
    session_id = live(manager)
    reply = connect(ERRORS[error]).call(shape, session_id)
    assert reply.code is (grpc.StatusCode.UNKNOWN if error == "raises" else grpc.StatusCode.NOT_FOUND)
    assert reply.all() == [] and manager.new(session_id)["n"] == 1 and stored(manager) == 1


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("error", ERRORS)
def test_R4_a_call_that_fails_keeps_and_tells_the_new_id(
    connect: Connect, manager: Manager, shape: str, error: str
) -> None:
    def view(request: bytes, context: Any) -> Any:
        current_session().regenerate_id()
        return ERRORS[error](request, context)

    session_id = live(manager)
    reply = connect(view).call(shape, session_id)
    assert reply.code is not grpc.StatusCode.OK
    assert manager.new(reply.session_id)["n"] == 1 and manager.new(session_id).is_new


@pytest.mark.parametrize("error", ERRORS)
def test_R4_a_call_that_fails_does_not_undo_a_log_out(connect: Connect, manager: Manager, error: str) -> None:
    def view(request: bytes, context: Any) -> Any:
        current_session().destroy()
        return ERRORS[error](request, context)

    reply = connect(view).call(session_id=live(manager))
    assert reply.code is not grpc.StatusCode.OK and reply.all() == [""] and stored(manager) == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_an_abort_carries_the_handlers_metadata_too(connect: Connect, manager: Manager, shape: str) -> None:
    def view(request: bytes, context: Any) -> Any:
        current_session().regenerate_id()
        context.set_trailing_metadata((("own", "1"),))
        return context.abort(grpc.StatusCode.NOT_FOUND, "no such thing")

    reply = connect(view).call(shape, live(manager))
    assert (reply.code, reply.details) == (grpc.StatusCode.NOT_FOUND, "no such thing")
    assert reply.all("own") == ["1"] and len(reply.session_id) == 43


@pytest.mark.parametrize("storage", [DirectStorage, WaitingStorage])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("server", SERVERS)
def test_R20_a_storage_that_fails_is_unavailable_and_no_log_out(
    storage: type[DictStorage], shape: str, server: str
) -> None:
    manager = Manager(3600, storage())
    session_id = live(manager)

    def write(request: bytes, context: Any) -> bytes:
        count(request, context)
        manager.storage.broken = True  # type: ignore[attr-defined]
        return b"stored, says the app"

    for view in (write, read):  # the commit fails, then the read
        with SERVERS[server](view, manager, {}) as port:
            client = Client(port)
            reply = client.call(shape, session_id)
            assert (reply.code, reply.all()) == (grpc.StatusCode.UNAVAILABLE, [])
            assert "not logged out" in reply.details
            client.close()
    manager.storage.broken = False  # type: ignore[attr-defined]
    assert manager.new(session_id)["n"] == 1


@pytest.mark.parametrize("shape", SHAPES)
def test_V5_R1_a_session_that_was_logged_out_meanwhile_aborts_the_call(
    connect: Connect, manager: Manager, shape: str
) -> None:
    session_id = live(manager)

    def view(request: bytes, context: Any) -> bytes:
        count(request, context)
        manager.new(session_id).destroy()
        return b"ok"

    reply = connect(view).call(shape, session_id)
    assert reply.code is grpc.StatusCode.ABORTED and "ended" in reply.details and reply.all() == []
    assert stored(manager) == 0


def test_V5_the_handler_can_answer_for_a_vanished_session_itself(connect: Connect, manager: Manager) -> None:
    session_id = live(manager)

    def view(request: bytes, context: Any) -> bytes:
        session = current_session()
        count(request, context)
        manager.new(session_id).destroy()
        with pytest.raises(SessionGone):
            session.save()
        session.discard()
        return b"log in again"

    assert connect(view).call(session_id=session_id).responses == [b"log in again"]


@pytest.mark.parametrize("storage", [MemoryStorage, DirectStorage, WaitingStorage])
@pytest.mark.parametrize("shape", ["unary_stream", "stream_stream"])
@pytest.mark.parametrize("server", ["threads", "aio", "aio, reading and writing"])
def test_R5_of_a_stream_that_the_client_cancels_stays_what_was_saved(
    server: str, shape: str, storage: Callable[[], Storage]
) -> None:
    manager = Manager(3600, storage())
    session_id = live(manager, n=0)
    kept: list[Any] = []

    def until_cancelled(request: bytes, context: Any) -> Any:
        session = current_session()
        if not kept:
            session["n"] = 1
            session.save()
            session["n"] = 2
            kept.append(session)
            return b"ok"
        if server != "threads":
            return asyncio.sleep(PATIENCE)
        deadline = time.monotonic() + PATIENCE
        while context.is_active() and time.monotonic() < deadline:
            time.sleep(0.005)
        return b"nobody hears this"

    with SERVERS[server](until_cancelled, manager, {}) as port:
        client = Client(port)
        rpc = client.begin(shape, [("x-session-id", session_id)])
        assert next(rpc) == b"ok"
        rpc.cancel()
        deadline = time.monotonic() + PATIENCE
        while (
            kept[0].is_dirty and time.monotonic() < deadline
        ):  # until the session has ended, this way or that
            time.sleep(0.005)
        assert not kept[0].is_dirty and manager.new(session_id)["n"] == 1
        client.close()


def test_an_unknown_method_is_left_to_the_server(connect: Connect) -> None:
    client = connect(count)
    with pytest.raises(grpc.RpcError) as caught:
        client.channel.unary_unary("/shop.Counter/nothing")(b"", timeout=PATIENCE)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED  # type: ignore[attr-defined]


# -- event loops ------------------------------------------------------------------------------------------


def test_an_aio_client_against_an_aio_server_in_one_loop() -> None:
    storage = WaitingStorage()
    manager = Manager(3600, storage)

    async def view(request: bytes, context: Any) -> bytes:
        session = current_session()
        session["n"] = session.get("n", 0) + 1
        await session.asave()
        return await asyncio.to_thread(read, request, context)  # the session follows the context

    async def scenario() -> list[bytes]:
        server = grpc.aio.server(interceptors=[AioSessionInterceptor(manager)])
        handler = grpc.unary_unary_rpc_method_handler(view)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a.B", {"C": handler}),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        seen = []
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            metadata: Any = ()
            for _ in range(3):
                call = channel.unary_unary("/a.B/C")(b"", metadata=metadata, timeout=PATIENCE)
                seen.append(await call)
                for key, value in await call.trailing_metadata():
                    metadata = ((key, value),)
        await server.stop(0)
        return seen

    assert asyncio.run(scenario()) == [b"1", b"2", b"3"]
    assert storage.waits > 0
