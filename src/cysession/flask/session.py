"""`flask.session`, as views, extensions and templates see it."""

from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Self, cast

from flask.sessions import SessionMixin
from markupsafe import Markup

if TYPE_CHECKING:
    from .. import Session

__all__ = ["PERMANENT", "FlaskSession"]

PERMANENT: Final = "_permanent"  # Flask's own keys in the data of a session
FLASHES: Final = "_flashes"
MARKUP: Final = " m"  # what marks a flashed Markup, as in Flask's cookies

# Jinja asks for `session.user` here before it looks for the key. No page may print the id by such a mistake.
_KEYS_IN_TEMPLATES: Final = frozenset({"id", "user", "handle"})
# What a cysession session has beyond a dict to change it; like a dict's own they count as a change.
_CHANGES: Final = frozenset({"set", "set_map", "remove", "remove_all", "modify", "bind", "save"})


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
