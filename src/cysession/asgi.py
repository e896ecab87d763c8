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
from typing import TYPE_CHECKING, Any, Unpack

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
        self._does_io = manager.storage.does_io

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind != "http" and kind != "websocket":  # lifespan, and whatever may come
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
        try:
            session = await policy.aopen(carried) if self._does_io else policy.open(carried)
        except Exception as error:
            if (answer := refusal(error)) is None:
                raise
            return await _answer(scope, send, answer, error)
        scope["session"] = session
        exchange = (_Request if kind == "http" else _Socket)(policy, session, self._does_io, scope, send)
        try:
            await self.app(scope, receive, exchange.send)
            if not exchange.started or kind == "websocket":
                await exchange.finish()
        except BaseException as error:
            if not await exchange.fail(error):
                raise
        return None


class _Exchange:
    """What the middleware keeps of one request: it ends the session in the right way and in time."""

    __slots__ = ("does_io", "forward", "policy", "refused", "scope", "session", "started")

    def __init__(
        self, policy: HttpPolicy, session: "Session", does_io: bool, scope: Scope, forward: Send
    ) -> None:
        self.policy = policy
        self.session = session
        self.does_io = does_io
        self.scope = scope
        self.forward = forward  # to the server
        self.started = False  # the response headers are leaving or have left
        self.refused: Exception | None = None  # why the middleware answered instead of the app

    def send(self, message: Message) -> Awaitable[None]:
        """Takes what the app sends."""
        raise NotImplementedError

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
            self.refused = error
            await _answer(self.scope, self.forward, answer, error)
        raise error

    def leave(self, error: BaseException) -> None:
        """End the session as a with block does on an exception: no commit, no I/O, and no later writes."""
        self.session.__exit__(type(error), error, error.__traceback__)

    def dressed(self, message: Message) -> Message:
        headers = message.get("headers", ())
        dressed = self.policy.dress(self.session, headers)
        return message if dressed is headers else dict(message, headers=dressed)


class _Request(_Exchange):
    """One HTTP request: the session is committed just before the response headers leave."""

    __slots__ = ()

    def send(self, message: Message) -> Awaitable[None]:
        # Not `async`: with a storage in memory no message of the app costs a coroutine of ours.
        if self.refused is not None:
            return _nothing()
        if self.started or message["type"] != "http.response.start":
            return self.forward(message)
        self.started = True
        if self.does_io:
            return self._acommit(message)
        try:
            if message["status"] >= 500:
                self._drop_changes(message)
            self.session.close()
        except Exception as error:
            return self.refuse(error)
        return self.forward(self.dressed(message))

    async def _acommit(self, message: Message) -> None:
        try:
            if message["status"] >= 500:
                self._drop_changes(message)
            await self.session.aclose()
        except Exception as error:
            await self.refuse(error)
        await self.forward(self.dressed(message))

    def _drop_changes(self, message: Message) -> None:
        """A server error commits nothing, like an exception. A plain 500 because of a failed storage is not
        sent either: its cause is raised again and becomes the 503."""
        self.session.discard()
        cause = sys.exception()
        if cause is not None and message["status"] == 500 and refusal(cause) is not None:
            raise cause

    async def finish(self) -> None:
        self.session.discard()


class _Socket(_Exchange):
    """One websocket. Only its handshake can carry a cookie: after it a session can change, but not begin."""

    __slots__ = ("_told",)

    def __init__(
        self, policy: HttpPolicy, session: "Session", does_io: bool, scope: Scope, forward: Send
    ) -> None:
        super().__init__(policy, session, does_io, scope, forward)
        self._told: str | None = None  # the id that the handshake handed out

    async def send(self, message: Message) -> None:
        if self.refused is not None:
            return
        if not self.started and message["type"] in ("websocket.accept", "websocket.http.response.start"):
            self.started = True
            try:
                await self._save()
            except Exception as error:
                await self.refuse(error)
            if self.session.cookie_state == "set":
                self._told = self.session.id
            message = self.dressed(message)
        await self.forward(message)

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
        await self._save()
        if session.cookie_state == "set" and session.id != self._told:
            log.warning(
                "a session got a new id after a websocket handshake: the browser cannot learn it any more"
            )


async def _nothing() -> None:
    """Where the app's messages go after the middleware has answered."""


async def _answer(scope: Scope, send: Send, answer: Refusal, error: BaseException) -> None:
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
