"""Nothing of one user reaches another: through caches, threads, other sites on the same storage, or failures.

For every HTTP adapter over every storage. Names carry the IDs of the security checklist.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cysession import FileStorage, Manager, MemoryStorage, RedisHashStorage, RedisStorage, Session, Storage
from cysession.events import Event
from cysession.testing import FakeClock
from tests.redis.servers import RedisServer, eventually
from tests.web import sites
from tests.web.browser import Jar
from tests.web.conftest import MakeSite
from tests.web.proxy import CachingProxy
from tests.web.sites import ADAPTERS, Answer, Header, Reply, Site, cookie, visitor

PUBLIC = (b"cache-control", b"public, max-age=31536000")  # an app that takes no care at all


def count(session: Session) -> None:
    session["n"] = session.get("n", 0) + 1


def read(session: Session) -> Answer:
    return Answer(str(session.get("n", "nobody")).encode())


def log_out(session: Session) -> None:
    session.destroy()


@pytest.fixture(params=ADAPTERS)
def adapter(request: pytest.FixtureRequest) -> Callable[..., Site]:
    return lambda view, manager, **options: ADAPTERS[request.param](view, manager, options)


# -- caches -------------------------------------------------------------------------------------------------


def page(session: Session) -> Answer:
    return Answer(f"hello {session.get('user', 'stranger')}".encode(), headers=[PUBLIC])


def log_in(session: Session) -> Answer:
    session.regenerate_id()
    session["user"] = visitor.get()
    return page(session)


def count_visits(session: Session) -> Answer:
    session["visits"] = session.get("visits", 0) + 1
    return Answer(
        f"visit {session['visits']} of {session.get('user', 'stranger')}".encode(), headers=[PUBLIC]
    )


def asks_only_if_it_is_there(session: Session) -> Answer:
    return Answer(b"yes" if "user" in session else b"no", headers=[PUBLIC])


def style(session: Session) -> Answer:
    return Answer(b"body {}", headers=[PUBLIC])


def leave(session: Session) -> Answer:
    session.destroy()
    return Answer(b"goodbye", headers=[PUBLIC])


class User:
    """A browser behind the proxy."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.jar = Jar()
        self.inside = False

    def visit(self, proxy: CachingProxy, url: str, site: Site) -> Reply:
        carried = self.jar.header()
        token = visitor.set(self.name)
        reply = proxy.get(url, site.request, [(b"cookie", carried)] if carried else [])
        visitor.reset(token)
        for line in reply.cookies:
            self.jar.receive(line)
        return reply


@pytest.mark.parametrize("seed", range(3))
def test_S15_V7_behind_a_greedy_cache_nobody_gets_what_is_anothers(seed: int, make_site: MakeSite) -> None:
    views = {
        "/": page,
        "/in": log_in,
        "/n": count_visits,
        "/has": asks_only_if_it_is_there,
        "/css": style,
        "/out": leave,
    }
    shop = {url: make_site(view) for url, view in views.items()}
    proxy, dice = CachingProxy(), random.Random(seed)
    users = [User(name) for name in ("anna", "ben", "carl", "dora")]
    owners: dict[bytes, str] = {}
    for _ in range(150):
        user, url = dice.choice(users), dice.choice(list(views))
        reply = user.visit(proxy, url, shop[url])
        user.inside = url == "/in" or (user.inside and url != "/out")
        for other in users:
            assert other is user or other.name.encode() not in reply.body
        for line in reply.cookies:
            if b"Max-Age=0" not in line:
                value = line.partition(b"=")[2].partition(b";")[0]
                assert owners.setdefault(value, user.name) == user.name
        if url in ("/", "/n"):
            assert (user.name.encode() in reply.body) == user.inside
        elif url == "/has":
            assert reply.body == (b"yes" if user.inside else b"no")
    assert proxy.hits > 10  # what nobody's session has touched is shared


