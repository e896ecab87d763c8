"""End one user's sessions, or everybody's.

Final: a request that is just using such a session cannot write it back (ASVS 7.4.2, 7.4.5).
"""

import argparse

from .output import Output, count
from .target import add_target, learn_ttl, opened, shown, user

__all__ = ["add_to", "run"]


def add_to(parser: argparse.ArgumentParser) -> None:
    add_target(parser)
    whose = parser.add_mutually_exclusive_group(required=True)
    whose.add_argument(
        "--user", type=user, metavar="USER", help="as the application calls it in Session.bind(user)"
    )
    whose.add_argument(
        "--everyone", action="store_true", help="every session of the storage, also anonymous ones"
    )
    parser.add_argument(
        "--handle",
        action="append",
        default=[],
        metavar="HANDLE",
        help="only this one, as `inspect --user` names it",
    )
    parser.add_argument("--dry-run", action="store_true", help="say how many, and end none")
    parser.add_argument("--yes", action="store_true", help="needed with --everyone")


def run(args: argparse.Namespace, output: Output) -> int:
    if args.everyone and args.handle:
        output.note("cysession: --handle names sessions of one user: give --user")
        return 2
    if args.everyone and not (args.yes or args.dry_run):
        output.note("cysession: --everyone logs all users out; say --yes if that is meant")
        return 2
    revoked = _everyone(args, output) if args.everyone else _user(args)
    verb = "would end" if args.dry_run else "ended"
    data = {"storage": shown(args.storage), "user": args.user, "revoked": revoked, "dry_run": args.dry_run}
    output.result(data, [f"{verb} {count(revoked)} session{'' if revoked == 1 else 's'}"])
    return 0


def _user(args: argparse.Namespace) -> int:
    with opened(args.storage) as manager:
        learn_ttl(manager.storage, args.user)
        if args.dry_run:
            handles = {info.handle for info in manager.sessions_of(args.user)}
            return len(handles & set(args.handle)) if args.handle else len(handles)
        return manager.revoke(args.user, *args.handle)


def _everyone(args: argparse.Namespace, output: Output) -> int:
    """Sessions that begin meanwhile may survive: stop the servers, or run it twice, if none may."""
    with opened(args.storage) as manager:
        storage = manager.storage
        found = output.track(storage.scan(), "sessions")
        if args.dry_run:
            return sum(1 for _ in found)
        return sum(storage.delete_record(summary.locator) for summary in found)
