"""Session, Record and Delta are compiled; this is where the rest of the package meets them."""

from . import errors
from ._core import Delta as Delta
from ._core import Record as Record
from ._core import Session as Session
from ._core import _use_errors

__all__ = ["Delta", "Record", "Session"]

_use_errors(errors)
