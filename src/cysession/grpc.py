"""Sessions for gRPC servers: the id travels in metadata, the handler finds its session with `current_session()`.

    grpc.server(pool, interceptors=[SessionInterceptor(manager)])
    grpc.aio.server(interceptors=[AioSessionInterceptor(manager)])

    the call begins         the id in the request's metadata names the session. It is read at the first look, or,
                            on an event loop with a storage that does I/O, awaited before the handler runs
    the handler returns,    the session is committed, then the status leaves; a fresh id stands in the trailing
    or its stream ends      metadata, an empty one tells the client to forget it
    in between              a stream keeps its session open: `session.save()`, or `await session.asave()`, commits
                            before the end
    it raises, aborts, is   what was not committed is dropped; a session that was destroyed or got a new id stays
    cancelled, or sets a    so, and its client is told the new id
    code other than OK
    the storage fails       UNAVAILABLE, and the client keeps its id
    the session ended       ABORTED, and nothing was changed
    meanwhile elsewhere

All four shapes of calls, generators as well as `context.read()` and `write()`, and plain functions on an aio server.
Ids are readable on a channel without TLS.
"""

import contextvars
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import grpc
import grpc.aio

from ._http import HttpPolicy
from ._refusal import refusal
from .errors import SessionError

if TYPE_CHECKING:
    from . import Manager, Session

__all__ = ["AioSessionInterceptor", "SessionInterceptor", "current_session"]

DEFAULT_METADATA: Final = "x-session-id"

_current: contextvars.ContextVar["Session"] = contextvars.ContextVar("cysession.grpc")

Behavior = Callable[[Any, Any], Any]
if TYPE_CHECKING:
    Handler: TypeAlias = grpc.RpcMethodHandler[Any, Any]
else:
    Handler = grpc.RpcMethodHandler  # not generic at run time
Details: TypeAlias = grpc.HandlerCallDetails


def current_session() -> "Session":
    """The session of the call that this code serves; SessionError where there is none.

    It follows the context (contextvars), into `asyncio.to_thread` and tasks as well. A thread of your own has to be
    handed the session, or a copy of the context.
    """
    try:
        return _current.get()
    except LookupError:
        raise SessionError(
            "no session here: call current_session() in a handler of a server with a SessionInterceptor"
        ) from None


class _Transport:
    """How ids travel in metadata: checked once, shared by all calls of an interceptor."""

    __slots__ = ("does_io", "key", "policy", "sends")

    def __init__(self, manager: "Manager", metadata: str, send_id: bool) -> None:
        self.policy = HttpPolicy(manager, header=metadata, send_cookie=send_id)
        self.key = metadata
        self.sends = send_id
        self.does_io = manager.storage.does_io
        if metadata != metadata.lower() or metadata.startswith("grpc-") or metadata.endswith("-bin"):
            raise ValueError(
                f"metadata {metadata!r:.80} cannot carry ids: gRPC wants lower case, keeps grpc- to itself and "
                "takes -bin for binary values"
            )

    def presented(self, details: Details) -> list[tuple[bytes, bytes]]:
        """What the request says about its session, in the form that the policy reads."""
        return [
            (self.policy.carrier, value if isinstance(value, bytes) else value.encode("utf-8"))
            for key, value in details.invocation_metadata or ()
            if key == self.key
        ]


class _Call:
    """One call: ends the session in the right way and tells the client its id."""

    __slots__ = ("_context", "_transport", "code", "session", "trailing")

    def __init__(self, transport: _Transport, session: "Session", context: Any) -> None:
        self._transport = transport
        self._context = context
        self.session = session
        self.code: grpc.StatusCode | None = None  # what the handler set
        self.trailing: tuple[Any, ...] = ()  # the handler's own

    def before_commit(self) -> None:
        if self.code is not None and self.code is not grpc.StatusCode.OK:
            self.session.discard()

    def fail(self, error: BaseException) -> None:
        """End the session as a with block does on an exception: no commit, no I/O, and no later writes."""
        self.session.__exit__(type(error), error, error.__traceback__)
        self.tell()

    def tell(self) -> None:
        """Send the trailing metadata: the handler's, and the id if the client does not know it."""
        self._context.set_trailing_metadata(self.metadata())

    def metadata(self) -> tuple[Any, ...]:
        session, key = self.session, self._transport.key
        own = tuple(pair for pair in self.trailing if pair[0] != key)
        if not self._transport.sends or not session.accessed or session.cookie_state == "keep":
            return own
        return (*own, (key, session.id if session.cookie_state == "set" else ""))


