"""Sessions for any ASGI 3 app: `SessionMiddleware(app, manager)` puts the session at `scope["session"]`.

Starlette and FastAPI hand that object out as `request.session`. No framework is imported here.

    before the app          nothing is read, unless the storage does I/O: then it is awaited here
    http.response.start     the session is committed, then the headers leave, with Set-Cookie if the id is new
    after that              the session is closed: a write raises SessionClosed instead of getting lost. A stream
                            or server-sent events that go on changing it open it anew: `manager.new(session.id)`
    the app raises, or      what was not committed is dropped; a session that was destroyed or got a new id
    answers 5xx             stays so. If the client could not learn the new id any more, a plain 500 tells it
    the storage fails       503 with Retry-After, the cookie is left alone
    cancelled, or the       as an exception: a commit that was under way has happened, or it has not
    client is gone
    websocket.accept        as http.response.start, but the session stays open: later changes are committed by
                            `await session.asave()`, which also begins its idle time anew, and at the end
    lifespan                startup reads from a storage that does I/O: a wrong password or path stops the server
                            there. Shutdown closes the manager, after the app: throttled touches are flushed

Wrap the whole app (`app = SessionMiddleware(app, manager)`), so that its error pages pass here too.
"""

import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any, Final, Unpack

from ._core import Exchange
from ._http import HttpOptions, HttpPolicy, log
from ._refusal import FAILED, Refusal, refusal
from .errors import SessionGone, StorageMisconfigured, StorageUnavailable
from .ids import new_id

if TYPE_CHECKING:
    from . import Manager

