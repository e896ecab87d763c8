"""For all suites: collected tests cost nobody time. A slow machine is no failure, a missing piece is."""

import gc
import logging
import os
import re
import signal
from collections.abc import Generator, Iterator
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says something about the machine; hangs are the business of pytest-timeout.
settings.register_profile("cysession", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("cysession")

# Set by ci/test.sh, which has installed all that any test imports: importorskip() has no business there.
NOTHING_MISSING = "CYSESSION_TEST_NOTHING_MISSING" in os.environ

# What a shell puts into the background ignores Control-C, and so would all children of the tests.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


def pytest_collection_finish() -> None:
    """Twenty thousand collected tests are half a gigabyte that no collection of a test needs to look at again."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def no_id_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """S20: at DEBUG, whatever a test does, nothing that could be an id reaches a log."""
    caplog.set_level(logging.DEBUG)
    yield
    assert not re.search(r"(?<![\w-])[\w-]{43}(?![\w-])", caplog.text)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _judged((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _judged((yield))


def _judged(report: Report) -> Report:
    if NOTHING_MISSING and report.skipped and isinstance(report.longrepr, tuple):
        path, line, reason = report.longrepr
        if "could not import" in reason:
            report.outcome, report.longrepr = "failed", f"{path}:{line}: {reason}"
    return report
