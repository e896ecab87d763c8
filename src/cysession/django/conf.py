"""The setting CYSESSION, and the manager that is made of it.

    STORAGE       URL of the storage ("file:///var/lib/app", "memory://", "redis://..."), or a cysession Storage.
                  Default: files in this user's private state directory
    MANAGER       a Manager, or the dotted path of one, in place of all settings here that describe it
    MAX_AGE       seconds or a timedelta after which a session ends however busy it is. Default: none
    MAX_BYTES     limit of one session's data; 0: none. Default: 65536
    MAX_PER_USER  how many sessions one user may have; the oldest go. Implies BIND_USERS
    BIND_USERS    note at log-in whose session it is, for get_manager().sessions_of(str(user.pk)) and .revoke(...)
    CLOCK         a callable that returns seconds since the epoch, or its dotted path: for tests that turn time

For cysession.django.SessionMiddleware, as the options of those names in cysession.asgi and cysession.wsgi:

    HEADER        carry the id in this header instead of a cookie
    PARTITIONED   True: a cookie of its own on every site that embeds this one
    SEND_COOKIE   False: take ids, but hand none out

The idle time is Django's SESSION_COOKIE_AGE. A wrong setting raises ImproperlyConfigured and names itself.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.utils.module_loading import import_string

from .. import Manager, SessionError

__all__ = ["get_manager"]

MANAGER_OPTIONS: Final = ("STORAGE", "MAX_AGE", "MAX_BYTES", "MAX_PER_USER", "CLOCK")
KNOWN: Final = (*MANAGER_OPTIONS, "MANAGER", "BIND_USERS", "HEADER", "PARTITIONED", "SEND_COOKIE")

# Managers by the settings they were made of: a test that overrides a setting finds its old sessions afterwards.
_managers: dict[tuple[Any, ...], Manager] = {}
_current: Manager | None = None


def get_manager() -> Manager:
    """The manager of this site's sessions, made at the first call."""
    return _current or _configure()


def option(name: str, default: Any = None) -> Any:
    """One entry of CYSESSION."""
    options = getattr(settings, "CYSESSION", {})
    if not isinstance(options, Mapping):
        raise ImproperlyConfigured(f"CYSESSION must be a dict, not {type(options).__name__}")
    return options.get(name, default)


def _configure() -> Manager:
    global _current
    option("STORAGE")  # complains if CYSESSION is no dict
    options = dict(getattr(settings, "CYSESSION", {}))
    key = (settings.SESSION_COOKIE_AGE, *sorted((str(name), _identity(options[name])) for name in options))
    made = _managers.get(key)
    if made is None:
        made = _make(options)
        if "MANAGER" not in options:
            _managers[key] = made
    _current = made
    return made


def _identity(value: Any) -> str:
    """Text that tells values apart; an object stays the one it is as long as its manager lives."""
    return (
        repr(value) if value is None or isinstance(value, str | int | float) else f"{type(value)} {id(value)}"
    )


def _make(options: dict[str, Any]) -> Manager:
    unknown = sorted(str(name) for name in options if name not in KNOWN)
    if unknown:
        raise ImproperlyConfigured(
            f"CYSESSION has no option {', '.join(unknown)}; it has {', '.join(sorted(KNOWN))}"
        )
    if "MANAGER" in options:
        return _given(options)
    arguments: dict[str, Any] = {
        "max_age": options.get("MAX_AGE"),
        "max_bytes": options.get("MAX_BYTES", 65536),
        "max_per_user": options.get("MAX_PER_USER", 0),
        "clock": _clock(options.get("CLOCK")),
    }
    storage = options.get("STORAGE")
    try:
        if isinstance(storage, str):
            return Manager.from_url(storage, settings.SESSION_COOKIE_AGE, **arguments)
        return Manager(settings.SESSION_COOKIE_AGE, storage, **arguments)
    except (SessionError, TypeError, ValueError) as error:
        raise ImproperlyConfigured(f"CYSESSION or SESSION_COOKIE_AGE: {error}") from error


def _given(options: dict[str, Any]) -> Manager:
    surplus = sorted(name for name in MANAGER_OPTIONS if name in options)
    if surplus:
        raise ImproperlyConfigured(f"CYSESSION: MANAGER decides {', '.join(surplus)} itself; leave one out")
    manager = _imported("MANAGER", options["MANAGER"])
    if not isinstance(manager, Manager):
        raise ImproperlyConfigured(
            f"CYSESSION: MANAGER must be a cysession Manager or the dotted path of one, not {type(manager).__name__}"
        )
    return manager


def _clock(value: Any) -> Callable[[], float] | None:
    if value is None:
        return None
    clock = _imported("CLOCK", value)
    if not callable(clock):
        raise ImproperlyConfigured(
            "CYSESSION: CLOCK must be a callable that returns seconds, or its dotted path"
        )
    return clock  # type: ignore[no-any-return]


def _imported(name: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return import_string(value)
    except ImportError as error:
        raise ImproperlyConfigured(f"CYSESSION: {name}: {error}") from error


def _forget(*, setting: str, **_: object) -> None:
    global _current
    if setting in ("CYSESSION", "SESSION_COOKIE_AGE"):
        _current = None


setting_changed.connect(_forget, dispatch_uid="cysession.django")
