"""Sliding refresh (S19): a persistent cookie is sent again while it is used, but rarely, and only to its owner."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cysession import FileStorage, Manager, MemoryStorage, Session, Storage
from cysession.testing import FakeClock
from tests.web.browser import Jar
from tests.web.conftest import MakeSite
from tests.web.sites import ADAPTERS, Answer, Reply, Site, View
from tests.web.storages import DictStorage, WaitingStorage

HOUR = 3600
LIFE = 10 * HOUR  # so the cookie may be sent again once an hour

STORAGES: dict[str, Callable[[Path], Storage]] = {
    "memory": lambda path: MemoryStorage(),
    "file": lambda path: FileStorage(path / "sessions"),
    "custom": lambda path: DictStorage(),
    "waiting": lambda path: WaitingStorage(),
}


def count(session: Session) -> None:
    session["n"] = session.get("n", 0) + 1


def read(session: Session) -> Answer:
    return Answer(str(session.get("n", "nobody")).encode())


def ignore(session: Session) -> None:
    pass


class Shop:
    """A site with a persistent cookie, a clock, and one browser."""

    def __init__(self, make_site: MakeSite, storage: Storage) -> None:
        self.clock = FakeClock()
        self.manager = Manager(100 * HOUR, storage, grace=30, clock=self.clock)
        self._make_site = make_site
        self.jar = Jar(now=int(self.clock()))

    def send(
        self, view: Callable[[Session], Answer | None], header: bytes | None = None, **options: object
    ) -> Reply:
        """One request, with the browser's cookies or with this header; the browser takes the answer."""
        self.jar.now = int(self.clock())
        carried = self.jar.header() if header is None else header
        site = self._make_site(view, manager=self.manager, **{"cookie_max_age": LIFE, **options})
        reply = site.request([(b"cookie", carried)] if carried else [])
        for line in reply.cookies:
            self.jar.receive(line)
        return reply


@pytest.fixture(params=ADAPTERS)
def make_site(request: pytest.FixtureRequest) -> MakeSite:
    """As in conftest.py, but every test here brings a manager of its own."""

    def make(view: View, *, manager: Manager, **options: object) -> Site:
        return ADAPTERS[request.param](view, manager, options)

    return make


@pytest.fixture(params=STORAGES)
def shop(request: pytest.FixtureRequest, make_site: MakeSite, tmp_path: Path) -> Iterator[Shop]:
    made = Shop(make_site, STORAGES[request.param](tmp_path))
    yield made
    made.manager.close()


def test_S19_a_user_who_comes_back_in_time_keeps_the_cookie_for_ever(shop: Shop) -> None:
    """G10: with a fixed Max-Age the browser would drop it after LIFE."""
    shop.send(count)
    for _ in range(30):
        shop.clock.advance(LIFE * 0.9)
        assert shop.send(read).body == b"1"
    assert not shop.jar.refused
    shop.clock.advance(LIFE)
    assert shop.send(read).body == b"nobody"


def test_S19_it_is_sent_again_once_a_tenth_of_its_life_and_not_before(shop: Shop) -> None:
    first = shop.send(count)
    sent = 0
    for _ in range(6 * 5):  # every ten minutes for five hours
        shop.clock.advance(600)
        reply = shop.send(count)
        sent += len(reply.cookies)
        if reply.cookies:
            assert reply.session_id == first.session_id and b"; Max-Age=%d;" % LIFE in reply.cookies[0]
    assert sent == 5
    shop.clock.advance(HOUR - 1)
    assert shop.send(count).cookies == []
    shop.clock.advance(1)
    assert len(shop.send(count).cookies) == 1


def test_S19_golden_line_with_the_time_of_issue(shop: Shop) -> None:
    reply = shop.send(count)
    assert reply.cookies == [
        b"__Host-id=%b.%d; Path=/; Max-Age=36000; Secure; HttpOnly; SameSite=Lax"
        % (reply.session_id.encode(), shop.clock())
    ]


def test_S15_a_response_that_sends_it_again_is_stored_by_nobody(shop: Shop) -> None:
    def view(session: Session) -> Answer:
        session.get("n")
        return Answer(headers=[(b"Cache-Control", b"public, max-age=60"), (b"Vary", b"Accept")])

    shop.send(count)
    shop.clock.advance(HOUR)
    reply = shop.send(view)
    assert len(reply.cookies) == 1
    assert reply.all(b"cache-control") == [b"no-store"] and reply.all(b"vary") == [b"Accept, Cookie"]
    assert shop.send(view).all(b"cache-control") == [b"public, max-age=60"]


def test_S15_a_response_that_never_looked_is_left_as_it_was(shop: Shop) -> None:
    shop.send(count)
    shop.clock.advance(5 * HOUR)
    reply = shop.send(ignore)
    assert reply.cookies == reply.all(b"vary") == []


