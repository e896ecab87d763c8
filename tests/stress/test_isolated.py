"""Runs the scripts of tests/isolated, each in a process of its own that may crash or hang alone."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import cysession

pytestmark = pytest.mark.stress
ISOLATED = Path(__file__).parents[1] / "isolated"


def run(script: str, *arguments: str, seconds: float = 30, **environment: str) -> str:
    """The script's output. It must end by itself, in time and well, and say "ok"."""
    package = str(Path(cysession.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", ISOLATED / script, *arguments],
        env=os.environ | {"PYTHONPATH": package} | environment,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, f"{script} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    assert done.stdout.startswith("ok\n"), done.stdout
    return done.stdout


def test_every_script_is_run() -> None:
    source = Path(__file__).read_text()
    assert [path.name for path in ISOLATED.glob("*.py") if f'"{path.name}"' not in source] == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize("way", ["table", "protocol"])
def test_R30_a_child_forked_under_load_works_at_once(way: str) -> None:
    run("forks.py", way)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_the_expiry_driver_works_without_traffic_and_after_a_fork_and_ends_with_the_process() -> None:
    said = run("driver.py")
    assert time.monotonic() - float(said.split()[1]) < 1


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_R34_memory_is_flat_over_many_sessions() -> None:
    """`python tests/isolated/leaks.py 10000000` is the long form."""
    run("leaks.py", "200000")


def test_R33_finalizers_may_use_the_table_that_drops_them() -> None:
    run("finalizers.py")


def test_R33_a_finalizer_may_change_the_session_that_is_being_saved() -> None:
    run("save_under_collection.py", PYTHONMALLOC="debug")


def test_R33_comparing_values_may_run_anything() -> None:
    run("evil_equality.py", PYTHONMALLOC="debug")


def test_R37_a_sub_interpreter_imports_it_or_says_that_it_cannot() -> None:
    run("subinterpreter.py")


def test_R41_nobody_can_foresee_which_ids_meet_in_the_table() -> None:
    """Slots are chosen by Python's keyed hash of text: another process, another order."""
    assert run("hashing.py", PYTHONHASHSEED="1") != run("hashing.py", PYTHONHASHSEED="2")
    assert run("hashing.py", PYTHONHASHSEED="1") == run("hashing.py", PYTHONHASHSEED="1")
