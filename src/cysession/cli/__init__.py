"""The `cysession` command, also `python -m cysession`: for whoever runs a server with sessions.

    inspect   how many sessions there are, how large and how old; one user's sessions
    doctor    whether a storage and its configuration are safe, fast and large enough
    top       a live view: sessions, rates, latencies
    sweep     remove what has expired
    revoke    end one user's sessions, or everybody's
    migrate   take over live sessions of another library
    bench     what sessions cost on this machine
    demo      a small site to click through

Every command takes --json. No command prints an id: storages hold none but in memory. Values are printed only when
they are asked for (`inspect --user USER --values`).

Exit codes, the same for all commands:

    0    done
    1    done, and the answer is bad: doctor found a failure, migrate could not read a session
    2    wrong arguments
    3    the storage failed or could not be reached; trying again may help
    4    the storage is misconfigured or not there, or lacks a package; trying again will not help
    5    this storage, or this source of sessions, cannot do that
    130  interrupted

output.py prints; target.py finds the storage; each command is a file with `add_to(parser)` and `run(args, output)`.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Final

from cysession import __version__
from cysession.errors import NotSupported, SessionError, StorageMisconfigured, StorageUnavailable

from . import bench, demo, doctor, inspect, migrate, revoke, sweep, top
from .output import Output

__all__ = ["BAD", "DONE", "INTERRUPTED", "MISCONFIGURED", "MISSING", "UNAVAILABLE", "USAGE", "main"]

DONE: Final = 0
BAD: Final = 1
USAGE: Final = 2  # what argparse exits with
UNAVAILABLE: Final = 3
MISCONFIGURED: Final = 4
MISSING: Final = 5
INTERRUPTED: Final = 130

COMMANDS: Final = {
    "inspect": inspect,
    "doctor": doctor,
    "top": top,
    "sweep": sweep,
    "revoke": revoke,
    "migrate": migrate,
    "bench": bench,
    "demo": demo,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    args = parser().parse_args(arguments)
    run: Callable[[argparse.Namespace, Output], int] = args.run
    try:
        return run(args, Output(as_json=args.json, quiet=args.quiet))
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output has seen enough
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except NotSupported as error:
        return _failed(MISSING, error)
    except StorageMisconfigured as error:
        return _failed(MISCONFIGURED, error)
    except (StorageUnavailable, SessionError) as error:
        return _failed(UNAVAILABLE, error)


def parser() -> argparse.ArgumentParser:
    top_level = argparse.ArgumentParser(prog="cysession", description="Look after server-side sessions.")
    top_level.add_argument("--version", action="version", version=f"cysession {__version__}")
    commands = top_level.add_subparsers(title="commands", required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print JSON in place of text")
    common.add_argument("-q", "--quiet", action="store_true", help="no progress on stderr")
    for name, command in COMMANDS.items():
        about = (command.__doc__ or "").partition("\n")[0].rstrip(".")
        one = commands.add_parser(name, parents=[common], help=about, description=about)
        command.add_to(one)
        one.set_defaults(run=command.run)
    return top_level


def _failed(code: int, error: Exception) -> int:
    print(f"cysession: {error}", file=sys.stderr)
    return code
