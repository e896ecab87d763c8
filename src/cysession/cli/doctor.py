"""Whether a storage and its configuration are safe, fast and large enough.

The storage examines its own place (`Storage.examine`); then one session of the doctor's own is made, read, changed,
rotated and destroyed, and each step is timed; then the policy and the cookie are held against what browsers accept and
OWASP ASVS 5.0 asks for. The policy is read from the application's manager if one is named (MODULE:NAME).
"""

import argparse
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, Final

from cysession import Manager
from cysession.cookies import DEFAULT_NAME, SessionCookie, without_prefix
from cysession.errors import SessionError, StorageMisconfigured, StorageUnavailable
from cysession.storage.operate import FAIL, OK, WARN, Finding

from .numbers import positive
from .output import Output, duration
from .target import add_target, missing_directory, opened, shown

__all__ = ["add_to", "run"]

MARKS: Final = {OK: "ok", WARN: "WARN", FAIL: "FAIL"}
SLOW: Final = 0.05  # seconds that one step on the storage may take before a request feels it
ROUNDS: Final = 5
DAY: Final = 86400


def add_to(parser: argparse.ArgumentParser) -> None:
    add_target(parser)
    parser.add_argument("--strict", action="store_true", help="exit with 1 for warnings too")
    parser.add_argument("--read-only", action="store_true", help="make no session of the doctor's own")
    cookie = parser.add_argument_group("the cookie, as the adapter is configured")
    cookie.add_argument("--cookie", default=DEFAULT_NAME, metavar="NAME")
    cookie.add_argument("--domain", default=None)
    cookie.add_argument("--path", default="/")
    cookie.add_argument("--samesite", default="Lax")
    cookie.add_argument("--partitioned", action="store_true")
    cookie.add_argument("--cookie-max-age", type=positive, default=None, metavar="S")
    cookie.add_argument("--insecure", action="store_true", help="plain http, for development")
    cookie.add_argument(
        "--header", default=None, metavar="NAME", help="the id travels in this header instead"
    )


def run(args: argparse.Namespace, output: Output) -> int:
    findings: list[Finding] = []
    for finding in _examine(args):
        findings.append(finding)
        if not output.as_json:
            output.step({}, _line(finding))
    if output.as_json:
        output.result(_told(args, findings), ())
    else:
        output.step({}, _verdict(findings))
    bad = {FAIL, WARN} if args.strict else {FAIL}
    return int(any(finding.level in bad for finding in findings))


def _line(finding: Finding) -> str:
    line = f"{MARKS[finding.level]:<5} {finding.what}: {finding.state}"
    return f"{line}\n      -> {finding.advice}" if finding.advice else line


def _told(args: argparse.Namespace, findings: list[Finding]) -> dict[str, Any]:
    return {
        "storage": shown(args.storage),
        "ok": all(finding.level != FAIL for finding in findings),
        "findings": [finding._asdict() for finding in findings],
    }


def _verdict(findings: list[Finding]) -> str:
    failed = sum(finding.level == FAIL for finding in findings)
    warned = sum(finding.level == WARN for finding in findings)
    if not failed and not warned:
        return "\nall is well"
    return f"\n{failed} failed, {warned} to think about, {len(findings) - failed - warned} well"


def _examine(args: argparse.Namespace) -> Iterator[Finding]:
    missing = missing_directory(args.storage or "")
    if missing is not None:
        yield _not_there(missing, args.read_only)
    if missing is None or not args.read_only:
        yield from _storage(args)
    yield from _cookie(args)


def _not_there(directory: str, read_only: bool) -> Finding:
    state = f"{directory} is not there" + ("" if read_only else ", and is made now")
    advice = "the user that makes it owns it: run the doctor as the one that the servers run as"
    return Finding(WARN, "directory", state, advice)


def _storage(args: argparse.Namespace) -> Iterator[Finding]:
    try:
        with opened(args.storage, new=True) as manager:
            yield from manager.storage.examine()
            if not args.read_only:
                yield from _round_trip(manager)
            yield from _policy(manager, "://" not in args.storage)
    except (StorageUnavailable, StorageMisconfigured) as error:
        yield Finding(FAIL, "storage", str(error))


# ---- a session of our own -----------------------------------------------------------------------------------