def test_it_survives_a_change_of_the_setting_in_both_directions(shop: Shop) -> None:
    shop.send(count)
    assert shop.send(read, cookie_max_age=None).body == b"1"
    shop.clock.advance(5 * HOUR)
    assert shop.send(read, cookie_max_age=None).cookies == []
    shop.jar.cookies.clear()
    session_id = shop.send(count, cookie_max_age=None).session_id
    reply = shop.send(read)  # without a time of issue it is due at once
    assert reply.body == b"1" and reply.session_id == session_id
    assert shop.send(read).cookies == []


def test_send_cookie_false_never_sends_it_again(shop: Shop) -> None:
    shop.send(count)
    shop.clock.advance(5 * HOUR)
    reply = shop.send(read, send_cookie=False)
    assert reply.body == b"1" and reply.cookies == []


def test_a_dead_session_is_not_sent_again(shop: Shop) -> None:
    session_id = shop.send(count).session_id
    shop.manager.new(session_id).destroy()
    shop.clock.advance(5 * HOUR)
    assert shop.send(read).cookies == []


@pytest.mark.parametrize("delete_old", [True, False])
def test_V7_a_slow_response_does_not_bring_an_id_back_that_was_rotated_meanwhile(
    shop: Shop, delete_old: bool
) -> None:
    """Starlette #2019: the browser has the fresh id by the time the slow response arrives."""
    session_id = shop.send(count).session_id
    shop.clock.advance(5 * HOUR)

    def slow(session: Session) -> None:
        assert session.get("n") == 1
        shop.manager.new(session_id).regenerate_id(delete_old)

    assert shop.send(slow).cookies == []
    old = shop.send(read, b"__Host-id=" + session_id.encode())  # nor later, within its grace time
    assert old.cookies == [] and old.body == (b"nobody" if delete_old else b"1")


def test_V7_a_slow_response_does_not_bring_an_id_back_that_was_destroyed_meanwhile(shop: Shop) -> None:
    session_id = shop.send(count).session_id
    shop.clock.advance(5 * HOUR)

    def slow(session: Session) -> None:
        assert session.get("n") == 1
        shop.manager.new(session_id).destroy()

    assert shop.send(slow).cookies == []


def test_a_rotation_stamps_the_fresh_id(shop: Shop) -> None:
    def renew(session: Session) -> None:
        session.regenerate_id()

    first = shop.send(count).session_id
    shop.clock.advance(5 * HOUR)
    second = shop.send(renew)
    assert second.session_id != first
    assert b".%d;" % shop.clock() in second.cookies[0] and shop.send(read).body == b"1"


@pytest.mark.parametrize(
    ("value", "known", "again"),
    [
        (b"%b.%d", True, False),
        (b"%b.%d;", True, False),
        (b"%b.0", True, True),
        (b"%b.999999999999", True, True),  # a clock that was put right
        (b"%b.9999999999999", False, False),
        (b"%b.", False, False),
        (b"%b.x", False, False),
        (b"%b.-1", False, False),
        (b"%b.1.1", False, False),
        (b"%b..1", False, False),
        (b".%d", False, False),
        (b"%b", True, True),
        (b"%b.1;__Host-id=%b.%d", True, False),
        (b"%b.1; __Host-id=%b.2", True, True),
        (b"%b.1; __Host-id=other.%d", True, True),
    ],
)
def test_S4_a_forged_time_of_issue_decides_nothing_else(
    shop: Shop, value: bytes, known: bool, again: bool
) -> None:
    session_id = shop.send(count).session_id.encode()
    now = int(shop.clock())
    value = value.replace(b"%b", session_id).replace(b"%d", b"%d" % now)
    reply = shop.send(read, b"a=1; __Host-id=" + value)
    assert reply.body == (b"1" if known else b"nobody")
    assert len(reply.cookies) == again
    assert not again or reply.session_id.encode() == session_id


@pytest.mark.parametrize("storage", [DictStorage, WaitingStorage])
def test_R20_a_storage_that_fails_just_then_costs_the_refresh_and_not_the_response(
    storage: type[DictStorage], make_site: MakeSite
) -> None:
    shop = Shop(make_site, storage())
    shop.send(count)
    shop.clock.advance(5 * HOUR)

    def fail(session: Session) -> Answer:
        answer = read(session)
        shop.manager.storage.broken = True  # type: ignore[attr-defined]
        return answer

    reply = shop.send(fail)
    assert (reply.status, reply.body, reply.cookies) == (200, b"1", [])
    shop.manager.storage.broken = False  # type: ignore[attr-defined]
    assert len(shop.send(read).cookies) == 1


# Django's SESSION_COOKIE_AGE is the idle time as well: beside a header it means that alone.
@pytest.mark.parametrize("make_site", [name for name in ADAPTERS if "django" not in name], indirect=True)
def test_a_header_has_no_life_to_refresh(make_site: MakeSite) -> None:
    shop = Shop(make_site, MemoryStorage())
    with pytest.raises(ValueError, match="header= replaces the cookie"):
        make_site(count, manager=shop.manager, header="X-Session-Id", cookie_max_age=LIFE)


def test_without_max_age_the_cookie_is_the_bare_id(shop: Shop) -> None:
    reply = shop.send(count, cookie_max_age=None)
    assert reply.cookies[0].startswith(b"__Host-id=%b; " % reply.session_id.encode())
