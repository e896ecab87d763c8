"""What every HTTP adapter does alike: find the presented ids, choose the session, dress the response.

An adapter hands over the raw request headers that may carry an id and gets a session; when the response
headers are about to leave, it commits the session and has the headers dressed. What can be decided before the
first request is decided, checked and formatted in the constructor of `HttpPolicy`.

Headers are (name, value) pairs of bytes with lower-case names, as in ASGI; `carried_in` and `dress_text` are for
gateways that hand them out and take them as str (WSGI).

Sliding refresh. The server's idle time begins anew with every use, a browser's Max-Age does not, and an active
user must not be logged out by it. So a persistent cookie (`cookie_max_age`) is `<id>.<time of issue>`, and it is
sent again once a tenth of its life has passed: at most ten times a Max-Age, by a response that looked at the
session and carries Vary and no-store anyway. The time of issue is in seconds, decides nothing but this, and may
be forged: its owner then gets the cookie again, or does not. Only an id that still is its session's is sent
again: a slow response never brings back an id that was rotated or destroyed while it was made.
"""

import logging
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypedDict

from ._core import carrier_value, presented_id, presented_stamp, stamp_is_young
from ._headers import (
    Header,
    TextHeader,
    as_bytes,
    as_text,
    checked_name,
    with_no_store,
    with_vary,
    without_cookie,
    without_header,
)
from .cookies import (
    DEFAULT_NAME,
    MAX_CANDIDATES,
    InsecureCookieWarning,
    SessionCookie,
    find_values,
    without_prefix,
)
from .errors import SessionError
from .ids import fingerprint, well_formed

if TYPE_CHECKING:
    from . import Manager, Session

__all__ = ["HttpOptions", "HttpPolicy"]

log = logging.getLogger("cysession.http")

REFRESHES: Final = 10  # how often within its Max-Age a persistent cookie may be sent again

_LOOPBACK: Final = frozenset(("localhost", "127.0.0.1", "[::1]"))


class HttpOptions(TypedDict, total=False):
    """The keyword arguments that all HTTP adapters share.

    Attributes:
        cookie: the cookie's name, `__Host-id` by default
        path: the cookie's scope; a `__Host-` name allows only "/"
        domain: the same; a `__Host-` name allows none
        samesite: "Lax" (default), "Strict" or "None"
        partitioned: a jar of its own on every site that embeds this one (CHIPS)
        cookie_max_age: seconds or a timedelta, sliding with use; None: the cookie ends with the browser
        send_cookie: False: take ids but never hand one out, because another service does
        insecure: plain http, for development: no Secure, and the name loses its prefix
        httponly: False: the page's scripts can read the id, and so can whoever gets a script into the page
        header: carry the id in this header, both ways, and ignore cookies: for API clients. Scripts can
            read it there, so it is never the default
    """

    cookie: str | None
    path: str
    domain: str | None
    samesite: str
    partitioned: bool
    cookie_max_age: int | timedelta | None
    send_cookie: bool
    insecure: bool
    httponly: bool
    header: str | None


