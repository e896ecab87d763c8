"""SessionMiddleware: a drop-in for Django's own, with the cookie policy of the other adapters.

    MIDDLEWARE = ["cysession.django.SessionMiddleware", ...]      # in place of django.contrib.sessions.middleware...

It obeys the same SESSION_COOKIE_* settings and `set_expiry`. What it does otherwise:

    Set-Cookie        when the id is new, when the expiry changed, and when a tenth of a persistent cookie's life
                      has passed; Django's own sends it with every change
    the storage fails 503 with Retry-After and the cookie left alone, never an empty session
    the session was   deleted by another request meanwhile: 409, as with the other adapters; Django's own: 400
    a dead cookie     is left alone: a log-in in another window may just have replaced it
    several cookies   of the name: the live one, in whatever order they came; of two live ones none
    no-store          on every response that carries an id

CYSESSION has three more options for it: HEADER, PARTITIONED and SEND_COOKIE, as in `cysession.wsgi`.
"""

# pyright: reportAttributeAccessIssue=false
# Django's request knows nothing of the session that it is given.

import warnings
from collections.abc import Callable, Container
from http.cookies import Morsel
from typing import Any, Final

from django.conf import settings
from django.contrib.sessions.backends.base import UpdateError
from django.contrib.sessions.middleware import SessionMiddleware as DjangoSessionMiddleware
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponse

from .. import Session, SessionGone
from .._headers import as_text
from .._http import HttpOptions, HttpPolicy
from .._refusal import refusal
from ..cookies import MAX_AGE_LIMIT, InsecureCookieWarning
from .conf import get_manager, option
from .expiry import EXPIRY
from .store import SessionStore

__all__ = ["SessionMiddleware"]

POLICIES: Final = 256  # for how many lifetimes other than the usual one a policy is kept


class SessionMiddleware(DjangoSessionMiddleware):  # type: ignore[misc]  # Django is not typed
    """Give every request its session, and commit it before the response leaves. For sync and async sites."""

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        super().__init__(get_response)
        if not issubclass(self.SessionStore, SessionStore):
            raise ImproperlyConfigured(
                'cysession.django.SessionMiddleware needs SESSION_ENGINE = "cysession.django", or an engine whose '
                "SessionStore is a subclass of its"
            )
        self._policy = _policy()
        self._policies: dict[int, HttpPolicy] = {}
        self._does_io = get_manager().storage.does_io
        self._every = bool(settings.SESSION_SAVE_EVERY_REQUEST)

    def __call__(self, request: HttpRequest) -> Any:
        if self.async_mode:
            return self.__acall__(request)
        policy = self._policy
        carried = _carried(policy, request)
        try:
            request.session = self.SessionStore.of(policy.open(carried))
        except Exception as error:
            return _answer(error)
        response = self.get_response(request)
        store = request.session
        if type(response) is _Answer or not isinstance(store, SessionStore):
            return response
        if self._every and store.session_key is not None:
            store.keys()  # SESSION_SAVE_EVERY_REQUEST: that is a use, too
        if not (store.accessed or store.in_use):
            return response
        try:
            if response.status_code >= 500:
                core = store.abandon()
            else:
                core = store.commit()
        except Exception as error:
            return _answer(error)
        policy = self._policy_of(core)
        renew = store.expiry_changed or (policy.refreshes and policy.renews(core, carried))
        return _dress(policy, core, response, renew)

    async def __acall__(self, request: HttpRequest) -> Any:
        policy = self._policy
        carried = _carried(policy, request)
        try:
            core = await policy.aopen(carried) if self._does_io else policy.open(carried)
        except Exception as error:
            return _answer(error)
        request.session = self.SessionStore.of(core)
        response = await self.get_response(request)
        store = request.session
        if type(response) is _Answer or not isinstance(store, SessionStore):
            return response
        if self._every and store.session_key is not None:
            store.keys()  # SESSION_SAVE_EVERY_REQUEST: that is a use, too
        if not (store.accessed or store.in_use):
            return response
        try:
            if response.status_code >= 500:
                core = store.abandon()
            else:
                core = await store.acommit()
        except Exception as error:
            return _answer(error)
        policy = self._policy_of(core)
        renew = store.expiry_changed or (policy.refreshes and await policy.arenews(core, carried))
        return _dress(policy, core, response, renew)

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        """A view that failed because its session did: the client learns that, not of a bug in the view."""
        if isinstance(error, UpdateError):
            error = SessionGone()
        return None if refusal(error) is None else _answer(error)

    def _policy_of(self, core: Session) -> HttpPolicy:
        """The policy for a session whose own expiry gives its cookie another life than SESSION_COOKIE_AGE."""
        expiry = core.get(EXPIRY) if core.accessed else None
        if expiry is None or self._policy.name is None:
            return self._policy
        age = 0
        if expiry:
            age = max(1, round(self.SessionStore(None).get_expiry_age(expiry=expiry)))
        policy = self._policies.get(age)
        if policy is None:
            if len(self._policies) >= POLICIES:
                self._policies.clear()
            policy = self._policies[age] = self._policy.lasting(min(age, MAX_AGE_LIMIT) or None)
        return policy


