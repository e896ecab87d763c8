"""The storage contract as a kit: hold any storage to the rules that cysession's own keep.

    pip install cysession[testing]

    from cysession.testing import StorageContract

    class TestMyStorage(StorageContract):
        def make_storage(self):
            return MyStorage()

docs/storage_contract.md has the whole story. `FakeClock` and `FaultyStorage` also serve an application's own
tests: what does it do when sessions expire, or when their storage is down?
"""

# ruff: noqa: E402

try:
    import hypothesis
    import pytest
except ImportError as missing:  # pragma: no cover
    raise ImportError(f"cysession.testing needs {missing.name}: pip install cysession[testing]") from missing

# Before the modules with asserts are imported: pytest shows the values in them only then.
pytest.register_assert_rewrite(f"{__name__}.rules", f"{__name__}.async_contract", f"{__name__}.kit")

from .async_contract import AsyncStorageContract as AsyncStorageContract
from .clock import FakeClock as FakeClock
from .contract import StorageContract as StorageContract
from .faults import FaultyStorage as FaultyStorage

del hypothesis, pytest
__all__ = ["AsyncStorageContract", "FakeClock", "FaultyStorage", "StorageContract"]
