"""What a command works on: a storage URL, or a manager or storage of the application by its import path."""

import argparse
import contextlib
import importlib
import os
import sys
import traceback
from collections.abc import Iterator
from typing import Final
from urllib.parse import unquote, urlsplit

from cysession import Manager
from cysession.errors import NotSupported, SessionError, StorageMisconfigured
from cysession.storage import MemoryStorage, Storage, open_storage
from cysession.storage.users import index_life, index_name

__all__ = ["URL_VARIABLE", "add_target", "learn_ttl", "missing_directory", "opened", "shown", "user"]

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


def user(text: str) -> str:
    """The argument of --user: an empty one is a variable of a script that was never set."""
    if not text:
        raise argparse.ArgumentTypeError("no user has an empty name")
    return text


@contextlib.contextmanager
def opened(named: str | None, *, new: bool = False) -> Iterator[Manager]:
    """A manager over the storage that is named; closed at the end unless it is the application's.

    Args:
        new: it need not be there yet. Else a place where nothing can have been stored is an error, because it looks
            like an empty storage, and because whoever made it now would own it.
    """
    if not named:
        raise StorageMisconfigured(
            f"name a storage: a URL such as file:///var/lib/app/sessions, or set {URL_VARIABLE}"
        )
    if "://" not in named:
        manager = _imported(named)
        _must_have(manager, new)
        yield manager
        return
    if not new and (missing := missing_directory(named)) is not None:
        raise StorageMisconfigured(
            f"this user sees no directory {missing}: no session was stored there yet, or the URL is wrong"
        )
    with Manager(storage=open_storage(named)) as manager:
        _must_have(manager, new)
        yield manager


def _must_have(manager: Manager, new: bool) -> None:
    if not new and isinstance(manager.storage, MemoryStorage):
        raise NotSupported("sessions in memory belong to the process that has them; no other can see them")


def missing_directory(named: str) -> str | None:
    """The directory of a file URL, if it is not there."""
    if not named.startswith("file://"):
        return None
    path = unquote(urlsplit(named).path)
    if not path:
        from cysession.storage.file.directory import default_path  # not on Windows

        path = default_path()
    return None if os.path.isdir(path) else path


def _imported(path: str) -> Manager:
    module, _, name = path.partition(":")
    if not module or not name or "/" in path:
        like = f"; a directory is file://{os.path.abspath(path.removeprefix('file:'))}" if "/" in path else ""
        raise StorageMisconfigured(f"{path!r:.80} is neither a storage URL nor MODULE:NAME{like}")
    here = os.getcwd()
    sys.path.insert(0, here)  # as servers do
    try:
        found: object = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except SessionError:
        raise
    except Exception as error:  # the application's own
        raise StorageMisconfigured(f"{path!r:.80} cannot be imported: {_told(error)}") from error
    finally:
        sys.path.remove(here)
    if isinstance(found, Manager):
        return found
    if isinstance(found, Storage):
        return Manager(storage=found)
    raise StorageMisconfigured(
        f"{path!r:.80} is a {type(found).__name__}; name a cysession Manager or Storage"
    )


def _told(error: Exception) -> str:
    """What went wrong while the application was imported, and where in its code."""
    if isinstance(error, ImportError | AttributeError):
        return str(error)
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({where.filename}, line {where.lineno})"


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