class _Context:
    """The handler's context, with what concerns the end of the call passing through here."""

    def __init__(self, call: _Call, context: Any) -> None:
        self._call = call
        self._context = context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def set_code(self, code: grpc.StatusCode) -> None:
        self._call.code = code
        self._context.set_code(code)

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        self._call.trailing = tuple(trailing_metadata)
        self._context.set_trailing_metadata(self._call.trailing)

    def trailing_metadata(self) -> Any:
        return self._call.trailing

    def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> Any:
        """Not to be told from the context's own: raises, or is awaited and raises."""
        self._call.trailing += tuple(trailing_metadata)
        # On an event loop this sends the status, so all that it carries must be there by now.
        self._call.fail(SessionError("aborted"))
        return self._context.abort(code, details)

    def abort_with_status(self, status: Any) -> Any:
        return self.abort(status.code, status.details, status.trailing_metadata or ())


def _status_for(error: BaseException) -> tuple[grpc.StatusCode, str] | None:
    """How the call ends when `error` came out of a session; None: it is the handler's own."""
    answer = refusal(error)
    if answer is None:
        return None
    answer.note(error)
    code = grpc.StatusCode.UNAVAILABLE if answer.status == 503 else grpc.StatusCode.ABORTED
    return code, answer.body.decode().strip()


def _wrapped(handler: Handler, wrap: Callable[[Behavior, bool], Behavior]) -> Handler:
    """The same handler with its function wrapped; `wrap` is told whether the response is a stream."""
    streams = handler.response_streaming
    if handler.request_streaming:
        make, behavior = (
            (grpc.stream_stream_rpc_method_handler, handler.stream_stream)
            if streams
            else (grpc.stream_unary_rpc_method_handler, handler.stream_unary)
        )
    else:
        make, behavior = (
            (grpc.unary_stream_rpc_method_handler, handler.unary_stream)
            if streams
            else (grpc.unary_unary_rpc_method_handler, handler.unary_unary)
        )
    assert behavior is not None
    return make(wrap(behavior, streams), handler.request_deserializer, handler.response_serializer)


# -- threads ----------------------------------------------------------------------------------------------


class _Blocking:
    """Wraps the plain functions and generators of one call."""

    __slots__ = ("_behavior", "_presented", "_transport")

    def __init__(
        self, transport: _Transport, presented: list[tuple[bytes, bytes]], behavior: Behavior
    ) -> None:
        self._transport = transport
        self._presented = presented
        self._behavior = behavior

    def unary(self, request: Any, context: Any) -> Any:
        call, run = self._begin(context)
        try:
            response = run(self._behavior, request, _Context(call, context))
            self._commit(call)
        except BaseException as error:
            self._fail(call, context, error)
            raise
        return response

    def stream(self, request: Any, context: Any) -> Iterator[Any]:
        call, run = self._begin(context)
        try:
            # In the call's own context, step by step: a generator runs in that of whoever asks for more.
            responses = iter(run(self._behavior, request, _Context(call, context)))
            while (response := run(next, responses, _END)) is not _END:
                yield response
            self._commit(call)
        except BaseException as error:
            self._fail(call, context, error)
            raise

    def _begin(self, context: Any) -> tuple[_Call, Callable[..., Any]]:
        try:
            session = self._transport.policy.session_for(self._presented)
        except Exception as error:
            if (status := _status_for(error)) is not None:
                context.abort(*status)
            raise
        variables = contextvars.copy_context()
        variables.run(_current.set, session)
        return _Call(self._transport, session, context), variables.run

    def _commit(self, call: _Call) -> None:
        call.before_commit()
        call.session.close()
        call.tell()

    def _fail(self, call: _Call, context: Any, error: BaseException) -> None:
        call.fail(error)
        if (status := _status_for(error)) is not None:
            context.abort(*status)


