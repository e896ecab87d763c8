"""What Flask calls before and after each request, and how a response is dressed or replaced."""

from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from types import GeneratorType
from typing import TYPE_CHECKING, Any, Final, NoReturn, Unpack, cast

from flask import Flask, Request, Response, request
from flask.sessions import SessionInterface as FlaskInterface
from flask.sessions import SessionMixin

from .. import Manager
from .._headers import as_text
from .._http import HttpOptions, HttpPolicy
from .._refusal import refusal
from ..cookies import MAX_AGE_LIMIT
from ..errors import SessionGone, StorageMisconfigured, StorageUnavailable
from .session import PERMANENT, FlaskSession

if TYPE_CHECKING:
    from .. import Session

__all__ = ["ANSWERED", "SessionInterface", "answer"]

SCOPED_NAME: Final = "__Secure-id"  # the default name where `__Host-` is not allowed
ANSWERED: Final = (
    StorageUnavailable,
    StorageMisconfigured,
    SessionGone,
)  # errors that are no bugs of the app

_OPENED: Final = "cysession.flask"  # in the environ of a request whose session was opened


class SessionInterface(FlaskInterface):
    """What Flask calls before and after a request."""

    def __init__(self, manager: Manager, app: Flask, **options: Unpack[HttpOptions]) -> None:
        self.manager = manager
        self._policy = HttpPolicy(manager, **_with_settings(app, options))
        self._lifetime_is_set = "cookie_max_age" in options
        self._lasting: dict[timedelta, HttpPolicy] = {}
        self._refreshes = bool(app.config["SESSION_REFRESH_EACH_REQUEST"])

    def regenerate(self, session: FlaskSession) -> None:
        """Give the session a fresh id, as Flask-Session's interface does; better: `session.regenerate_id()`."""
        session.core.regenerate_id()

    def open_session(self, app: Flask, request: Request) -> FlaskSession:
        """The session of this request. Reads nothing, unless the browser sent several ids."""
        policy = self._policy
        environ = request.environ
        carried = policy.carried_in(environ)
        try:
            core = policy.open(carried)
        except ANSWERED as error:
            core = cast("Session", _Unreadable(error))
        session = FlaskSession(core, carried)
        if _OPENED in environ:  # the test client's session_transaction() opens it once more
            session._in_transaction = True
        environ[_OPENED] = True
        return session

    def save_session(self, app: Flask, session: SessionMixin, response: Response) -> None:
        """Commit the session and give the response its headers."""
        if not isinstance(session, FlaskSession):
            raise TypeError(
                f"cysession saves the sessions that it has opened, not a {type(session).__name__}"
            )
        core, failed = session.core, response.status_code >= 500
        try:
            if failed or session._not_to_store:
                core.discard()
            if not failed:
                self._complete(app, session, response)
            session._stored_changes = core.is_dirty
            core.close()
        except Exception as error:
            core.__exit__(type(error), error, error.__traceback__)
            if session._in_transaction or refusal(error) is None:
                raise  # a bug of the app, or a test's own session
            if not failed:
                handler = _handler_of(app, error)
                _replace(response, app.make_response(app.ensure_sync(handler)(error)))
            return
        if core.accessed:
            policy = self._policy_for(app, core)
            renew = (
                policy.refreshes
                and (session._stored_changes or self._refreshes)
                and policy.renews(core, session._carried)
            )
            _dress(response, policy, core, renew)
        elif session.accessed:  # Flask's rule: even a look at an attribute counts
            _vary(response, self._policy)

    def _complete(self, app: Flask, session: FlaskSession, response: Response) -> None:
        """What is left to do before the commit."""
        core = session.core
        if isinstance(response.response, GeneratorType) and not response.direct_passthrough:
            # It may read the session while it is sent, when it is too late for Vary.
            with suppress(*ANSWERED):
                core.load()
                core.contains(PERMANENT)
        if session._permanent is not None and not session._not_to_store:
            self._settle(core, session._permanent, app.permanent_session_lifetime)
        if core.is_dirty and len(core) == 1 and PERMANENT in core:
            core.remove(PERMANENT)  # alone it is not worth a record

    def _settle(self, core: "Session", permanent: bool, lifetime: timedelta) -> None:
        """Store what `session.permanent` was set to, with the idle time that goes with it."""
        was = bool(core.get(PERMANENT, False))
        if len(core) == was:
            return  # there is nothing that could live on
        if permanent:
            if not was:
                core[PERMANENT] = True
            if core.ttl != lifetime.total_seconds():
                core.ttl = lifetime
        elif was:
            core.remove(PERMANENT)
            core.ttl = self.manager.ttl

    def _policy_for(self, app: Flask, core: "Session") -> HttpPolicy:
        """The policy for the cookie of this closed session."""
        if self._lifetime_is_set or not core.get(PERMANENT, False):
            return self._policy
        lifetime = app.permanent_session_lifetime
        policy = self._lasting.get(lifetime)
        if policy is None:
            seconds = min(int(lifetime.total_seconds()), MAX_AGE_LIMIT)
            policy = self._lasting[lifetime] = self._policy.lasting(seconds)
        return policy


