"""Breaker: after repeated failure of a server nobody waits for it any more, but for one probe now and then.

closed      all calls go through
open        no call goes through until a moment drawn at random ("full jitter"), so that the processes of a site do
            not come back all at once
half-open   after that moment one call goes through, the probe; its success closes the breaker, its failure opens
            it again, for longer. A probe that never reports (its thread was killed) is replaced after a while.
"""

import random
import threading
import time

__all__ = ["Breaker"]


class Breaker:
    """Args:
    threshold: failures in a row that open it.
    shortest, longest: seconds; the range of the upper ends of the random pauses. Doubled with each failure.
    patience: seconds after which a probe is given up.
    """

    __slots__ = (
        "_last",
        "_lock",
        "_longest",
        "_patience",
        "_random",
        "_shortest",
        "_threshold",
        "_until",
        "failures",
    )

    def __init__(
        self, threshold: int = 3, shortest: float = 0.1, longest: float = 1.0, patience: float = 1.0
    ) -> None:
        self._threshold = threshold
        self._shortest = shortest
        self._longest = longest
        self._patience = patience
        self._lock = threading.RLock()  # a finalizer may come in between
        self._last = 0.0  # monotonic; the last failure that counted
        self._until = 0.0  # monotonic; nobody goes through before
        self._random = random.Random()
        self.failures = 0  # in a row; 0 on the hot path: nothing to ask, nothing to report

    @property
    def closed(self) -> bool:
        return self.failures < self._threshold

    def admit(self) -> bool:
        """May this call go through? If it is the probe, later ones are kept back until it reports."""
        if self.failures < self._threshold:
            return True
        with self._lock:
            now = time.monotonic()
            if now < self._until:
                return False
            self._until = now + self._patience
            return True

    def succeeded(self) -> None:
        self.failures = 0

    def failed(self, began: float) -> None:
        """The server was not reached, or did not answer in time.

        began: when this attempt did, by time.monotonic. One that was under way already when the last failure was
        counted tells nothing new: a hiccup that a hundred callers notice is one failure.
        """
        with self._lock:
            if began < self._last:
                return
            now = self._last = time.monotonic()
            self.failures += 1
            excess = self.failures - self._threshold
            if excess >= 0:
                pause = min(self._longest, self._shortest * 2.0 ** min(excess, 20))
                # Never quite zero: then it would be no breaker.
                self._until = now + pause * (0.1 + 0.9 * self._random.random())