__all__ = ["SessionMiddleware"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class SessionMiddleware:
    """Wraps an ASGI app. The options are those of `HttpOptions`; a wrong combination raises ValueError.

    close_at_shutdown: the server's shutdown closes the manager. False: whoever made it does that.
    """

    def __init__(
        self,
        app: App,
        manager: "Manager",
        *,
        close_at_shutdown: bool = True,
        **options: Unpack[HttpOptions],
    ) -> None:
        self.app = app
        self.manager = manager
        self._close_at_shutdown = close_at_shutdown
        self._policy = HttpPolicy(manager, **options)
        self._does_io = manager.storage.does_io

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = _EXCHANGES.get(scope["type"])
        if kind is None:
            return await self._besides(scope, receive, send)
        policy = self._policy
        try:
            if self._does_io:
                session = await policy.asession_for(scope["headers"])
            else:
                session = policy.session_for(scope["headers"])
        except Exception as error:
            if (answer := refusal(error)) is None:
                raise
            return await _answer(scope, send, answer, error)
        scope["session"] = session
        exchange = kind(policy, session, self._does_io, scope, send)
        try:
            await self.app(scope, receive, exchange.send)
            if not exchange.started or kind is _Socket:
                await exchange.finish()
        except BaseException as error:
            if not await exchange.fail(error):
                raise
        return None

    async def _besides(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lifespan, and whatever may come."""
        if scope["type"] == "lifespan":
            await _Lifespan(self.manager, self._close_at_shutdown, receive, send).run(self.app, scope)
        else:
            await self.app(scope, receive, send)


class _Exchange(Exchange):
    """What the middleware keeps of one request: it ends the session in the right way and in time."""

    __slots__ = ()

    async def finish(self) -> None:
        """The app has returned; an HTTP app without an answer."""
        raise NotImplementedError

    async def fail(self, error: BaseException) -> bool:
        """The app raised or was cancelled. Returns whether the client has its answer all the same."""
        self.leave(error)
        if self.refused is not None:
            return error is self.refused
        answer = None if self.started else refusal(error)
        if answer is None:
            return False
        self.started = True
        await _answer(self.scope, self.forward, answer, error)
        return True

    async def refuse(self, error: Exception) -> None:
        """The commit failed. The client is answered from here or by the app, which learns why in any case."""
        self.leave(error)
        answer = refusal(error)
        if answer is None:
            self.started = False  # the app may still send an error page
        else:
            forward, self.forward = self.forward, _swallow
            self.refused = error
            await _answer(self.scope, forward, answer, error)
        raise error

    def leave(self, error: BaseException) -> None:
        """End the session as a with block does on an exception: no commit, no I/O, and no later writes."""
        self.session.__exit__(type(error), error, error.__traceback__)

    def dressed(self, message: Message) -> Message:
        """The message with the headers that the committed session adds."""
        policy, session = self.policy, self.session
        renew = policy.refreshes and policy.renews(session, policy.gather(self.scope["headers"]))
        if session.cookie_state == "set":
            policy.handed_out_in(self.scope)
        return dict(message, headers=policy.dress(session, message.get("headers", ()), renew))

    async def adressed(self, message: Message) -> Message:
        """`dressed` for a storage that does I/O."""
        policy, session = self.policy, self.session
        if not session.accessed:
            return message
        renew = policy.refreshes and await policy.arenews(session, policy.gather(self.scope["headers"]))
        if session.cookie_state == "set":
            policy.handed_out_in(self.scope)
        return dict(message, headers=policy.dress(session, message.get("headers", ()), renew))


class _Request(_Exchange):
    """One HTTP request: the session is committed just before the response headers leave."""

    __slots__ = ()

    def begin(self, message: Message) -> Awaitable[None]:
        """The response's start, if the storage does I/O or the app reports an error; else it is in the core."""
        if self.does_io:
            return self._acommit(message)
        try:
            self._drop_changes(message)
            self.session.close()
        except Exception as error:
            return self.refuse(error)
        return self.forward(self.dressed(message) if self.session.accessed else message)

    async def _acommit(self, message: Message) -> None:
        try:
            if message["status"] >= 500:
                self._drop_changes(message)
            await self.session.aclose()
        except Exception as error:
            await self.refuse(error)
        await self.forward(await self.adressed(message))

    def _drop_changes(self, message: Message) -> None:
        """A server error commits nothing, like an exception. A plain 500 because of a failed storage is not
        sent either: its cause is raised again and becomes the 503."""
        self.session.discard()
        cause = sys.exception()
        if cause is not None and message["status"] == 500 and refusal(cause) is not None:
            raise cause

    async def finish(self) -> None:
        self.session.discard()

    async def fail(self, error: BaseException) -> bool:
        if await super().fail(error):
            return True
        if self.started or not isinstance(error, Exception):
            return False
        session = self.session
        if session.accessed and session.cookie_state == "set":
            # The old id is dead, and the server's own 500 would leave the client with nothing else.
            self.started = True
            answer = FAILED
            if self.scope.get("http_version", "1.1").startswith("1"):
                # A server that sees an exception after an answer closes the connection; the client has to know.
                answer = answer._replace(headers=[*answer.headers, (b"connection", b"close")])
            await _answer(self.scope, self._send_dressed, answer)
        return False

    def _send_dressed(self, message: Message) -> Awaitable[None]:
        return self.forward(self.dressed(message) if "status" in message else message)


class _Socket(_Exchange):
    """One websocket. Only its handshake can carry a cookie: after it a session can change, but not begin."""

    __slots__ = ("_told",)

    def __init__(self, *_: Any) -> None:  # the core has taken them
        self._told: str | None = None  # the id that the handshake handed out

    def send(self, message: Message) -> Awaitable[None]:
        if self.started or message["type"] not in ("websocket.accept", "websocket.http.response.start"):
            return self.forward(message)
        self.started = True
        return self._handshake(message)

    async def _handshake(self, message: Message) -> None:
        try:
            await self._save()
        except Exception as error:
            await self.refuse(error)
        if self.session.cookie_state == "set":
            self._told = self.session.id
        await self.forward(await self.adressed(message))

    async def _save(self) -> None:
        if self.does_io:
            await self.session.asave()
        else:
            self.session.save()

    async def finish(self) -> None:
        """Commit what changed since the handshake."""
        session = self.session
        if session.is_dirty and session.is_new:
            log.warning(
                "a session begun after a websocket handshake was dropped: its id cannot be sent any more"
            )
            session.discard()
        try:
            await self._save()
        except SessionGone:  # a log-out elsewhere is no error of this app, and there is nobody to tell
            log.info("what a websocket changed at its end was dropped: its session has ended meanwhile")
            return
        if session.cookie_state == "set" and session.id != self._told:
            log.warning(
                "a session got a new id after a websocket handshake: the browser cannot learn it any more"
            )


_EXCHANGES: Final[dict[str, type[_Exchange]]] = {"http": _Request, "websocket": _Socket}


class _Lifespan:
    """The server's start and stop, which the manager shares with the app: up before it, down after it.

    An app may take no part in it, by an exception or by returning, before it has received anything. The protocol
    is then carried out in its place.
    """

    __slots__ = ("_close", "_first", "_manager", "_receive", "_send")

    def __init__(self, manager: "Manager", close: bool, receive: Receive, send: Send) -> None:
        self._manager = manager
        self._close = close
        self._receive = receive
        self._send = send
        self._first: Message | None = None  # lifespan.startup, until the app takes it

    async def run(self, app: App, scope: Scope) -> None:
        self._first = await self._receive()
        try:
            await self._start()
        except StorageMisconfigured as error:
            await self._send({"type": "lifespan.startup.failed", "message": f"sessions: {error}"})
            return
        try:
            await app(scope, self.receive, self.send)
        except Exception as error:
            if self._first is None:
                raise
            log.debug("the app takes no part in the lifespan: %s", type(error).__name__)
        if self._first is not None:
            await self.send({"type": "lifespan.startup.complete"})
            await self._receive()
            await self.send({"type": "lifespan.shutdown.complete"})

    async def receive(self) -> Message:
        """What the app receives."""
        first, self._first = self._first, None
        return await self._receive() if first is None else first

    async def send(self, message: Message) -> None:
        """Takes what the app sends. Its last message waits until the storage is closed."""
        kind = message["type"]
        if self._close and kind != "lifespan.startup.complete":
            try:
                await self._manager.aclose()
            except Exception as error:
                log.exception("the session storage could not be closed")
                if kind == "lifespan.shutdown.complete":
                    message = {"type": "lifespan.shutdown.failed", "message": f"sessions: {error}"}
        await self._send(message)

    async def _start(self) -> None:
        """One read, of an id that nobody has. What does not answer yet may do so when it is needed: until then
        each request is told so."""
        storage = self._manager.storage
        if not storage.does_io:
            return
        try:
            await storage.aload_record(new_id(), round(self._manager.ttl * 1e9))
        except StorageUnavailable as error:
            log.warning("the session storage does not answer at start-up: %s", error)


async def _swallow(message: Message) -> None:
    """Where the app's messages go after the middleware has answered."""


async def _answer(scope: Scope, send: Send, answer: Refusal, error: BaseException | None = None) -> None:
    if error is not None:
        answer.note(error)
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
        await send({"type": "http.response.body", "body": answer.body})
    elif "websocket.http.response" in scope.get("extensions", ()):
        await send(
            {"type": "websocket.http.response.start", "status": answer.status, "headers": answer.headers}
        )
        await send({"type": "websocket.http.response.body", "body": answer.body})
    else:
        await send({"type": "websocket.close", "code": 1013, "reason": answer.reason})
