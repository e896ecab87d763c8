"""What a command works on: a storage URL, or a manager or storage of the application by its import path."""

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from typing import Final

from cysession import Manager
from cysession.errors import NotSupported, StorageMisconfigured
from cysession.storage import Storage, open_storage
from cysession.storage.users import index_life, index_name

__all__ = ["URL_VARIABLE", "add_target", "learn_ttl", "opened", "shown"]

URL_VARIABLE: Final = "CYSESSION_URL"
SECOND: Final = 1_000_000_000


def add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "storage",
        nargs="?",
        default=os.environ.get(URL_VARIABLE),
        help="a storage URL (file:///var/lib/app/sessions, redis://host/0 ...) or MODULE:NAME of the application's "
        f"Manager or Storage; default: ${URL_VARIABLE}, where a password is safer than among the arguments",
    )


@contextlib.contextmanager
def opened(named: str | None) -> Iterator[Manager]:
    """A manager over the storage that is named; closed at the end unless it is the application's."""
    if not named:
        raise StorageMisconfigured(
            f"name a storage: a URL such as file:///var/lib/app/sessions, or set {URL_VARIABLE}"
        )
    if "://" not in named:
        yield _imported(named)
        return
    with Manager(storage=open_storage(named)) as manager:
        yield manager


def _imported(path: str) -> Manager:
    module, _, name = path.partition(":")
    if not module or not name:
        raise StorageMisconfigured(f"{path!r:.80} is neither a storage URL nor MODULE:NAME")
    here = os.getcwd()
    sys.path.insert(0, here)  # as servers do
    try:
        found: object = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise StorageMisconfigured(f"{path!r:.80} cannot be imported: {error}") from error
    finally:
        sys.path.remove(here)
    if isinstance(found, Manager):
        return found
    if isinstance(found, Storage):
        return Manager(storage=found)
    raise StorageMisconfigured(
        f"{path!r:.80} is a {type(found).__name__}; name a cysession Manager or Storage"
    )


def shown(named: str | None) -> str:
    """The storage as it may be printed: without user, password and options."""
    scheme, separator, rest = (named or "").partition("://")
    if not separator:
        return scheme
    return f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}"


def learn_ttl(storage: Storage, user: str) -> None:
    """Have the storage judge this user's sessions by the idle time that the application gives them.

    Only the application's manager knows it, but an index record says how long its user's sessions live.
    """
    with contextlib.suppress(NotSupported):
        index = storage.summary(index_name(user))
        if index is not None and index.idle is not None:
            storage.ttl = max(1.0, (index.idle - index_life(0) / SECOND) / 2)
