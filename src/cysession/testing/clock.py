"""A clock that tests turn by hand."""

__all__ = ["FakeClock"]

SECOND = 1_000_000_000
MILLISECOND = 1_000_000


class FakeClock:
    """Seconds since the epoch, standing still until `advance` moves them: `Manager(clock=FakeClock())`.

    It counts in integer nanoseconds: steps never add up to a rounding error, whole seconds come out exact.
    """

    def __init__(self, start: int = 1_700_000_000) -> None:
        self.ns = start * SECOND

    def __call__(self) -> float:
        return self.ns / SECOND

    def advance(self, seconds: float = 0, *, ms: int = 0) -> None:
        """Move on; negative amounts turn it back, as a time server may do."""
        self.ns += round(seconds * SECOND) + ms * MILLISECOND

    def __repr__(self) -> str:
        return f"<FakeClock {self.ns / SECOND:.3f}>"
