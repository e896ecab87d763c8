"""Sessions for Flask: `CySession(app, manager)`, and `flask.session` is kept on the server.

    from cysession.flask import CySession

    CySession(app, Manager(storage=...))            # or CySession(manager=...) and later .init_app(app)

What works as Flask's own session does: the mapping, `permanent`, `modified`, `accessed`, `new`, `flash()`, the test
client's `session_transaction()`. What is better: a list or dict changed in place is noticed without `modified = True`,
no secret key is needed, a request that never looks at its session reads nothing, and what `cysession.Session` has is
there too: `session.regenerate_id()` at every log-in, `session.destroy()` at log-out, `session.bind(user)`. Its `id`,
`user` and `handle` are `session.core.id` and so on, because `{{ session.user }}` means the key in a template.

Settings, read by `init_app`:

    SESSION_COOKIE_NAME, _DOMAIN, _PATH (or APPLICATION_ROOT), _HTTPONLY, _SAMESITE, _PARTITIONED are honoured; the
    options of `HttpOptions`, given to CySession, go before them. Where a setting has Flask's own default value the
    safer one of cysession is used: cookie `__Host-id` (`__Secure-id` with a domain or path), Secure, SameSite=Lax.
    SESSION_COOKIE_SECURE has no say: cookies are Secure unless CySession is told `insecure=True`, for plain http.

    PERMANENT_SESSION_LIFETIME is the idle time of a session with `session.permanent = True` and the Max-Age of its
    cookie; others have the manager's ttl and a cookie that ends with the browser. SESSION_REFRESH_EACH_REQUEST: the
    cookie of a permanent session slides with every use. It is sent again once a tenth of its life has passed, not in
    each response, which no cache might keep then; False: only by requests that change the session.

A session is stored after all `after_request` functions, before the headers leave. If the storage fails, the client
gets 503 and keeps its cookie; if the session was ended elsewhere meanwhile, 409. Handlers of the app for
`StorageUnavailable`, `StorageMisconfigured` and `SessionGone` (`@app.errorhandler`) take precedence. A response
with a status of 500 or more drops what was not committed, but not a log-out or a new id.

A body that is generated while it is sent (`stream_with_context`) can read the session as it was, but no longer change
it: a write raises SessionClosed instead of getting lost.
"""

from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, ValuesView
from contextlib import suppress
from datetime import timedelta
from types import GeneratorType
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self, Unpack, cast

from flask import Flask, Request, Response, request
from flask.sessions import SessionInterface as FlaskInterface
from flask.sessions import SessionMixin
from markupsafe import Markup

from . import Manager
from ._http import HttpOptions, HttpPolicy, refusal
from .cookies import MAX_AGE_LIMIT
from .errors import SessionGone, StorageMisconfigured, StorageUnavailable

if TYPE_CHECKING:
    from . import Session

__all__ = ["CySession", "FlaskSession", "SessionInterface"]

SCOPED_NAME: Final = "__Secure-id"  # the default name where `__Host-` is not allowed
PERMANENT: Final = "_permanent"  # Flask's own keys in the data of a session
FLASHES: Final = "_flashes"
MARKUP: Final = " m"  # what marks a flashed Markup, as in Flask's cookies

# Jinja asks for `session.user` here before it looks for the key. No page may print the id by such a mistake.
_KEYS_IN_TEMPLATES: Final = frozenset({"id", "user", "handle"})
# What a cysession session has beyond a dict to change it; like a dict's own they count as a change.
_CHANGES: Final = frozenset({"set", "set_map", "remove", "remove_all", "modify", "bind", "save"})
_OPENED: Final = "cysession.flask"  # in the environ of a request whose session was opened
_ANSWERED: Final = (StorageUnavailable, StorageMisconfigured, SessionGone)


