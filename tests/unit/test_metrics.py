"""The Prometheus collector, and docs/metrics.md: every stable key of the statistics, by the names it gives them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from cysession import FileStorage, Manager, MemoryStorage, Storage
from cysession.metrics import EVENTS, STORAGE, SessionCollector
from examples.custom_storage import SqliteStorage

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(\w+)` \| (?:`(cysession_\w+)`)?", PAGE, re.MULTILINE)


def scrape(registry: CollectorRegistry) -> dict[tuple[str, ...], float]:
    """What a Prometheus server reads: (name, labels' values...) -> value."""
    found = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            found[(sample.name, *sample.labels.values())] = sample.value
    return found


def visits(manager: Manager) -> None:
    """Two created, one rotated and revoked, one destroyed, one unknown id."""
    with manager.new() as session:
        session.bind("ann")
        session.regenerate_id()
    with manager.new() as other:
        other["x"] = 1
    with manager.new(session.id) as again:
        again.regenerate_id()
    manager.new(other.id).destroy()
    manager.new("an-id-that-nobody-issued").load()
    assert manager.revoke("ann") == 1


@pytest.mark.parametrize("kind", ["memory", "files"])
def test_what_happens_is_scraped(kind: str, tmp_path: Path) -> None:
    storage: Storage = MemoryStorage() if kind == "memory" else FileStorage(tmp_path / "s", sweep_every=0)
    registry = CollectorRegistry()
    with Manager(ttl=600, storage=storage) as manager:
        registry.register(SessionCollector(manager))
        assert scrape(registry)[("cysession_sessions_created_total",)] == 0
        visits(manager)
        found = scrape(registry)
    assert {
        name[0].removeprefix("cysession_"): value for name, value in found.items() if "storage" not in name[0]
    } == {
        "sessions_created_total": 2,
        "sessions_regenerated_total": 1,
        "sessions_destroyed_total": 1,
        "sessions_revoked_total": 1,
        "sessions_expired_total": 0,
        "unknown_ids_total": 1,
        "corrupt_records_total": 0,
    }
    own = "cysession_storage_live" if kind == "memory" else "cysession_storage_cached"
    assert (own,) in found


def test_several_managers_are_told_apart_by_a_label() -> None:
    registry = CollectorRegistry()
    shop, admin = Manager(storage=MemoryStorage()), Manager(storage=MemoryStorage())
    registry.register(SessionCollector({"shop": shop, "admin": admin}, namespace="app"))
    with shop.new() as session:
        session["x"] = 1
    found = scrape(registry)
    assert found["app_sessions_created_total", "shop"] == 1
    assert found["app_sessions_created_total", "admin"] == 0
    assert found["app_storage_live", "shop"] == 1


def test_numbers_of_a_storage_of_ones_own_are_scraped_too() -> None:
    class Counting(SqliteStorage):
        def stats(self) -> dict[str, int]:
            return {**super().stats(), "vacuums": 3}

    storage = Counting(":memory:")
    registry = CollectorRegistry()
    registry.register(SessionCollector(Manager(storage=storage)))
    assert scrape(registry)[("cysession_storage_vacuums",)] == 3
    storage.db.close()


def test_a_second_collector_of_the_same_names_is_refused_at_once() -> None:
    registry = CollectorRegistry()
    registry.register(SessionCollector(Manager(storage=MemoryStorage())))
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        registry.register(SessionCollector(Manager(storage=MemoryStorage())))


def test_registering_asks_nothing_of_a_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    manager = Manager(storage=MemoryStorage())
    monkeypatch.setattr(MemoryStorage, "stats", None)
    CollectorRegistry().register(SessionCollector(manager))


def test_something_else_than_a_manager_is_refused() -> None:
    with pytest.raises(TypeError, match="Managers, not MemoryStorage"):
        SessionCollector(MemoryStorage())  # type: ignore[arg-type]


# ---- the page ------------------------------------------------------------------------------------------


def test_the_page_lists_every_number_of_every_storage(tmp_path: Path) -> None:
    pytest.importorskip("hiredis")  # not where the suites run without the GIL
    from cysession import RedisStorage

    storages = [
        MemoryStorage(),
        FileStorage(tmp_path / "s", sweep_every=0),
        RedisStorage("redis://127.0.0.1:1/0"),  # connects when it is used first
    ]
    keys: set[str] = set()
    for storage in storages:
        stats = Manager(storage=storage).stats()
        assert stats.keys() - {"storage"} == EVENTS.keys()
        keys |= stats["storage"].keys()
        storage.close()
    assert keys - {"expired", "corrupt"} == STORAGE.keys()
    assert {key for key, _ in ROWS} == {*EVENTS, *STORAGE, "storage"}


def test_the_page_gives_every_metric_its_name() -> None:
    described = {}
    for family in SessionCollector(Manager(storage=MemoryStorage())).describe():
        described[family.name + ("_total" if family.type == "counter" else "")] = family.documentation
    assert {name for _, name in ROWS if name} == described.keys()
    for name, text in described.items():
        row = next(line for line in PAGE.splitlines() if f"`{name}`" in line)
        assert text.rstrip(".") in row.replace("`", ""), name


def test_the_example_of_the_page_runs() -> None:
    example = re.search(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert example is not None
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", example[1]], check=True, timeout=60, env=environment)