def _round_trip(manager: Manager) -> Iterator[Finding]:
    """Each step several times; the slowest counts, but for the first, which connects."""
    storage, ttl = manager.storage, manager.storage.ttl
    try:
        times = [_times(Manager(60, storage)) for _ in range(ROUNDS + 1)][1:]
    except AssertionError as error:
        yield Finding(
            FAIL, "round trip", str(error), "something else changes sessions here, or they do not last"
        )
        return
    except SessionError as error:
        yield Finding(FAIL, "round trip", str(error))
        return
    finally:
        storage.ttl = ttl
    worst = {step: max(one[step] for one in times) for step in times[0]}
    state = ", ".join(f"{step} {_short(seconds)}" for step, seconds in worst.items())
    if max(worst.values()) > SLOW:
        yield Finding(
            WARN, "round trip", state, f"more than {SLOW * 1000:.0f} ms a step: every request waits for it"
        )
    else:
        yield Finding(OK, "round trip", state)


def _times(manager: Manager) -> dict[str, float]:
    times: dict[str, float] = {}

    def timed(step: str, call: Callable[[], object]) -> None:
        begun = time.perf_counter()
        call()
        times[step] = time.perf_counter() - begun

    session = manager.new()
    try:
        session["doctor"] = "cysession"
        timed("create", session.save)
        token = session.id
        reader = manager.new(token)
        timed("load", reader.load)
        _sure(reader.get("doctor") == "cysession", "a session that was just stored cannot be read")
        reader["seen"] = True
        timed("commit", reader.save)
        timed("rotate", reader.regenerate_id)
        _sure("doctor" not in manager.new(token), "the old id is alive after a rotation")
        token = reader.id
        timed("destroy", reader.destroy)
        _sure("doctor" not in manager.new(token), "a destroyed session is still there")
    finally:
        session.destroy()
    return times


def _sure(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(otherwise)


def _short(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} us" if seconds < 1e-3 else f"{seconds * 1e3:.1f} ms"


# ---- policy and cookie --------------------------------------------------------------------------------------


def _policy(manager: Manager, known: bool) -> Iterator[Finding]:
    """Of the application's own manager; a URL says nothing of it."""
    if not known:
        return
    ttl, policy = manager.ttl, manager.policy
    if ttl > 30 * DAY:
        yield Finding(
            WARN, "ttl", duration(ttl), "ASVS 7.3.1: end idle sessions sooner, by what they protect"
        )
    else:
        yield Finding(OK, "ttl", f"an idle session ends after {duration(ttl)}")
    if policy["max_age"] is None:
        advice = "ASVS 7.3.2: Manager(max_age=...) bounds how long a stolen id is worth something"
        yield Finding(WARN, "max_age", "none: a session in use never ends", advice)
    else:
        yield Finding(OK, "max_age", f"every session ends after {duration(policy['max_age'])}")
    if not policy["strict"]:
        advice = "strict=True: ids that this server did not issue let an attacker choose a victim's id (ASVS 7.2.4)"
        yield Finding(WARN, "strict", "off", advice)


def _cookie(args: argparse.Namespace) -> Iterator[Finding]:
    if args.header is not None:
        advice = "scripts can read it there (ASVS 3.3.4): for API clients only"
        yield Finding(WARN, "header", f"the id travels in {args.header}", advice)
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cookie = SessionCookie(
                without_prefix(args.cookie) if args.insecure else args.cookie,
                domain=args.domain,
                path=args.path,
                secure=not args.insecure,
                samesite=args.samesite,
                partitioned=args.partitioned,
                max_age=None if args.cookie_max_age is None else timedelta(seconds=args.cookie_max_age),
            )
    except ValueError as error:
        yield Finding(FAIL, "cookie", str(error))
        return
    yield from _judged(args, cookie)


def _judged(args: argparse.Namespace, cookie: SessionCookie) -> Iterator[Finding]:
    if args.insecure:
        yield Finding(WARN, "cookie", "plain http: ids travel readable", "for development only (ASVS 3.3.1)")
    elif not cookie.name.lower().startswith(("__host-", "__secure-")):
        advice = f"a prefix has browsers insist on https and on this host: {DEFAULT_NAME} (ASVS 3.3.3)"
        yield Finding(WARN, "cookie", f"{cookie.name} has no prefix", advice)
    else:
        yield Finding(OK, "cookie", f"{cookie.name} is Secure and HttpOnly")
    if args.domain:
        yield Finding(
            WARN, "cookie domain", args.domain, "every host below it gets the id, and may set the cookie"
        )
    if args.samesite.lower() == "none":
        advice = "other sites' requests carry the session: every change needs an anti-CSRF token (ASVS 3.3.2)"
        yield Finding(WARN, "cookie samesite", "None", advice)