_END: Final = object()


class SessionInterceptor(grpc.ServerInterceptor):
    """For `grpc.server(..., interceptors=[SessionInterceptor(manager)])`.

    metadata    the key that carries the id, both ways
    send_id     False: take ids but never hand one out, because another service does
    """

    def __init__(self, manager: "Manager", *, metadata: str = DEFAULT_METADATA, send_id: bool = True) -> None:
        self._transport = _Transport(manager, metadata, send_id)

    def intercept_service(
        self, continuation: Callable[[Details], Handler | None], handler_call_details: Details
    ) -> Handler | None:
        handler = continuation(handler_call_details)
        if handler is None:  # no such method
            return None
        presented = self._transport.presented(handler_call_details)

        def wrap(behavior: Behavior, streams: bool) -> Behavior:
            blocking = _Blocking(self._transport, presented, behavior)
            return blocking.stream if streams else blocking.unary

        return _wrapped(handler, wrap)


# -- event loops ------------------------------------------------------------------------------------------


class _Awaiting:
    """Wraps the coroutine functions and async generators of one call."""

    __slots__ = ("_behavior", "_presented", "_transport")

    def __init__(
        self, transport: _Transport, presented: list[tuple[bytes, bytes]], behavior: Behavior
    ) -> None:
        self._transport = transport
        self._presented = presented
        self._behavior = behavior

    async def unary(self, request: Any, context: Any) -> Any:
        """Also a stream of responses that the handler writes to the context."""
        call = await self._begin(context)
        try:
            response = await self._behavior(request, _Context(call, context))
            await self._commit(call)
        except BaseException as error:
            await self._fail(call, context, error)
            raise
        return response

    async def stream(self, request: Any, context: Any) -> AsyncIterator[Any]:
        call = await self._begin(context)
        try:
            async for response in self._behavior(request, _Context(call, context)):
                yield response
            await self._commit(call)
        except BaseException as error:
            await self._fail(call, context, error)
            raise

    async def _begin(self, context: Any) -> _Call:
        policy = self._transport.policy
        try:
            if self._transport.does_io:
                session = await policy.asession_for(self._presented)
            else:
                session = policy.session_for(self._presented)
        except Exception as error:
            if (status := _status_for(error)) is not None:
                await context.abort(*status)
            raise
        _current.set(session)  # the server gives every call a task, and with it a context, of its own
        return _Call(self._transport, session, context)

    async def _commit(self, call: _Call) -> None:
        call.before_commit()
        if self._transport.does_io:
            await call.session.aclose()
        else:
            call.session.close()
        call.tell()

    async def _fail(self, call: _Call, context: Any, error: BaseException) -> None:
        call.fail(error)
        if (status := _status_for(error)) is not None:
            await context.abort(*status)


class AioSessionInterceptor(grpc.aio.ServerInterceptor):
    """For `grpc.aio.server(interceptors=[AioSessionInterceptor(manager)])`; see SessionInterceptor."""

    def __init__(self, manager: "Manager", *, metadata: str = DEFAULT_METADATA, send_id: bool = True) -> None:
        self._transport = _Transport(manager, metadata, send_id)

    async def intercept_service(
        self, continuation: Callable[[Details], Awaitable[Handler | None]], handler_call_details: Details
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        presented = self._transport.presented(handler_call_details)

        def wrap(behavior: Behavior, streams: bool) -> Behavior:
            if inspect.isasyncgenfunction(behavior):
                return _Awaiting(self._transport, presented, behavior).stream
            if inspect.iscoroutinefunction(behavior):
                return _Awaiting(self._transport, presented, behavior).unary
            # Such a function runs in a thread of the server's pool.
            blocking = _Blocking(self._transport, presented, behavior)
            return blocking.stream if streams else blocking.unary

        return _wrapped(handler, wrap)