class HttpPolicy:
    """How session ids travel over HTTP: immutable, one for an adapter, shared by all its requests."""

    __slots__ = (
        *(
            "_clock",
            "_cookie",
            "_key",
            "_make_cookie",
            "_new",
            "_refresh_after",
            "_sends",
            "_told",
            "_variable",
        ),
        *("_vary", "_vary_text", "carrier", "manager", "name", "plain_vary", "refreshes", "varies_on"),
    )

    def __init__(
        self,
        manager: "Manager",
        *,
        cookie: str | None = None,
        path: str = "/",
        domain: str | None = None,
        samesite: str = "Lax",
        partitioned: bool = False,
        cookie_max_age: int | timedelta | None = None,
        send_cookie: bool = True,
        insecure: bool = False,
        httponly: bool = True,
        header: str | None = None,
    ) -> None:
        self.manager = manager
        self._new = manager.new
        self._sends = send_cookie
        self._cookie: SessionCookie | None = None
        self._make_cookie: Callable[..., SessionCookie]
        self._clock = manager.storage.clock
        self._refresh_after = 0.0
        self._told = insecure or header is not None  # of plain http
        self.refreshes = False  # whether `renews` is worth asking
        if header is not None:
            chosen = (cookie, path, domain, samesite, partitioned, cookie_max_age, insecure, httponly)
            if chosen != (None, "/", None, "Lax", False, None, False, True):
                raise ValueError("header= replaces the cookie: leave out cookie= and the cookie's attributes")
            self._key = self.carrier = checked_name(header)
            self.name: bytes | None = None
            self._vary = (b"vary", header.encode("ascii"))
            # What a response gets that hands no id out; None: each has to be asked whether it does.
            self.plain_vary: Header | None = self._vary
            self._name_for_gateways()
            return
        name = DEFAULT_NAME if cookie is None else cookie
        if insecure:
            name = without_prefix(name)
            warnings.warn(
                f"insecure=True: session ids travel readable, in cookie {name!r}; for development only",
                InsecureCookieWarning,
                stacklevel=3,  # the line that made the adapter
            )
        if not httponly:
            warnings.warn(
                f"httponly=False: scripts can read the ids in cookie {name!r}",
                InsecureCookieWarning,
                stacklevel=3,
            )
        self._make_cookie = partial(
            SessionCookie,
            name,
            path=path,
            domain=domain,
            secure=not insecure,
            httponly=httponly,
            samesite=samesite,
            partitioned=partitioned,
        )
        self.carrier = b"cookie"  # the request header that carries ids
        self._vary = (b"vary", b"Cookie")
        self._use(self._make_cookie(max_age=cookie_max_age))
        self._name_for_gateways()

    def _use(self, cookie: SessionCookie) -> None:
        self._cookie = cookie
        # The name of the cookie in the carrier header; None: the header's value is the id.
        self._key = self.name = cookie.key
        self._refresh_after = (cookie.max_age or 0) / REFRESHES
        self.refreshes = bool(cookie.max_age) and self._sends
        self.plain_vary = None if self.refreshes else self._vary

    def lasting(self, cookie_max_age: int | timedelta | None) -> "HttpPolicy":
        """The same policy with a cookie of another life."""
        policy = copy(self)
        if policy._cookie is not None:
            policy._use(self._make_cookie(max_age=cookie_max_age))
        return policy

    @property
    def vary_on(self) -> str:
        """The request header that decides which session it is."""
        return self._vary_text[1]

    def _name_for_gateways(self) -> None:
        self._variable = "HTTP_" + self.carrier.decode("ascii").upper().replace("-", "_")
        self.varies_on = self._vary[1].decode("ascii")
        self._vary_text = ("vary", self.varies_on)

    # -- the request: which session? --

    def session_for(self, headers: Iterable[Header]) -> "Session":
        """The session of a request with these headers. Reads nothing, unless there is a choice."""
        presented = presented_id(headers, self.carrier, self.name)
        if presented is False:
            return self.open(self.gather(headers))
        return self._new(presented)

    async def asession_for(self, headers: Iterable[Header]) -> "Session":
        """`session_for` for a storage that does I/O: a presented id is read here; `session[key]` never waits."""
        presented = presented_id(headers, self.carrier, self.name)
        if presented is False:
            return await self.aopen(self.gather(headers))
        session = self._new(presented)
        if presented is not None:
            await session.aload()
        return session

    def open(self, carried: bytes | None) -> "Session":
        """`session_for` where the server hands out one carrier header only, all its lines joined."""
        if carried is None:
            return self._new()
        presented = presented_id(((self.carrier, carried),), self.carrier, self.name)
        if presented is not False:
            return self._new(presented)
        values = self._values(carried)
        if len(values) == 1:
            return self._new(values[0].decode("latin-1"))
        sessions = self._candidates(values)
        if len(sessions) > 1:
            for session in sessions:
                session.load()
        return self._choose(sessions)

    async def aopen(self, carried: bytes | None) -> "Session":
        """`open` for a storage that does I/O."""
        sessions = self._candidates([] if carried is None else self._values(carried))
        for session in sessions:
            await session.aload()
        return self._choose(sessions)

    def gather(self, headers: Iterable[Header]) -> bytes | None:
        """All carrier headers of a request as one, or None. HTTP/2 splits the Cookie header into crumbs; others
        are joined by commas, as any gateway may do (RFC 9110, 5.3); no id has one."""
        plain = carrier_value(headers, self.carrier)
        if plain is not False:
            return plain
        values = [value for name, value in headers if name == self.carrier]
        return (b"; " if self._cookie is not None else b",").join(values) if values else None

    def carried_in(self, environ: Mapping[str, Any]) -> bytes | None:
        """The carrier header in a WSGI environment, for `open`."""
        value = environ.get(self._variable)
        if value is None:
            return None
        carried: bytes = value.encode("latin-1", "replace")
        return carried

    def _values(self, carried: bytes) -> list[bytes]:
        """What may be ids, at most MAX_CANDIDATES."""
        return [value for value, _ in self._stamped_values(carried)]

    def _stamped_values(self, carried: bytes) -> list[tuple[bytes, int]]:
        if self._cookie is None:
            lines = carried.split(b",", MAX_CANDIDATES)[:MAX_CANDIDATES]
            return [(line.strip(b" \t"), -1) for line in lines]
        return [_without_stamp(value) for value in find_values(carried, self._key)]

    def _candidates(self, values: list[bytes]) -> list["Session"]:
        ids = dict.fromkeys(value.decode("latin-1") for value in values)
        return [self._new(session_id) for session_id in ids if well_formed(session_id)]

    def _choose(self, sessions: list["Session"]) -> "Session":
        """The only live session, and of several live ones none: an attacker can set the order in which twins
        of a cookie arrive, so it decides nothing."""
        if not sessions:
            return self._new()
        if len(sessions) == 1:
            return sessions[0]
        live = [session for session in sessions if not session.is_new]
        if len(live) == 1:
            return live[0]
        if live:
            prints = ", ".join(fingerprint(session.id) for session in live)
            log.warning(
                "a request presented several live sessions (%s), none was used: cookie tossing?", prints
            )
        return self._new()

    # -- the response: which headers? --

    def renews(self, session: "Session", carried: bytes | None) -> bool:
        """Whether the response to a request with this carrier header should send its cookie again. Ask after the
        commit, and only if `refreshes`; reads the storage if it is time."""
        if not self._is_due(session, carried):
            return False
        try:
            return self.manager.storage.is_current(session.id)
        except SessionError as error:  # the response is fine without
            log.warning("a cookie was not refreshed: %s", error)
            return False

    async def arenews(self, session: "Session", carried: bytes | None) -> bool:
        """`renews` for a storage that does I/O."""
        if not self._is_due(session, carried):
            return False
        try:
            return await self.manager.storage.ais_current(session.id)
        except SessionError as error:
            log.warning("a cookie was not refreshed: %s", error)
            return False

    def _is_due(self, session: "Session", carried: bytes | None) -> bool:
        if carried is None or not self.refreshes:
            return False
        if stamp_is_young(carried, self._key, self._clock, self._refresh_after):  # as nearly always
            return False
        if session.cookie_state != "keep" or not session.accessed or session.is_new:
            return False
        now = self._now()
        stamp = presented_stamp(carried, self._key)
        if stamp is not False:  # the only cookie of this name, so it is the one that named the session
            return stamp is not None and self._is_old(stamp, now)
        own = session.id.encode("ascii")
        stamps = [stamp for value, stamp in self._stamped_values(carried) if value == own]
        # Of twins, one is out of our cookie's scope and stays as it is.
        return bool(stamps) and all(self._is_old(stamp, now) for stamp in stamps)

    def _is_old(self, stamp: int, now: int) -> bool:
        """No stamp (-1): it was not persistent when it was issued. One from the future: a clock was put right."""
        return not (0 <= stamp <= now < stamp + self._refresh_after)

    def _now(self) -> int:
        return max(0, int(time.time() if self._clock is None else self._clock()))

    def hands_out(self, session: "Session", renew: bool = False) -> bool:
        """Whether the response hands an id out or takes it back. Nearly all do not: they get Vary and no more."""
        return self._sends and (renew or session.cookie_state != "keep")

    def dress(self, session: "Session", headers: Iterable[Header], renew: bool = False) -> Iterable[Header]:
        """The response headers with what this committed session adds; never changes `headers` itself.

        renew: what `renews` said; the cookie is sent again.
        """
        if not session.accessed:
            return headers
        headers = [*headers]
        state = session.cookie_state
        if (state == "keep" and not renew) or not self._sends:
            for name, _ in headers:
                if len(name) == 4 and name.lower() == b"vary":
                    return with_vary(headers, self._vary)
            headers.append(self._vary)
            return headers
        line = self._line("" if state == "drop" else session.id)
        return [*with_no_store(self._without_own(with_vary(headers, self._vary))), line]

    def dress_text(
        self, session: "Session", headers: Iterable[TextHeader], renew: bool = False
    ) -> Iterable[TextHeader]:
        """`dress` for headers of str."""
        if not session.accessed:
            return headers
        if not self.hands_out(session, renew):
            return self.vary_text(headers)
        return as_text(self.dress(session, as_bytes(headers), renew))

    def vary_text(self, headers: Iterable[TextHeader]) -> list[TextHeader]:
        """The headers with Vary."""
        headers = [*headers]
        for name, _ in headers:
            if len(name) == 4 and name.lower() == "vary":
                return as_text(with_vary(as_bytes(headers), self._vary))
        headers.append(self._vary_text)
        return headers

    def handed_out(self, environ: Mapping[str, Any]) -> None:
        """An id goes out in the answer to this WSGI request: if a browser will not keep it, say so once in the log."""
        if not self._told and environ["wsgi.url_scheme"] == "http":
            self._tell_of_http(environ.get("HTTP_HOST", ""), environ.get("HTTP_X_FORWARDED_PROTO"))

    def handed_out_in(self, scope: Mapping[str, Any]) -> None:
        """`handed_out` for an ASGI request."""
        if not self._told and scope.get("scheme") in ("http", "ws"):
            headers = dict(as_text(scope["headers"]))
            self._tell_of_http(headers.get("host", ""), headers.get("x-forwarded-proto"))

    def _tell_of_http(self, host: str, forwarded: str | None) -> None:
        if host in _LOOPBACK or host.rpartition(":")[0] in _LOOPBACK or forwarded == "https":
            return  # to browsers this machine is as good as https
        self._told = True
        log.warning(
            "a Secure cookie goes out over plain http, and browsers will not keep it: serve https, or pass "
            "insecure=True in development (if a proxy does the https, nothing is wrong)"
        )

    def _line(self, session_id: str) -> Header:
        """The header that hands an id out, or has the client forget it ("")."""
        if self._cookie is None:
            return (self._key, session_id.encode("ascii"))
        if not session_id:
            return (b"set-cookie", self._cookie.delete())
        if self._cookie.max_age:
            session_id = f"{session_id}.{self._now()}"
        return (b"set-cookie", self._cookie.set(session_id))

    def _without_own(self, headers: list[Header]) -> list[Header]:
        """One Set-Cookie a name: a line of the app's for our cookie gives way."""
        if self._cookie is None:
            return without_header(headers, self._key)
        return without_cookie(headers, self._key)


def _without_stamp(value: bytes) -> tuple[bytes, int]:
    """A cookie's value without its time of issue, and that time, or -1."""
    session_id, dot, stamp = value.rpartition(b".")
    return (session_id, int(stamp)) if dot and stamp.isdigit() and len(stamp) <= 12 else (value, -1)
