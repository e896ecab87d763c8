"""Sessions for any WSGI app: `SessionMiddleware(app, manager)` puts the session at `environ["cysession.session"]`.

No framework is imported here; for Flask see cysession.flask, for Django cysession.django.

    before the app          nothing is read
    start_response          is noted and not passed on yet: until the first chunk of the body the app may change its
                            session, and may still take the response back (exc_info), as PEP 3333 has it
    the first chunk, write  the session is committed, then the headers leave, with Set-Cookie if the id is new
    after that              the session is closed: a write raises SessionClosed instead of getting lost. A stream
                            that goes on changing it opens it anew: `manager.new(session.id)`
    the app raises, or      what was not committed is dropped; a session that was destroyed or got a new id stays
    answers 5xx             so. If the client could not learn the new id any more, a plain 500 tells it
    the storage fails       503 with Retry-After, the cookie is left alone

Lists and files (wsgi.file_wrapper) go on to the server as they are, so that it still finds their length or calls
sendfile; all other bodies pass chunk by chunk, and their `close()` is called in any case.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, NoReturn, Unpack
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from ._headers import TextHeader, as_text
from ._http import HttpOptions, HttpPolicy
from ._refusal import FAILED, Refusal, refusal

if TYPE_CHECKING:
    from types import TracebackType

    from . import Manager, Session

    ExcInfo = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]

__all__ = ["ENVIRON_KEY", "SessionMiddleware"]

ENVIRON_KEY: Final = "cysession.session"
Write = Callable[[bytes], object]


class SessionMiddleware:
    """Wraps a WSGI app. The options are those of `HttpOptions`; a wrong combination raises ValueError."""

    def __init__(self, app: WSGIApplication, manager: "Manager", **options: Unpack[HttpOptions]) -> None:
        self.app = app
        self.manager = manager
        self._policy = HttpPolicy(manager, **options)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        policy = self._policy
        try:
            session = policy.open(policy.carried_in(environ))
        except Exception as error:
            if (answer := refusal(error)) is None:
                raise
            return _answer(start_response, answer, error)
        environ[ENVIRON_KEY] = session
        exchange = _Exchange(policy, session, environ, start_response)
        try:
            body = self.app(environ, exchange.start_response)
            return exchange.respond(body, environ.get("wsgi.file_wrapper"))
        except BaseException as error:
            if (instead := exchange.fail(error)) is None:
                raise
            return instead


class _Exchange:
    """What the middleware keeps of one request: it ends the session in the right way and in time."""

    __slots__ = (
        *("cause", "environ", "forward", "headers", "policy", "refused", "session", "status"),
        *("_exc_info", "_write"),
    )

    def __init__(
        self, policy: HttpPolicy, session: "Session", environ: WSGIEnvironment, forward: StartResponse
    ) -> None:
        self.policy = policy
        self.session = session
        self.environ = environ
        self.forward = forward  # the server's start_response
        self.status: str | None = None  # what the app has started
        self.headers: list[TextHeader] = []
        self.cause: BaseException | None = None  # what the app was handling when it did
        self.refused: Exception | None = None  # why the middleware answered instead of the app
        self._exc_info: ExcInfo | None = None
        self._write: Write | None = None  # the server's; the headers are on their way

    # -- what the app calls --

    def start_response(
        self, status: str, headers: list[TextHeader], exc_info: "ExcInfo | None" = None, /
    ) -> Write:
        if self._write is not None:  # the server knows whether it is too late
            if self.refused is None:
                self.forward(status, self._dressed(headers), exc_info)
            return self.write
        if self.status is not None and exc_info is None:
            raise AssertionError("start_response() was called a second time without exc_info (PEP 3333)")
        self.status = status
        self.headers = headers
        self.cause = exc_info[1] if exc_info else sys.exception()
        self._exc_info = exc_info
        return self.write

    def write(self, data: bytes, /) -> object:
        """Takes body data from apps older than PEP 333."""
        if self.refused is not None:
            return None
        if self._write is None:
            answer = self.begin()
            if answer is not None:
                self._refuse(answer)
        assert self._write is not None
        return self._write(data)

    # -- the response --

    @property
    def pending(self) -> bool:
        """Whether there are headers that have not left."""
        return self.status is not None and self._write is None and self.refused is None

    def respond(self, body: Iterable[bytes], file_wrapper: object) -> Iterable[bytes]:
        """The app has returned `body`. Returns what goes to the server."""
        if self.refused is not None:
            _close(body)
            return ()
        if self._write is not None:
            return body
        whole = type(body) is list or type(body) is tuple
        if self.status is None or not (
            whole or (isinstance(file_wrapper, type) and isinstance(body, file_wrapper))
        ):
            return _Body(self, body)
        try:
            answer = self.begin()
        except BaseException:
            _close(body)
            raise
        if answer is None:
            return body
        _close(body)
        return [answer.body]

    def begin(self) -> Refusal | None:
        """Commit the session, then let the headers leave: the app's, or those of the refusal that this returns."""
        assert self.status is not None
        session = self.session
        try:
            if self.status >= "5":
                self._drop_changes(self.status)
            session.close()
        except Exception as error:
            self.leave(error)
            if (answer := refusal(error)) is None:
                self.status = None  # the app may still send an error page
                raise
            answer.note(error)
            self.refused = error
            self._write = self.forward(*_head(answer))
            return answer
        exc_info, self._exc_info, self.cause = self._exc_info, None, None
        headers = self._dressed(self.headers)
        # The third argument only where the app gave one: some servers' start_response takes two.
        if exc_info is None:
            self._write = self.forward(self.status, headers)
        else:
            self._write = self.forward(self.status, headers, exc_info)
        return None

    def _refuse(self, answer: Refusal) -> NoReturn:
        """Send the answer from inside the app, and let it know why."""
        assert self._write is not None and self.refused is not None
        self._write(answer.body)
        raise self.refused

    def _drop_changes(self, status: str) -> None:
        """A server error commits nothing, like an exception. A plain 500 because of a failed storage is not
        sent either: its cause is raised again and becomes the 503."""
        self.session.discard()
        if self.cause is not None and status.startswith("500") and refusal(self.cause) is not None:
            raise self.cause

    def _dressed(self, headers: list[TextHeader]) -> list[TextHeader]:
        policy, session = self.policy, self.session
        if not session.accessed:
            return headers
        renew = policy.refreshes and policy.renews(session, policy.carried_in(self.environ))
        if session.cookie_state == "set":
            policy.handed_out(self.environ)
        return list(policy.dress_text(session, headers, renew))

    # -- when it goes wrong --

    def fail(self, error: BaseException) -> Iterable[bytes] | None:
        """The app raised. Returns the answer to send all the same; None: raise on."""
        self.leave(error)
        if self.refused is not None:
            return () if error is self.refused else None
        if self._write is not None or not isinstance(error, Exception):
            return None
        if (answer := refusal(error)) is not None:
            self.refused = error
            return _answer(self.forward, answer, error)
        if self.session.accessed and self.session.cookie_state == "set":
            # The old id is dead, and the server's own 500 would leave the client with nothing else.
            status, headers = _head(FAILED)
            self._write = self.forward(status, self._dressed(headers))
            self._write(FAILED.body)
        return None

    def leave(self, error: BaseException) -> None:
        """End the session as a with block does on an exception: no commit, no I/O, and no later writes."""
        self.session.__exit__(type(error), error, error.__traceback__)
        self._exc_info = self.cause = None


class _Body:
    """A body that is made while it is sent. The headers leave with its first chunk, be it an empty one."""

    __slots__ = ("_body", "_exchange")

    def __init__(self, exchange: _Exchange, body: Iterable[bytes]) -> None:
        self._exchange = exchange
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        exchange = self._exchange
        instead: Iterable[bytes] | None = None
        first: bytes | None = None
        chunks: Iterator[bytes] = iter(())
        try:
            chunks = iter(self._body)
            first = next(chunks, None)
            if exchange.pending and (answer := exchange.begin()) is not None:
                instead = [answer.body]
        except Exception as error:
            if (instead := exchange.fail(error)) is None:
                raise
        if instead is not None:
            yield from instead
        elif first is not None and exchange.refused is None:
            yield first
            yield from chunks

    def close(self) -> None:
        _close(self._body)


def _close(body: Any) -> None:
    close = getattr(body, "close", None)
    if close is not None:
        close()


def _head(answer: Refusal) -> tuple[str, list[TextHeader]]:
    return f"{answer.status} {answer.reason}", as_text(answer.headers)


def _answer(start_response: StartResponse, answer: Refusal, error: BaseException) -> Iterable[bytes]:
    answer.note(error)
    start_response(*_head(answer))
    return [answer.body]