# -- settings --------------------------------------------------------------------------------------------


def _http_options() -> HttpOptions:
    options: HttpOptions = {"send_cookie": option("SEND_COOKIE", True)}
    header = option("HEADER")
    if header is not None:
        options["header"] = header

    def counts(name: str) -> bool:  # beside a header only what was set on purpose, for HttpPolicy to refuse
        return header is None or settings.is_overridden(name)

    if counts("SESSION_COOKIE_NAME"):
        options["cookie"] = settings.SESSION_COOKIE_NAME
    if counts("SESSION_COOKIE_PATH"):
        options["path"] = settings.SESSION_COOKIE_PATH
    if counts("SESSION_COOKIE_DOMAIN"):
        options["domain"] = settings.SESSION_COOKIE_DOMAIN
    if counts("SESSION_COOKIE_SAMESITE"):
        options["samesite"] = settings.SESSION_COOKIE_SAMESITE
    if counts("SESSION_COOKIE_SECURE") and not settings.SESSION_COOKIE_SECURE:
        options["insecure"] = True
    if counts("SESSION_COOKIE_HTTPONLY") and not settings.SESSION_COOKIE_HTTPONLY:
        options["httponly"] = False
    if option("PARTITIONED") is not None:
        options["partitioned"] = option("PARTITIONED")
    if header is None and not settings.SESSION_EXPIRE_AT_BROWSER_CLOSE:
        age = settings.SESSION_COOKIE_AGE
        options["cookie_max_age"] = min(age, MAX_AGE_LIMIT) if isinstance(age, int) else age
    return options


def _policy() -> HttpPolicy:
    options = _http_options()
    if options.get("insecure"):
        warnings.warn(
            "SESSION_COOKIE_SECURE is False: session ids travel readable over plain http, for development only. Where "
            "the site is served over https, set it to True",
            InsecureCookieWarning,
            stacklevel=3,
        )
    if options.get("httponly") is False:
        warnings.warn(
            "SESSION_COOKIE_HTTPONLY is False: scripts can read the session ids",
            InsecureCookieWarning,
            stacklevel=3,
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InsecureCookieWarning)  # it speaks of options that nobody gave
            return HttpPolicy(get_manager(), **options)
    except (TypeError, ValueError) as error:
        raise ImproperlyConfigured(f"SESSION_COOKIE_* or CYSESSION: {error}") from error


# -- requests and responses -------------------------------------------------------------------------------------------


def _carried(policy: HttpPolicy, request: HttpRequest) -> bytes | None:
    scope = request.__dict__.get("scope")
    if (
        scope is not None
    ):  # ASGI; Django joins the crumbs of HTTP/2 with commas, which no cookie parser splits at
        return policy.gather(scope["headers"])
    return policy.carried_in(request.META)


class _Answer(HttpResponse):  # type: ignore[misc]
    """What is sent in place of the site's response. The cookie stays as it is."""

    _has_been_logged = True  # to Django: the reason stands in our log, "Service Unavailable" says less


def _answer(error: Exception) -> _Answer:
    answer = refusal(error)
    if answer is None:
        raise error
    answer.note(error)
    headers = dict(as_text(answer.headers))
    return _Answer(answer.body, status=answer.status, reason=answer.reason, headers=headers)


DRESSED: Final = ("vary", "cache-control")  # the headers of a response that the policy looks at


def _dress(policy: HttpPolicy, core: Session, response: HttpResponse, renew: bool) -> HttpResponse:
    headers = response.headers
    if (
        core.cookie_state == "keep" and not renew and core.accessed and "Vary" not in headers
    ):  # as nearly always
        headers["Vary"] = policy.varies_on
        return response
    given = [(name, headers[name]) for name in DRESSED if name in headers]
    for pair in policy.dress_text(core, given, renew):
        if pair in given:
            continue
        name, value = pair
        if name == "set-cookie":
            line = _Line(value)
            response.cookies.pop(line.key, None)  # one of the view's gives way
            response.cookies[line.key] = line
        else:
            headers[name.title()] = value
    return response


class _Line(Morsel[str]):
    """A Set-Cookie line that goes out as it is: the policy has checked every byte of it."""

    def __init__(self, line: str) -> None:
        super().__init__()
        pair, *attributes = line.split("; ")
        name, _, value = pair.partition("=")
        self.set(name, value, value)
        for attribute in attributes:  # for those who look at response.cookies, such as tests
            key, equals, text = attribute.partition("=")
            if self.isReservedKey(key):
                self[key] = text if equals else True
        self._line = line

    def output(self, attrs: Container[str] | None = None, header: str = "Set-Cookie:", sep: str = "") -> str:
        return f"{header} {self._line}" if header else self._line

    def OutputString(self, attrs: Container[str] | None = None) -> str:
        return self._line
