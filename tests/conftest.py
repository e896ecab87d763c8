"""For all suites: what their own collection holds costs nobody time, and a slow machine is no failure."""

import gc
import logging
import re
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says something about the machine; hangs are the business of pytest-timeout.
settings.register_profile("cysession", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("cysession")


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
