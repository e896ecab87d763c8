"""What happens to sessions, told to whoever wants to know: audit logs, metrics, alarms.

    created       a session was stored for the first time
    regenerated   it moved to a fresh id
    destroyed     it was destroyed, or emptied
    revoked       `Manager.revoke` or `max_per_user` destroyed it
    expired       a clean-up removed it (storages that expire by themselves, such as Redis, do not tell)
    unknown_id    a client presented an id that names no live session: mistyped, expired, or guessed
    corrupt       a storage met a torn, damaged or foreign record, which counts as missing

Hooks run after the fact, in the thread or on the event loop where it happened, and must be quick. What a hook
raises is logged and undoes nothing. No event holds an id: `session` is `Storage.fingerprint(id)`, 8 hex digits
that mean nothing outside this process and its forks.
"""

from collections.abc import Callable
from typing import Final, NamedTuple, cast

__all__ = ["EVENTS", "Event", "Hook", "Hooks"]

EVENTS: Final = ("created", "regenerated", "destroyed", "revoked", "expired", "unknown_id", "corrupt")


class Event(NamedTuple):
    """One event: its kind, the fingerprint of the session's id, and the user the session was bound to."""

    kind: str
    session: str
    user: str | None


Hook = Callable[[Event], object]


class Hooks:
    """The hooks of one manager."""

    def __init__(self) -> None:
        self._hooks: dict[str, tuple[Hook, ...]] = dict.fromkeys(EVENTS, ())

    def add(self, kind: str, hook: object) -> None:
        if kind not in self._hooks:
            raise ValueError(f"there is no event {kind!r:.40}; the events are {', '.join(EVENTS)}")
        from inspect import iscoroutinefunction  # not at import: it brings ast, dis and tokenize

        if not callable(hook) or iscoroutinefunction(hook):
            raise TypeError("a hook is a plain function that takes the Event; it may start a task by itself")
        self._hooks[kind] += (cast(Hook, hook),)

    def tell(self, kind: str, fingerprint: str, user: str | None = None) -> None:
        for hook in self._hooks[kind]:
            try:
                hook(Event(kind, fingerprint, user))
            except Exception:
                import logging  # here: a fifth of the package's import, and seldom needed

                logging.getLogger("cysession.events").exception(
                    "a hook for %r events failed; what it was told of has happened all the same", kind
                )