def test_S15_the_model_of_the_cache_is_greedy() -> None:
    """Without Vary and no-store it would hand one user's page and cookie to the next: the test above can fail."""
    proxy = CachingProxy()
    for headers, shared in (
        ([PUBLIC, (b"set-cookie", b"a=1")], True),
        ([(b"vary", b"Cookie")], False),
        ([(b"cache-control", b"no-store")], False),
        ([(b"vary", b"Accept")], True),
    ):
        url = repr(headers)
        bodies = [
            proxy.get(url, lambda _, h=headers, n=name: Reply(200, h, n), [(b"cookie", name)]).body  # type: ignore[misc]
            for name in (b"anna", b"ben")
        ]
        assert bodies == ([b"anna", b"anna"] if shared else [b"anna", b"ben"])


# -- many at once -------------------------------------------------------------------------------------------


def test_V11_64_users_at_once_see_only_their_own(make_site: MakeSite, manager: Manager) -> None:
    def view(session: Session) -> Answer:
        own = visitor.get()
        assert session.get("secret", own) == own
        session["secret"] = own
        time.sleep(0)  # let others run
        session["n"] = session.get("n", 0) + 1
        session.setdefault("log", []).append(own)
        time.sleep(0)
        assert session["secret"] == own
        return Answer(own.encode())

    site = make_site(view)
    together = threading.Barrier(64, timeout=60)

    def user(number: int) -> str:
        visitor.set(f"secret of {number}")
        headers: list[Header] = []
        together.wait()
        for _ in range(4):
            reply = site.request(headers)
            assert (reply.status, reply.body) == (200, visitor.get().encode())
            headers = cookie(reply.session_id) if reply.cookies else headers
        return headers[0][1].decode().partition("=")[2]

    with ThreadPoolExecutor(64) as threads:
        ids = list(threads.map(user, range(64)))
    assert len(set(ids)) == 64
    for number, session_id in enumerate(ids):
        own = f"secret of {number}"
        assert manager.new(session_id).get_map() == {"secret": own, "n": 4, "log": [own] * 4}


def test_R2_two_requests_of_one_user_at_once_both_keep_their_changes(
    make_site: MakeSite, manager: Manager
) -> None:
    session_id = make_site(count).request().session_id
    together = threading.Barrier(2, timeout=60)

    def view(session: Session) -> None:
        assert session["n"] == 1
        together.wait()  # both have read before either writes
        session[visitor.get()] = True

    site = make_site(view)

    def tab(name: str) -> int:
        visitor.set(name)
        return site.request(cookie(session_id)).status

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(tab, ("left", "right"))) == [200, 200]
    assert manager.new(session_id).get_map() == {"n": 1, "left": True, "right": True}


# -- the order of things ------------------------------------------------------------------------------------