class _Unreadable:
    """In place of a session of which the storage could not say which one it is: each use raises why."""

    accessed = False
    is_dirty = False
    cookie_state = "keep"

    def __init__(self, error: Exception) -> None:
        self._error = error

    def _fail(self, *args: object) -> NoReturn:
        raise self._error

    __getattr__ = __getitem__ = __setitem__ = __delitem__ = __contains__ = __iter__ = __len__ = __eq__ = _fail
    __hash__ = None  # type: ignore[assignment]

    def discard(self) -> None: ...
    def load(self) -> None: ...
    def close(self) -> None: ...
    def contains(self, key: str) -> None: ...
    def __exit__(self, *args: object) -> None: ...


# -- settings ------------------------------------------------------------------------------------------------


def _with_settings(app: Flask, options: HttpOptions) -> HttpOptions:
    """`options`, and what the app's SESSION_COOKIE_* say besides."""
    if "header" in options:
        return options
    config = app.config
    found: HttpOptions = {
        "path": config["SESSION_COOKIE_PATH"] or config["APPLICATION_ROOT"] or "/",
        "domain": config["SESSION_COOKIE_DOMAIN"] or None,
        "samesite": config["SESSION_COOKIE_SAMESITE"] or "Lax",
        "partitioned": bool(config.get("SESSION_COOKIE_PARTITIONED")),
        "httponly": bool(config["SESSION_COOKIE_HTTPONLY"]),
    }
    if config["SESSION_COOKIE_NAME"] != Flask.default_config["SESSION_COOKIE_NAME"]:
        found["cookie"] = config["SESSION_COOKIE_NAME"]
    elif not options.keys() & {"path", "domain"} and (found["domain"] or found["path"] != "/"):
        found["cookie"] = SCOPED_NAME
    return {**found, **options}


# -- responses -----------------------------------------------------------------------------------------------


def answer(error: Exception) -> Response:
    """The default handler of errors that are no bugs of the app."""
    found = refusal(error)
    assert found is not None
    found.note(error)
    return Response(found.body, found.status, as_text(found.headers))


def _handler_of(app: Flask, error: Exception) -> Callable[[Any], Any]:
    """What the app, or the blueprint of the request, has registered for this error: at least `answer`."""
    for name in (*request.blueprints, None):
        handlers = app.error_handler_spec[name][None]
        for kind in type(error).__mro__:
            if kind in handlers:
                return handlers[kind]
    return answer


def _replace(response: Response, other: Response) -> None:
    """Make `response`, which Flask is about to send, one with `other`."""
    close = getattr(response.response, "close", None)
    if close is not None:
        close()
    response.status = other.status
    response.headers = other.headers
    response.response = other.response
    response.direct_passthrough = other.direct_passthrough


def _dress(response: Response, policy: HttpPolicy, core: "Session", renew: bool) -> None:
    if policy.hands_out(core, renew):
        policy.handed_out(request.environ)
        response.headers = type(response.headers)(policy.dress_text(core, response.headers, renew))
    else:
        _vary(response, policy)


def _vary(response: Response, policy: HttpPolicy) -> None:
    headers = response.headers
    for name, _ in headers:
        if len(name) == 4 and name.lower() == "vary":
            response.headers = type(headers)(policy.vary_text(headers))
            return
    headers.add("Vary", policy.vary_on)
