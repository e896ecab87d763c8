"""Take over live sessions of another library, so that nobody has to log in again.

    --from flask-session  REDIS_URL   Flask-Session in Redis, msgpack or JSON      keys session:<id>
    --from starsessions   REDIS_URL   starsessions in Redis, JSON                  keys starsessions.<id>
    --from goframe        REDIS_URL   GoFrame's gsession StorageRedis, JSON        keys <id>
    --from django         SETTINGS    Django, engines db, cached_db and file, JSON

Ids stay as they are, so browsers go on with the cookie they have: give the adapter the old cookie's name
(`cookie="session"`), and rotate ids at the next log-in as always. Nothing is changed at the source. A session that is
there already is left alone, so the command may be run again, and once more after the servers were switched.

Pickles are never read, because reading one may run anything: such sessions are counted as unreadable, and their users
log in again.
"""

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from importlib import import_module
from typing import Any, Final, NamedTuple

import msgpack  # type: ignore[import-untyped]

from cysession import Manager, Record
from cysession.errors import NotSerializable, NotSupported, StorageMisconfigured, StorageUnavailable
from cysession.ids import well_formed
from cysession.storage.users import USER_KEY

from .output import Output, count
from .target import URL_VARIABLE, opened, shown

__all__ = ["add_to", "run"]

SECOND: Final = 1_000_000_000
BATCH: Final = 500


class Found(NamedTuple):
    """One session of the source. data: None if it cannot be read."""

    session_id: str
    data: dict[str, Any] | None
    created_at: float | None
    expires_in: float  # seconds


