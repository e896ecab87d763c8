"""Prometheus: what happens to sessions, as metrics. Needs `prometheus-client`: pip install cysession[metrics]

    from prometheus_client import REGISTRY
    from cysession.metrics import SessionCollector

    REGISTRY.register(SessionCollector(manager))

A scrape reads `Manager.stats()` and does no I/O; between scrapes this costs nothing. docs/metrics.md lists the metrics.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, Literal

from .manager import Manager

try:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, UntypedMetricFamily
    from prometheus_client.registry import Collector
except ImportError as missing:  # pragma: no cover
    raise ImportError(f"cysession.metrics needs {missing.name}: pip install cysession[metrics]") from missing

__all__ = ["SessionCollector"]

EVENTS: Final[Mapping[str, str]] = {
    "created": "Sessions stored for the first time.",
    "destroyed": "Sessions destroyed or emptied.",
    "regenerated": "Sessions moved to a fresh id.",
    "unknown_id": "Presented ids that name no live session.",
    "revoked": "Sessions ended by revoke() or max_per_user.",
    "expired": "Sessions that the storage's clean-up removed.",
    "corrupt": "Stored records that were torn, damaged or foreign.",
}
"""The numbers of `Manager.stats()` itself."""

Kind = Literal["counter", "gauge"]
STORAGE: Final[Mapping[str, tuple[Kind, str]]] = {
    # MemoryStorage
    "live": ("gauge", "Sessions in memory now, with those that have expired and are not yet removed."),
    "created": ("counter", "Records added."),
    "destroyed": ("counter", "Records removed before their time."),
    "hits": ("counter", "Looks that found a live session."),
    "misses": ("counter", "Looks that found none."),
    "resizes": ("counter", "Times that a part of the table grew or shrank."),
    "refiled": ("counter", "Sessions that lived on when their timer fired."),
    "largest_slice": ("gauge", "Most timers handled in one piece of work."),
    # FileStorage
    "torn": ("counter", "Damaged files that the clean-up removed."),
    "orphans": ("counter", "Temporary files of killed writers that the clean-up removed."),
    "signs": ("counter", "Files of rotated ids and of empty user indexes that the clean-up removed."),
    "passes": ("counter", "Rounds of the clean-up."),
    "cached": ("gauge", "Decoded records kept in memory now."),
    # RedisStorage, RedisHashStorage
    "conflicts": ("counter", "Tries of commits that another commit overtook."),
    "shared_reads": ("counter", "Loads answered by the read of another task."),
    "near_hits": ("counter", "Loads answered by the near-cache."),
    "touches": ("counter", "Uses written to the server."),
    "touches_waiting": ("gauge", "Uses noted and not yet written."),
}
"""What cysession's storages add; `expired` and `corrupt` stand above."""

_LABEL: Final = "manager"


class SessionCollector(Collector):
    """The statistics of a manager, for a Prometheus registry.

    Args:
        managers: the manager, or several under the names that the label `manager` is to have. One collector for
            all of them: a registry takes a metric's name once.
        namespace: what the names of the metrics begin with.
    """

    def __init__(self, managers: Manager | Mapping[str, Manager], *, namespace: str = "cysession") -> None:
        named = managers if isinstance(managers, Mapping) else {"": managers}
        for manager in named.values():
            if not isinstance(manager, Manager):
                raise TypeError(f"a SessionCollector reads Managers, not {type(manager).__name__}")
        self._managers = dict(named)
        self._labels = (_LABEL,) if isinstance(managers, Mapping) else ()
        self._namespace = namespace

    def describe(self) -> Iterable[Metric]:
        """The names, for the registry: nothing is asked of a manager that is not in use yet."""
        yield from (self._event(key) for key in EVENTS)
        yield from (self._storage(key) for key in STORAGE)

    def collect(self) -> Iterator[Metric]:
        all_stats = {name: manager.stats() for name, manager in self._managers.items()}
        for key in EVENTS:
            counter = self._event(key)
            for name, stats in all_stats.items():
                counter.add_metric(self._values(name), stats[key])  # type: ignore[literal-required]
            yield counter
        families: dict[str, CounterMetricFamily | GaugeMetricFamily | UntypedMetricFamily] = {}
        for name, stats in all_stats.items():
            for key, value in stats["storage"].items():
                if key not in ("expired", "corrupt"):
                    family = families.setdefault(key, self._storage(key))
                    family.add_metric(self._values(name), value)
        yield from families.values()

    def _values(self, name: str) -> tuple[str, ...]:
        return (name,) if self._labels else ()

    def _event(self, key: str) -> CounterMetricFamily:
        name = {"unknown_id": "unknown_ids", "corrupt": "corrupt_records"}.get(key, f"sessions_{key}")
        return CounterMetricFamily(f"{self._namespace}_{name}", EVENTS[key], labels=self._labels)

    def _storage(self, key: str) -> CounterMetricFamily | GaugeMetricFamily | UntypedMetricFamily:
        kind, text = STORAGE.get(key, ("", "A number of the storage's own."))
        name = f"{self._namespace}_storage_{key}"
        if kind == "counter":
            return CounterMetricFamily(name, text, labels=self._labels)
        family = GaugeMetricFamily if kind == "gauge" else UntypedMetricFamily
        return family(name, text, labels=self._labels)
