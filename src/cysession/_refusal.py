"""The answers in place of the app's when its session fails: 503, 409, and a plain 500.

None of them touches the cookie by itself: the session may be as alive as before.
"""

import logging
from typing import Final, NamedTuple

from ._headers import Header
from .errors import SessionGone, StorageMisconfigured, StorageUnavailable

__all__ = ["FAILED", "Refusal", "refusal"]

log = logging.getLogger("cysession.http")


class Refusal(NamedTuple):
    """A response that the adapter makes itself."""

    status: int
    reason: str
    headers: list[Header]
    body: bytes

    def note(self, error: BaseException) -> None:
        """Log why; what the app cannot see, somebody has to."""
        if self.status >= 500:
            log.error("answered %d in place of the app: %s", self.status, error, exc_info=error)
        else:
            log.info("answered %d in place of the app: %s", self.status, error)


def _refusal(status: int, reason: str, text: str, *extra: Header) -> Refusal:
    body = f"{text}\n".encode()
    fixed = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
    ]
    return Refusal(status, reason, [*fixed, *extra], body)


_UNAVAILABLE: Final = _refusal(
    503,
    "Service Unavailable",
    "Sessions cannot be read or stored at the moment. You are not logged out; please try again.",
    (b"retry-after", b"5"),
)
_GONE: Final = _refusal(
    409,
    "Conflict",
    "Your session ended while this request was under way, perhaps in another window. Nothing was changed.",
)

FAILED: Final = _refusal(500, "Internal Server Error", "Internal Server Error")


def refusal(error: BaseException | None) -> Refusal | None:
    """What to answer when `error` comes out of a session; None: it is the app's own error."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:  # out of a task group
        error = error.exceptions[0]
    if isinstance(error, StorageUnavailable | StorageMisconfigured):
        return _UNAVAILABLE
    if isinstance(error, SessionGone):
        return _GONE
    return None
