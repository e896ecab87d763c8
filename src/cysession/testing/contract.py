"""The storage contract: what every storage has to do, as a pytest class to subclass.

    from cysession.testing import StorageContract

    class TestMyStorage(StorageContract):
        def make_storage(self):
            return MyStorage(self.directory)

pytest then runs every rule of docs/storage_contract.md against MyStorage. The flags of `Kit` say what a
storage cannot do; a rule that does not apply is skipped with the reason. AsyncStorageContract runs the same
rules through the async twins.
"""

from .kit import Kit
from .rules.concurrency import InterleavingRules, ProcessRules, ThreadRules
from .rules.data import CommitRules, LimitRules, SnapshotRules
from .rules.expiry import ExpiryRules
from .rules.failure import FailureRules
from .rules.hygiene import HygieneRules
from .rules.identity import DestroyRules, IdRules
from .rules.modify import ModifyRules
from .rules.protocol import ProtocolRules
from .rules.rotation import GraceRules, RotationRules
from .rules.types import TypeRules
from .rules.users import UserRules

__all__ = ["StorageContract"]


class StorageContract(
    IdRules,
    DestroyRules,
    RotationRules,
    GraceRules,
    ExpiryRules,
    SnapshotRules,
    CommitRules,
    LimitRules,
    ModifyRules,
    UserRules,
    TypeRules,
    HygieneRules,
    ProtocolRules,
    FailureRules,
    InterleavingRules,
    ThreadRules,
    ProcessRules,
    Kit,
):
    """Subclass it under a name that begins with Test, and write `make_storage`."""