def test_R3_the_record_is_there_before_the_server_is_handed_the_headers(
    make_site: MakeSite, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []

    def look(headers: list[Header]) -> None:
        (line,) = [value for name, value in headers if name.lower() == b"set-cookie"]
        with ThreadPoolExecutor(1) as thread:  # no event loop there, whatever the adapter
            session_id = line.partition(b"=")[2].partition(b";")[0].decode()
            seen.append(thread.submit(lambda: manager.new(session_id).get("n")).result())

    monkeypatch.setattr(sites, "HEADERS_LEAVE", [look])
    make_site(count).request()
    assert seen == [1]


def test_V14_a_hook_that_raises_keeps_nobody_logged_in(make_site: MakeSite, manager: Manager) -> None:
    session_id = make_site(count).request().session_id

    @manager.on("destroyed")
    def _hook(event: Event) -> None:
        raise LookupError("a bug of the hook")

    reply = make_site(log_out).request(cookie(session_id))
    assert reply.status == 200 and b"Max-Age=0" in reply.cookies[0]
    assert make_site(read).request(cookie(session_id)).body == b"nobody"


def test_S10_an_id_anywhere_but_in_its_cookie_is_ignored(make_site: MakeSite) -> None:
    session_id = make_site(count).request().session_id.encode()
    for name in (
        b"authorization",
        b"x-session-id",
        b"set-cookie",
        b"referer",
        b"cookie2",
        b"x-cookie",
        b"__host-id",
    ):
        for value in (
            session_id,
            b"__Host-id=" + session_id,
            b"Bearer " + session_id,
            b"/?__Host-id=" + session_id,
        ):
            assert make_site(read).request([(name, value)]).body == b"nobody"


# -- how long -----------------------------------------------------------------------------------------------


def test_S6_S7_idle_and_absolute_timeouts_hold_however_often_it_is_used(adapter: Callable[..., Site]) -> None:
    clock = FakeClock()
    with Manager(600, MemoryStorage(), max_age=3600, clock=clock) as manager:
        show, idle = (adapter(count, manager).request().session_id for _ in range(2))
        site = adapter(read, manager)
        for minute in range(1, 60):
            clock.advance(60)
            assert site.request(cookie(show)).body == b"1"
            if minute == 10:
                assert site.request(cookie(idle)).body == b"nobody"
        clock.advance(61)
        assert site.request(cookie(show)).body == b"nobody"


def test_R40_a_full_storage_is_503_for_new_sessions_and_ends_no_other(adapter: Callable[..., Site]) -> None:
    with Manager(3600, MemoryStorage(max_sessions=3)) as manager:
        ids = [adapter(count, manager).request().session_id for _ in range(3)]
        reply = adapter(count, manager).request()
        assert (reply.status, reply.cookies) == (503, [])
        for session_id in ids:
            assert adapter(count, manager).request(cookie(session_id)).status == 200
        assert [adapter(read, manager).request(cookie(session_id)).body for session_id in ids] == [b"2"] * 3


# -- two managers on one storage ----------------------------------------------------------------------------


def on_files(path: Path, server: Any, realm: str) -> Storage:
    return FileStorage(path, realm=realm)


def on_redis(path: Path, server: RedisServer, realm: str) -> Storage:
    return RedisStorage(server.url, realm=realm, timeout=20)


def on_redis_hashes(path: Path, server: RedisServer, realm: str) -> Storage:
    return RedisHashStorage(server.url, realm=realm, timeout=20)


def with_prefix(path: Path, server: RedisServer, realm: str) -> Storage:
    return RedisStorage(server.url, prefix=realm + ":", timeout=20)


@pytest.mark.parametrize("make", [on_files, on_redis, on_redis_hashes, with_prefix])
def test_V13_two_managers_on_one_storage_are_kept_apart(
    make: Callable[..., Storage], adapter: Callable[..., Site], tmp_path: Path, redis_server: RedisServer
) -> None:
    redis_server.flush()
    with (
        Manager(3600, make(tmp_path / "s", redis_server, "shop")) as shop,
        Manager(3600, make(tmp_path / "s", redis_server, "forum")) as forum,
    ):
        session_id = adapter(count, shop).request().session_id
        assert adapter(read, forum).request(cookie(session_id)).body == b"nobody"
        assert adapter(log_out, forum).request(cookie(session_id)).status == 200
        other = adapter(count, forum).request(cookie(session_id)).session_id
        assert other != session_id
        assert adapter(read, shop).request(cookie(other)).body == b"nobody"
        assert adapter(read, shop).request(cookie(session_id)).body == b"1"


# -- a storage that goes away and comes back ----------------------------------------------------------------


@pytest.mark.redis
@pytest.mark.parametrize("kind", [RedisStorage, RedisHashStorage])
def test_R20_R21_a_redis_that_hangs_is_503_and_logs_nobody_out(
    kind: type[RedisStorage], adapter: Callable[..., Site], redis_server: RedisServer
) -> None:
    redis_server.flush()
    with Manager(3600, kind(redis_server.url)) as manager:
        jar = Jar()
        jar.receive(adapter(count, manager).request().cookies[0])
        kept = jar.header()
        with redis_server.frozen():
            for view in (read, count, log_out):
                reply = adapter(view, manager).request([(b"cookie", kept)])
                assert (reply.status, reply.cookies) == (503, [])
                assert reply.all(b"retry-after") and reply.all(b"cache-control") == [b"no-store"]
        site = adapter(read, manager)
        reply = eventually(
            lambda: (got := site.request([(b"cookie", kept)])).status == 200 and got, "sessions are back"
        )
        assert reply.body in (b"1", b"2") and reply.cookies == []  # a write that timed out may have arrived
