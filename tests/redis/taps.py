"""A tap on the connection of a storage: sees each request, may act before it and after its answer, and can fail."""

from collections.abc import Callable
from typing import Any

from cysession import RedisStorage
from cysession.storage.redis import scripts

__all__ = ["Tap", "tapped"]

Act = Callable[[int], object]


class Tap:
    """Stands in for the storage's Client.

    before(n), after(n): called around the n-th request (from 1), as it reaches and leaves the server. What they
    raise is what the storage meets.
    twice: every request is executed two times and the second answer counts, as when the first was lost.
    """

    def __init__(self, client: Any) -> None:
        self.client = client
        self.count = 0
        self.sent: list[Callable[[], Any]] = []  # carries that request out once more
        self.before: Act | None = None
        self.after: Act | None = None
        self.twice = False
        self.between: Act | None = None

    @property
    def is_cluster(self) -> bool:
        return bool(self.client.is_cluster)

    def call_packed(self, *args: Any, **kwargs: Any) -> Any:
        return self._pass(self.client.call_packed, args, kwargs)

    def call_packed_many(self, *args: Any, **kwargs: Any) -> Any:
        return self._pass(self.client.call_packed_many, args, kwargs)

    def _pass(self, method: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self.count += 1
        number = self.count
        self.sent.append(lambda: method(*args, **kwargs))
        if self.before is not None:
            self.before(number)
        try:
            reply = method(*args, **kwargs)
            if self.twice:
                if self.between is not None:
                    self.between(number)
                reply = method(*args, **kwargs)
        finally:
            if self.after is not None:
                self.after(number)
        return reply

    def close(self) -> None:
        self.client.close()


def tapped(storage: RedisStorage) -> Tap:
    """Put a tap on the storage's connection. The server learns all scripts first, so that requests can be counted."""
    for name in scripts.__all__:
        storage._client.call(b"", b"SCRIPT", b"LOAD", getattr(scripts, name).source)
    tap = Tap(storage._client)
    storage._client = tap  # type: ignore[assignment]
    return tap