class CySession:
    """The extension. `options` are those of `HttpOptions`; a wrong combination raises ValueError in `init_app`.

    manager: None makes one in `init_app`, with FileStorage() and PERMANENT_SESSION_LIFETIME as its ttl.
    """

    def __init__(
        self, app: Flask | None = None, manager: Manager | None = None, **options: Unpack[HttpOptions]
    ) -> None:
        self.manager = manager
        self._options = options
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Keep the sessions of this app. One CySession may serve several."""
        if self.manager is None:
            self.manager = Manager(app.permanent_session_lifetime)
        app.session_interface = SessionInterface(self.manager, app, **self._options)
        app.extensions["cysession"] = self
        handlers = app.error_handler_spec[None][None]
        for error in _ANSWERED:
            handlers.setdefault(error, _answer)


class FlaskSession(SessionMixin):
    """`flask.session`: a `cysession.Session`, which has all the data, with what Flask adds."""

    accessed: bool = False  # Flask itself sets it
    _permanent: bool | None = None  # as set in this request
    _in_transaction = False  # opened by the test client
    _not_to_store = False  # modified was set to False after the last change
    _stored_changes = False

    def __init__(self, core: "Session", carried: bytes | None = None) -> None:
        self.core = core
        self._carried = carried

    # -- what Flask adds --

    @property
    def permanent(self) -> bool:
        """Whether it lives for PERMANENT_SESSION_LIFETIME, also when the browser is closed."""
        chosen = self._permanent
        return bool(self.core.get(PERMANENT, False)) if chosen is None else chosen

    @permanent.setter
    def permanent(self, value: bool) -> None:
        self._not_to_store = False
        self._permanent = bool(value)  # stored with the data, if there are any: see SessionInterface

    @property
    def modified(self) -> bool:
        """Whether there are changes to store, or there were some in the request that is over. Setting it to True is
        never needed; after False they are stored only if another one follows."""
        return self._stored_changes or (self.core.is_dirty and not self._not_to_store)

    @modified.setter
    def modified(self, value: bool) -> None:
        self._not_to_store = not value

    @property
    def new(self) -> bool:  # type: ignore[override]
        return self.core.is_new

    @property
    def sid(self) -> str:
        """The session's id, as Flask-Session calls it."""
        return self.core.id

    @property
    def ttl(self) -> float:
        """See `cysession.Session.ttl`."""
        return self.core.ttl

    @ttl.setter
    def ttl(self, seconds: float | timedelta) -> None:
        self.core.ttl = seconds

    def __getattr__(self, name: str) -> Any:
        """All else is the session's own: regenerate_id(), destroy(), bind(), save(), modify(), expires_at ..."""
        if name == "core" or name.startswith(
            "__"
        ):  # a half-made copy; a protocol that a session does not have
            raise AttributeError(name)
        if name in _KEYS_IN_TEMPLATES:
            raise AttributeError(f"session.{name} is the key {name!r} in templates; use session.core.{name}")
        if name in _CHANGES:
            self._not_to_store = False
        return getattr(self.core, name)

    # -- the mapping --

    def __getitem__(self, key: str) -> Any:
        value = self.core[key]
        return _with_markup(value) if key == FLASHES else value

    def __setitem__(self, key: str, value: Any) -> None:
        self._not_to_store = False
        self.core[key] = _without_markup(value) if key == FLASHES else value

    def __delitem__(self, key: str) -> None:
        self._not_to_store = False
        del self.core[key]

    def __contains__(self, key: object) -> bool:
        return key in self.core

    def __iter__(self) -> Iterator[str]:
        return iter(self.core)

    def __len__(self) -> int:
        return len(self.core)

    def __eq__(self, other: object) -> bool:
        return self.core == (other.core if isinstance(other, FlaskSession) else other)

    __hash__ = None  # type: ignore[assignment]

    def get(self, key: str, default: Any = None) -> Any:
        value = self.core.get(key, default)
        return _with_markup(value) if key == FLASHES else value

    def pop(self, key: str, *default: Any) -> Any:
        self._not_to_store = False
        value = self.core.pop(key, *default)
        return _with_markup(value) if key == FLASHES else value

    def keys(self) -> KeysView[str]:
        return cast(KeysView[str], self.core.keys())

    def values(self) -> ValuesView[Any]:
        return cast(ValuesView[Any], self.core.values())

    def items(self) -> ItemsView[str, Any]:
        return cast(ItemsView[str, Any], self.core.items())

    def clear(self) -> None:
        self._not_to_store = False
        self.core.remove_all()
        self._permanent = None

    def copy(self) -> dict[str, Any]:
        return self.core.get_map()

    def __ior__(self, other: Mapping[str, Any]) -> Self:
        self.update(other)
        return self

    def __repr__(self) -> str:
        return f"<FlaskSession {self.core!r}>"


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
        except _ANSWERED as error:
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
        core = session.core
        try:
            if response.status_code >= 500 or session._not_to_store:
                core.discard()
            if response.status_code < 500:
                self._complete(app, session, response)
            session._stored_changes = core.is_dirty
            core.close()
        except Exception as error:
            core.__exit__(type(error), error, error.__traceback__)
            if session._in_transaction or refusal(error) is None:
                raise  # a bug of the app, or a test's own session
            if response.status_code < 500:
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
            with suppress(*_ANSWERED):
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


def _answer(error: Exception) -> Response:
    """The default handler of errors that are no bugs of the app."""
    answer = refusal(error)
    assert answer is not None
    answer.note(error)
    headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in answer.headers]
    return Response(answer.body, answer.status, headers)


def _handler_of(app: Flask, error: Exception) -> Callable[[Any], Any]:
    """What the app, or the blueprint of the request, has registered for this error: at least `_answer`."""
    for name in (*request.blueprints, None):
        handlers = app.error_handler_spec[name][None]
        for kind in type(error).__mro__:
            if kind in handlers:
                return handlers[kind]
    return _answer


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


# -- flashed messages ----------------------------------------------------------------------------------------
# Markup is a str that templates do not escape. It is no type that a storage knows, but flash() takes it.


def _without_markup(flashes: Any) -> Any:
    if not any(hasattr(message, "__html__") for _, message in flashes):
        return flashes
    return [
        (category, {MARKUP: str(message.__html__())} if hasattr(message, "__html__") else message)
        for category, message in flashes
    ]


def _with_markup(flashes: Any) -> Any:
    if not flashes or not any(type(message) is dict for _, message in flashes):
        return flashes
    return [
        (category, Markup(message[MARKUP]) if type(message) is dict and MARKUP in message else message)
        for category, message in flashes
    ]
