"""Sessions for Starlette and FastAPI, kept on the server.

With all of cysession's own settings: `Middleware(cysession.asgi.SessionMiddleware, manager=manager)`; then
`request.session` and `websocket.session` are a `cysession.Session`. This module adds to that:

    get_session(request)    the same with its type; also for a WebSocket
    SessionDep              the same as a FastAPI dependency: `async def view(session: SessionDep)`
    SessionMiddleware       in place of starlette.middleware.sessions.SessionMiddleware: change the import, no more

The drop-in takes Starlette's arguments with Starlette's meaning and defaults, so it sends a cookie called `session`
over plain http too; pass `https_only=True` behind https. What is different then:

    - the cookie holds an id, and the data stay on the server: no 4 kB limit, nobody reads them, a log-out is final
    - values keep their types; a list or dict changed in place is noticed
    - `request.session` is a mapping, but no dict: `dict(request.session)` makes one
    - users who hold an old signed cookie are new visitors
    - `secret_key` signs nothing, since there is nothing to sign. It keeps apps apart that share this user's session
      directory, so a new key still logs everybody out

Sessions are in this user's private directory of files (`FileStorage()`), which all worker processes of one host share
and which survives a restart, as signed cookies do. For another place give `storage=` or a `manager=` of your own.
"""

from hashlib import sha256
from typing import TYPE_CHECKING, Annotated, Any, Final
from warnings import catch_warnings, simplefilter

from starlette.requests import HTTPConnection

from . import Manager, Session, Storage, asgi
from ._http import log
from .cookies import MAX_AGE_LIMIT, InsecureCookieWarning
from .errors import SessionError

if TYPE_CHECKING:
    from fastapi import Depends
    from starlette.datastructures import Secret
    from starlette.types import ASGIApp

__all__ = ["SessionMiddleware", "get_session"]  # and SessionDep, which only FastAPI users can import

TWO_WEEKS: Final = 14 * 24 * 60 * 60


def get_session(connection: HTTPConnection) -> Session:
    """The session of this request or websocket. Reads nothing, unless the storage does I/O: then it is read already.

    Raises SessionError if no middleware of cysession is in front of the app.
    """
    session = connection.scope.get("session")
    if type(session) is not Session:
        raise SessionError("this app has no sessions of cysession: add cysession's SessionMiddleware to it")
    return session


async def _session(connection: HTTPConnection) -> Session:
    """`get_session` for FastAPI, which would run it in a thread if it were not async."""
    return get_session(connection)


class SessionMiddleware(asgi.SessionMiddleware):
    """Starlette's SessionMiddleware with server-side sessions; see above. A wrong combination raises ValueError.

    max_age: seconds, of the cookie and of the idle time; both slide with use. None: the cookie ends with the browser,
        the session after two weeks without use. A manager given has its own idle time.
    storage, manager: where sessions are kept, or how they are kept altogether; not both.
    """

    def __init__(
        self,
        app: "ASGIApp",
        secret_key: "str | Secret | None" = None,
        session_cookie: str = "session",
        max_age: int | None = TWO_WEEKS,
        path: str = "/",
        same_site: str = "lax",
        https_only: bool = False,
        domain: str | None = None,
        partitioned: bool = False,
        *,
        storage: Storage | None = None,
        manager: Manager | None = None,
    ) -> None:
        if max_age is not None and max_age < 0:
            raise ValueError(
                f"max_age={max_age} is no time: give seconds, or None for a cookie that ends with the browser"
            )
        if manager is None:
            manager = Manager(max_age or TWO_WEEKS, storage or _files(secret_key))
        elif storage is not None:
            raise ValueError("give storage= or manager=, not both: a manager has its storage")
        with catch_warnings():
            simplefilter("ignore", InsecureCookieWarning)  # it tells of `insecure=`, which nobody gave
            super().__init__(
                app,
                manager,
                cookie=session_cookie,
                cookie_max_age=None if max_age is None else min(max_age, MAX_AGE_LIMIT),
                path=path,
                samesite=same_site,
                insecure=not https_only,
                domain=domain,
                partitioned=partitioned,
            )
        if not https_only:
            log.warning(
                "cookie %r is sent over plain http too; behind https pass https_only=True", session_cookie
            )


def _files(secret_key: object) -> Storage:
    """This user's session directory, and in it a realm for everybody with this key."""
    from .storage.file import FileStorage

    return FileStorage(realm="starlette:" + sha256(str(secret_key or "").encode()).hexdigest())


if TYPE_CHECKING:
    SessionDep = Annotated[Session, Depends(_session)]


def __getattr__(name: str) -> Any:
    """SessionDep, made when it is asked for: Starlette alone has no FastAPI."""
    if name != "SessionDep":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fastapi import Depends

    return globals().setdefault(name, Annotated[Session, Depends(_session)])
