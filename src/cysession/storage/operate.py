"""What operators may know of a storage: summaries of sessions without their data, and findings of an examination.

`Storage.scan`, `summary`, `examine` and `vitals` give them; the `cysession` command shows them. None holds an id or
a value. A storage that cannot look at its own sessions raises NotSupported.
"""

from typing import Final, Literal, NamedTuple

__all__ = ["FAIL", "OK", "WARN", "Finding", "Level", "Summary"]


class Summary(NamedTuple):
    """One stored session, by what is known of it without giving its data away. All times in seconds since the epoch.

    Attributes:
        locator: names it to the record protocol in this storage; in a storage that hashes ids it is no id
        size: bytes, as stored
        created_at: when it began; a rotation keeps it
        used_at: last noted use, which may be min(60 s, ttl / 20) late; None: this storage cannot tell
        expires_at: when it ends if nobody uses it; None: never, or this storage cannot tell
        idle: its idle time in seconds; None: none, or this storage cannot tell
        bound: whether it is bound to a user; None: this storage cannot tell, for its records are encrypted
    """

    locator: str
    size: int
    created_at: float
    used_at: float | None
    expires_at: float | None
    idle: float | None
    bound: bool | None


Level = Literal["ok", "warn", "fail"]
OK: Final = "ok"
WARN: Final = "warn"  # works, but costs speed, safety or sessions under some condition that is named
FAIL: Final = "fail"  # does not work, or is not safe


class Finding(NamedTuple):
    """One thing that was looked at: what it is, how it is, and what to do about it ("": nothing)."""

    level: Level
    what: str
    state: str
    advice: str = ""
