"""docs/storage_contract.md: its examples run as they stand, and a mistake in the first one is found.
docs/custom_storage.md shows the example that is tested, and the record protocol as it is.
"""

import os
import re
import subprocess
import sys
from inspect import signature
from pathlib import Path

import pytest

from cysession import Storage
from cysession.testing.schedules import schedules

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "storage_contract.md").read_text(encoding="utf-8")
CUSTOM = (ROOT / "docs" / "custom_storage.md").read_text(encoding="utf-8")
STORAGE, APPLICATION = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)

exec(compile(STORAGE, "storage_contract.md: a full example", "exec"))  # TestMyStorage and TestMyStorageAsync


def run_pytest(directory: Path, source: str, *options: str) -> subprocess.CompletedProcess[str]:
    """What a user sees who puts this into a file and runs pytest."""
    (directory / "test_my_storage.py").write_text(source)
    command = [sys.executable, "-m", "pytest", "-q", "--rootdir", str(directory), "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.run(
        [*command, *options, "test_my_storage.py"],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )


EXPIRY = "TestMyStorage and not Async and at_its_ttl"


def test_the_example_is_a_test_file(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, STORAGE, "-k", EXPIRY)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


def test_a_mistake_in_the_example_is_found_and_explained(tmp_path: Path) -> None:
    broken = STORAGE.replace("round(ttl * 1e9)", "round(ttl * 1e10)")
    assert broken != STORAGE
    done = run_pytest(tmp_path, broken, "-k", EXPIRY)
    assert done.returncode == 1
    assert "test_a_session_is_gone_at_its_ttl" in done.stdout
    assert (
        "assert {'user': 'anna'} is None" in done.stdout
    )  # shown by pytest, which rewrote the kit's asserts


def test_the_example_for_applications_runs() -> None:
    exec(compile(APPLICATION, "storage_contract.md: for an application's own tests", "exec"), {})


def test_the_table_of_interleavings_is_right() -> None:
    rows = re.findall(r"^\| (\d) \| ([\d,]+) \|", PAGE, re.MULTILINE)
    assert [steps for steps, _ in rows] == ["4", "5", "6", "7", "8"]
    lengths = [len(schedule) for schedule in (*schedules(8), *schedules(8, grace=True))]
    for steps, count in rows:
        assert sum(length <= int(steps) for length in lengths) == int(count.replace(",", ""))


@pytest.mark.parametrize("name", re.findall(r"^\| `(\w+)[`(]", PAGE, re.MULTILINE))
def test_what_the_page_names_is_there(name: str) -> None:
    from cysession.testing import AsyncStorageContract

    assert hasattr(AsyncStorageContract, name)


# ---- docs/custom_storage.md ----------------------------------------------------------------------------


def test_the_page_shows_the_example_that_is_tested() -> None:
    example = (ROOT / "examples" / "custom_storage.py").read_text(encoding="utf-8")
    shown = re.search(r"^```python\n(.*?)^```", CUSTOM, re.DOTALL | re.MULTILINE)
    assert shown is not None and f"\n{shown[1]}\n\nif __name__" in example


def steps_of(section: str) -> list[tuple[str, str]]:
    """(name, parameters) of the methods that the table under this heading lists."""
    _, _, text = CUSTOM.partition(f"\n## {section}\n")
    return re.findall(r"^\| `(\w+)\((.*?)\)` \|", text.partition("\n## ")[0], re.MULTILINE)


PROTOCOL = steps_of("Atomic in itself: the record protocol")
OPERATORS = steps_of("For operators")


def test_the_page_names_every_step_of_the_record_protocol() -> None:
    steps = {name for name in vars(Storage) if f"a{name}" in vars(Storage)} - {"close"}
    assert {name for name, _ in PROTOCOL} == steps - {
        "note_user",
        "user_sessions",
    }  # those are made of the rest


NAMES = {"id": "session_id", "old": "old_id", "new": "new_id"}


def takes(name: str, parameters: str) -> bool:
    wanted = [NAMES.get(parameter, parameter) for parameter in filter(None, parameters.split(", "))]
    return list(signature(getattr(Storage, name)).parameters)[1:] == wanted


@pytest.mark.parametrize(("name", "parameters"), PROTOCOL)
def test_a_step_takes_what_the_page_says(name: str, parameters: str) -> None:
    assert takes(name, parameters) and takes(f"a{name}", parameters)


def test_what_operators_ask_takes_what_the_page_says() -> None:
    assert {name for name, _ in OPERATORS} == {"scan", "summary", "sweep", "examine", "vitals"}
    assert all(takes(name, parameters) for name, parameters in OPERATORS)