def add_to(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--from", dest="library", required=True, choices=[*REDIS_FORMATS, "django"])
    parser.add_argument(
        "source", help="a Redis URL; for django the settings module, or '-' for $DJANGO_SETTINGS_MODULE"
    )
    parser.add_argument(
        "--to",
        dest="storage",
        default=os.environ.get(URL_VARIABLE),
        metavar="STORAGE",
        help="as for other commands",
    )
    parser.add_argument("--prefix", help="of the keys at the source, if not the library's default")
    parser.add_argument(
        "--bind", metavar="KEY", help="the key that says whose session it is, such as _user_id"
    )
    parser.add_argument("--dry-run", action="store_true", help="read and count, store nothing")


def run(args: argparse.Namespace, output: Output) -> int:
    if args.library == "django":
        found = _django(args.source)
    else:
        form = REDIS_FORMATS[args.library]
        found = _redis(args.source, form.prefix if args.prefix is None else args.prefix, form.read)
    bind = args.bind or ("_auth_user_id" if args.library == "django" else None)
    counts = Counter[str]()
    with opened(args.storage, new=True) as manager:
        for one in output.track(found, "sessions"):
            counts[_move(manager, one, bind, args.dry_run)] += 1
    outcomes = {outcome: counts[outcome] for outcome in OUTCOMES}
    data = {"from": args.library, "to": shown(args.storage), "dry_run": args.dry_run, **outcomes}
    output.result(data, _lines(outcomes, args.dry_run))
    return int(counts["unreadable"] + counts["unsuitable"] + counts["foreign"] > 0)


MOVED, THERE, UNREADABLE, UNSUITABLE, FOREIGN, EMPTY = OUTCOMES = (
    *("moved", "already_there", "unreadable", "unsuitable", "foreign", "empty"),
)
EXPLAINED: Final = {
    MOVED: "moved",
    THERE: "were there already",
    UNREADABLE: "could not be read (pickled, encrypted, or of another format)",
    UNSUITABLE: "hold a value that no session can hold",
    FOREIGN: "have an id that cannot be one here (1 to 128 of A-Z a-z 0-9 _ -)",
    EMPTY: "were empty, and are not needed",
}


def _lines(outcomes: dict[str, int], dry_run: bool) -> Iterator[str]:
    for outcome, number in outcomes.items():
        if number or outcome == MOVED:
            text = "can be moved" if dry_run and outcome == MOVED else EXPLAINED[outcome]
            yield f"{count(number):>9} {text}"


def _move(manager: Manager, one: Found, bind: str | None, dry_run: bool) -> str:
    storage = manager.storage
    if one.data is None:
        return UNREADABLE
    if not well_formed(one.session_id):
        return FOREIGN
    if not one.data:
        return EMPTY
    now, ttl = storage.now_ns(), max(1, round(one.expires_in * SECOND))
    user = one.data.get(bind) if bind else None
    data = {**one.data, USER_KEY: str(user)} if user is not None else one.data
    age = 0 if one.created_at is None else max(0, round((time.time() - one.created_at) * SECOND))
    try:
        record = Record.build(data, max(0, now - age), Record.NEVER)
    except (NotSerializable, TypeError):
        return UNSUITABLE
    if dry_run:
        return THERE if storage.peek_record(one.session_id, ttl) is not None else MOVED
    if user is not None:
        storage.note_user(str(user), one.session_id, ttl)
    return MOVED if storage.create_record(one.session_id, record, ttl) else THERE


# ---- Redis --------------------------------------------------------------------------------------------------


class Form(NamedTuple):
    prefix: str
    read: Callable[
        [bytes], tuple[dict[str, Any], float | None]
    ]  # data, and when it began; ValueError if it cannot


def _redis(
    url: str, prefix: str, read: Callable[[bytes], tuple[dict[str, Any], float | None]]
) -> Iterator[Found]:
    try:
        import redis
    except ModuleNotFoundError:
        raise StorageMisconfigured("reading from Redis needs redis: install cysession[redis]") from None
    try:
        client = redis.Redis.from_url(url, socket_timeout=5, socket_connect_timeout=5)
        batch: list[bytes] = []
        for key in client.scan_iter(match=_literal(prefix) + "*", count=BATCH):
            batch.append(key)
            if len(batch) == BATCH:
                yield from _read_keys(client, batch, len(prefix.encode()), read)
                batch = []
        yield from _read_keys(client, batch, len(prefix.encode()), read)
    except ValueError:
        raise StorageMisconfigured("the source is not a Redis URL such as redis://localhost:6379/0") from None
    except redis.RedisError as error:
        raise StorageUnavailable(
            f"the source failed with {type(error).__name__}; is it up, and the URL right?"
        ) from None


def _read_keys(client: Any, keys: list[bytes], skip: int, read: Callable[..., Any]) -> Iterator[Found]:
    if not keys:
        return
    pipe = client.pipeline(transaction=False)
    for key in keys:
        pipe.get(key)
        pipe.pttl(key)
    replies = pipe.execute(raise_on_error=False)
    for key, value, left in zip(keys, replies[::2], replies[1::2], strict=True):
        if value is None or isinstance(left, Exception):
            continue  # it expired meanwhile
        name = key[skip:].decode("ascii", "replace")
        life = left / 1000 if left > 0 else 86400.0
        data, created = None, None
        if isinstance(value, bytes):  # else something of another type
            try:
                data, created = read(value)
            except ValueError:
                data = None
        yield Found(name, data, created, life)


def _literal(text: str) -> str:
    return "".join(f"\\{c}" if c in "*?[]^\\" else c for c in text)


def _flask_session(value: bytes) -> tuple[dict[str, Any], float | None]:
    """msgspec's MessagePack (aware datetimes are timestamps, naive ones were text already), or JSON."""
    try:
        data = msgpack.unpackb(value, timestamp=3, strict_map_key=False)
    except (ValueError, msgpack.UnpackException):
        return _json(value)
    return (data, None) if type(data) is dict else _json(value)


def _json(value: bytes) -> tuple[dict[str, Any], float | None]:
    data = json.loads(value)
    if type(data) is not dict:
        raise ValueError("not a session")
    return data, None


def _starsessions(value: bytes) -> tuple[dict[str, Any], float | None]:
    data, _ = _json(value)
    about = data.pop("__metadata__", None)
    created = about.get("created") if isinstance(about, dict) else None
    return data, float(created) if isinstance(created, int | float) else None


REDIS_FORMATS: Final = {
    "flask-session": Form("session:", _flask_session),
    "starsessions": Form("starsessions.", _starsessions),
    "goframe": Form("", _json),
}


# ---- Django -------------------------------------------------------------------------------------------------


def _django(settings_module: str) -> Iterator[Found]:
    """Through Django itself, which knows its keys and salts; only signed JSON is read."""
    try:
        import django
        from django.conf import settings
    except ModuleNotFoundError:
        raise StorageMisconfigured("reading Django's sessions needs Django") from None
    if settings_module != "-":
        os.environ["DJANGO_SETTINGS_MODULE"] = settings_module
    sys.path.insert(0, os.getcwd())
    try:
        django.setup()
    except Exception as error:
        raise StorageMisconfigured(f"Django's settings cannot be loaded: {error}") from error
    if settings.SESSION_SERIALIZER != "django.contrib.sessions.serializers.JSONSerializer":
        raise StorageMisconfigured(
            "only sessions of Django's JSONSerializer are read; SESSION_SERIALIZER is another"
        )
    engine = settings.SESSION_ENGINE.rpartition(".")[2]
    store = import_module(settings.SESSION_ENGINE).SessionStore
    if engine in ("db", "cached_db"):
        yield from _django_rows(store)
    elif engine == "file":
        yield from _django_files(store, settings)
    else:
        raise NotSupported(
            f"sessions of Django's engine {engine!r} cannot be listed; those of db, cached_db and file can"
        )


def _django_rows(store: Any) -> Iterator[Found]:
    from django.contrib.sessions.models import Session
    from django.db import DatabaseError
    from django.utils import timezone

    try:
        for row in Session.objects.filter(expire_date__gt=timezone.now()).iterator(BATCH):
            left = (row.expire_date - timezone.now()).total_seconds()
            yield _decoded(store, row.session_key, row.session_data, left)
    except DatabaseError as error:
        raise StorageUnavailable(f"Django's database failed with {type(error).__name__}") from error


def _django_files(store: Any, settings: Any) -> Iterator[Found]:
    """A file's session ends by its own expiry, if it has one, else SESSION_COOKIE_AGE after its last change."""
    prefix = settings.SESSION_COOKIE_NAME
    with os.scandir(store._get_storage_path()) as entries:
        for entry in entries:
            key = entry.name.removeprefix(prefix)
            if not entry.name.startswith(prefix) or not well_formed(key):
                continue
            if not entry.is_file(follow_symlinks=False):
                continue
            with open(entry.path, encoding="ascii", errors="replace") as file:
                found = _decoded(store, key, file.read(), 0)
            own = None if found.data is None else found.data.get("_session_expiry")
            if isinstance(own, str):
                left = datetime.fromisoformat(own).timestamp() - time.time()
            else:
                age = own if isinstance(own, int) and own else settings.SESSION_COOKIE_AGE
                left = entry.stat().st_mtime + age - time.time()
            if left > 0:
                yield found._replace(expires_in=left)


def _decoded(store: Any, key: str, signed: str, left: float) -> Found:
    """SessionStore.decode() takes a wrong signature for an empty session; here it counts as unreadable."""
    from django.contrib.sessions.serializers import JSONSerializer
    from django.core import signing

    try:
        data = signing.loads(signed, salt=store().key_salt, serializer=JSONSerializer)
    except Exception:  # whatever is wrong with it: BadSignature, JSON, zlib
        return Found(key, None, None, left)
    return Found(key, data if type(data) is dict else None, None, left)
