"""What does a new session cost, and what do its id and the name under which a storage keeps it?

Ids are 32 bytes of the operating system's random numbers, 43 characters. Peers draw theirs as their source does it:
Django from an alphabet character by character, Flask-Session and starsessions through `secrets`, Beaker from a hash of
the time, the process and a random number.
"""

import secrets
import uuid
from collections.abc import Callable

from race import Race, built
from workload import LOOP, contents

from cysession import Manager
from cysession.ids import new_id, storage_key


def repeated(call: Callable[[], object], count: int = LOOP) -> Callable[[], None]:
    def run() -> None:
        for _ in range(count):
            call()

    return run


def django_id() -> Callable[[], None]:
    from django.contrib.sessions.backends.base import VALID_KEY_CHARS
    from django.utils.crypto import get_random_string

    return repeated(lambda: get_random_string(32, VALID_KEY_CHARS), 100)


def beaker_id() -> Callable[[], None]:
    from beaker.session import _session_id

    return repeated(_session_id, 100)


def starsessions_id() -> Callable[[], None]:
    from starsessions.session import generate_session_id

    return repeated(generate_session_id, 100)


def test_ids(race: Race) -> None:
    contenders = {
        "cysession new_id": repeated(new_id, 100),
        "secrets.token_urlsafe(32), as Flask-Session": repeated(lambda: secrets.token_urlsafe(32), 100),
        "starsessions": built(starsessions_id),
        "Django": built(django_id),
        "Beaker": built(beaker_id),
        "uuid4": repeated(uuid.uuid4, 100),
    }
    race("drawing an id", contenders, operations=100)


def test_name_in_a_storage(race: Race) -> None:
    key = new_id()
    race("the name in a storage: SHA-256 of the id", {"cysession": repeated(lambda: storage_key(key))})


def test_whole_sessions(race: Race, manager: Manager) -> None:
    """A million that are made here stay until the end, so the rounds are limited."""
    plain: dict[str, dict[str, str]] = {}

    def creates() -> None:
        for n in range(100):
            session = manager.new()
            session.set_map(contents(n))
            session.close()

    def dicts() -> None:
        for n in range(100):
            plain[secrets.token_urlsafe(32)] = contents(n)

    race(
        "a new session of three keys, stored in memory",
        {"cysession": creates, "dict of dicts, secrets.token_urlsafe": dicts},
        operations=100,
        rounds=(10, 5000),
        notes={"dict of dicts, secrets.token_urlsafe": "expiry, locks, copies, commits"},
    )
