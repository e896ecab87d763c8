"""Sessions for any ASGI 3 app: `SessionMiddleware(app, manager)` puts the session at `scope["session"]`.

Starlette and FastAPI hand that object out as `request.session`. No framework is imported here.

    before the app          nothing is read, unless the storage does I/O: then it is awaited here
    http.response.start     the session is committed, then the headers leave, with Set-Cookie if the id is new
    after that              the session is closed: a write raises SessionClosed instead of getting lost
    the app raises, or      what was not committed is dropped; a session that was destroyed or got a new id
    answers 5xx             stays so
    the storage fails       503 with Retry-After, the cookie is left alone
    websocket.accept        as http.response.start, but the session stays open: later changes are committed by
                            `await session.asave()` and at the end
"""

import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any, Final, Unpack

from ._http import HttpOptions, HttpPolicy, Refusal, log, refusal

if TYPE_CHECKING:
    from . import Manager, Session

__all__ = ["SessionMiddleware"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class SessionMiddleware:
    """Wraps an ASGI app. The options are those of `HttpOptions`; a wrong combination raises ValueError."""

    def __init__(self, app: App, manager: "Manager", **options: Unpack[HttpOptions]) -> None:
        self.app = app
        self.manager = manager
        self._policy = HttpPolicy(manager, **options)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind not in _EXCHANGES:  # lifespan, and whatever may come
            return await self.app(scope, receive, send)
        policy = self._policy
        carrier = policy.carrier
        carried = None
        for name, value in scope["headers"]:
            if name == carrier:
                if carried is not None:
                    carried = policy.gather(scope["headers"])
                    break
                carried = value
        does_io = self.manager.storage.does_io
        try:
            session = await policy.aopen(carried) if does_io else policy.open(carried)
        except Exception as error:
            if (answer := refusal(error)) is None:
                raise
            return await _answer(scope, send, answer)
        scope["session"] = session
        exchange = _EXCHANGES[kind](policy, session, does_io, scope, send)
        try:
            await self.app(scope, receive, exchange.send)
            if not exchange.complete:
                await exchange.finish()
        except BaseException as error:
            if not await exchange.fail(error):
                raise
        return None


class _Exchange:
    """One HTTP request: passes the app's messages on and commits the session before the headers leave."""

    __slots__ = ("_does_io", "_policy", "_scope", "_send", "_session", "_started", "complete", "refused")

    def __init__(
        self, policy: HttpPolicy, session: "Session", does_io: bool, scope: Scope, send: Send
    ) -> None:
        self._policy = policy
        self._session = session
        self._does_io = does_io
        self._scope = scope
        self._send = send
        self._started = False  # the response headers are leaving or have left
        self.complete = False  # they have left, and the session is committed
        self.refused: Exception | None = None  # why this class answered instead of the app

    def send(self, message: Message) -> Awaitable[None]:
        # Not `async`: with a storage in memory no message of the app costs a coroutine of ours.
        if self.refused is not None:
            return _nothing()
        if self._started or message["type"] != "http.response.start":
            return self._send(message)
        self._started = True
        if self._does_io:
            return self._acommit(message)
        try:
            if message["status"] >= 500:
                self._drop_changes(message)
            self._session.close()
        except Exception as error:
            return self._refuse(error)
        self.complete = True
        headers = message.get("headers", ())
        dressed = self._policy.dress(self._session, headers)
        return self._send(message if dressed is headers else {**message, "headers": dressed})

    async def _acommit(self, message: Message) -> None:
        try:
            if message["status"] >= 500:
                self._drop_changes(message)
            await self._session.aclose()
        except Exception as error:
            await self._refuse(error)
        self.complete = True
        await self._send(self._dressed(message))

    def _drop_changes(self, message: Message) -> None:
        """A server error commits nothing, like an exception. A plain 500 because of a failed storage is not
        sent either: its cause is raised again and becomes the 503."""
        self._session.discard()
        cause = sys.exception()
        if cause is not None and message["status"] == 500 and refusal(cause) is not None:
            raise cause

    def _dressed(self, message: Message) -> Message:
        headers = message.get("headers", ())
        dressed = self._policy.dress(self._session, headers)
        return message if dressed is headers else {**message, "headers": dressed}

    async def _refuse(self, error: Exception) -> None:
        """The commit failed. The client is answered from here or by the app, which learns why in any case."""
        self._leave(error)
        answer = refusal(error)
        if answer is None:
            self._started = False  # the app may still send an error page
        else:
            self.refused = error
            await _answer(self._scope, self._send, answer)
        raise error

    def _leave(self, error: BaseException) -> None:
        """End the session as a with block does on an exception: no commit, no I/O, and no later writes."""
        self._session.__exit__(type(error), error, error.__traceback__)

    async def finish(self) -> None:
        """The app returned without an answer: there is no success to commit."""
        self._session.discard()

    async def fail(self, error: BaseException) -> bool:
        """The app raised or was cancelled. Returns whether the client has its answer all the same."""
        self._leave(error)
        if self.refused is not None:
            return error is self.refused
        answer = None if self._started else refusal(error)
        if answer is None:
            return False
        self._started = True
        await _answer(self._scope, self._send, answer)
        return True


class _Socket(_Exchange):
    """One websocket. Only its handshake can carry a cookie: after it a session can change, but not begin."""

    __slots__ = ("_told",)

    def __init__(
        self, policy: HttpPolicy, session: "Session", does_io: bool, scope: Scope, send: Send
    ) -> None:
        super().__init__(policy, session, does_io, scope, send)
        self._told: str | None = None  # the id that the handshake handed out

    async def send(self, message: Message) -> None:
        if self.refused is not None:
            return
        kind = message["type"]
        if not self._started and kind in ("websocket.accept", "websocket.http.response.start"):
            self._started = True
            try:
                await self._asave()
            except Exception as error:
                await self._refuse(error)
            if self._session.cookie_state == "set":
                self._told = self._session.id
            message = self._dressed(message)
        await self._send(message)

    async def _asave(self) -> None:
        if self._does_io:
            await self._session.asave()
        else:
            self._session.save()

    def _leave(self, error: BaseException) -> None:
        """End the session as a with block does on an exception: no commit, no I/O, and no later writes."""
        self._session.__exit__(type(error), error, error.__traceback__)

    async def finish(self) -> None:
        """The handler returned: commit what changed since the handshake."""
        if self._session.is_dirty and self._session.is_new:
            log.warning(
                "a session begun after the websocket handshake was dropped: its id cannot be sent any more"
            )
            self._session.discard()
        await self._asave()
        if self._session.cookie_state == "set" and self._session.id != self._told:
            log.warning(
                "a session got a new id after the websocket handshake: the browser cannot learn it any more"
            )


_EXCHANGES: Final = {"http": _Exchange, "websocket": _Socket}


async def _nothing() -> None:
    """Where the app's messages go after this module has answered."""


async def _answer(scope: Scope, send: Send, answer: Refusal) -> None:
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
