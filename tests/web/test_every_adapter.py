"""What holds for every HTTP adapter over every storage. Names carry the IDs of the security checklist."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

import pytest

from cysession import Manager, MemoryStorage, NotSerializable, Session, SessionGone, Storage
from cysession.cookies import InsecureCookieWarning
from tests.web.browser import Jar
from tests.web.conftest import MakeSite
from tests.web.sites import Answer, Reply, cookie, headers_of, lines_of
from tests.web.storages import DictStorage, DirectStorage, WaitingStorage

STRANGER = "A" * 43  # well-formed, and issued by nobody
JSON_HEADERS = [
    (b"content-type", b"application/json"),
    (b"x-odd", b"\xff \t"),
    (b"x-twice", b"1"),
    (b"x-twice", b"2"),
]


def count(session: Session) -> None:
    session["n"] = session.get("n", 0) + 1


def read(session: Session) -> Answer:
    return Answer(str(session.get("n", "nobody")).encode())


def ignore(session: Session) -> None:
    pass


def log_out(session: Session) -> None:
    session.destroy()


def stored(manager: Manager) -> int:
    return len(manager.storage)  # type: ignore[arg-type]


def begin(make_site: MakeSite) -> str:
    """A stored session with n = 1; its id."""
    return make_site(count).request().session_id


# -- the main job -----------------------------------------------------------------------------------------


def test_a_session_lives_from_request_to_request(make_site: MakeSite) -> None:
    site = make_site(count)
    session_id = site.request().session_id
    for _ in range(3):
        assert site.request(cookie(session_id)).cookies == []
    assert make_site(read).request(cookie(session_id)).body == b"4"


def test_a_list_changed_in_place_is_kept(make_site: MakeSite) -> None:
    def fill(session: Session) -> None:
        session["cart"] = ["tea"]

    def add(session: Session) -> None:
        session["cart"].append("milk")

    def show(session: Session) -> Answer:
        return Answer(",".join(session["cart"]).encode())

    session_id = make_site(fill).request().session_id
    make_site(add).request(cookie(session_id))
    assert make_site(show).request(cookie(session_id)).body == b"tea,milk"


def test_S11_golden_set_cookie_of_a_new_session(make_site: MakeSite) -> None:
    (line,) = make_site(count).request().cookies
    assert re.fullmatch(rb"__Host-id=[A-Za-z0-9_-]{43}; Path=/; Secure; HttpOnly; SameSite=Lax", line)


def test_S13_golden_set_cookie_of_a_destroyed_session(make_site: MakeSite) -> None:
    reply = make_site(log_out).request(cookie(begin(make_site)))
    assert reply.cookies == [
        b"__Host-id=; Path=/; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=0; "
        b"Secure; HttpOnly; SameSite=Lax"
    ]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cookie": "__Secure-shop", "domain": "shop.example", "path": "/", "samesite": "Strict"},
        {"cookie": "shop", "cookie_max_age": 3600, "path": "/"},
        {"samesite": "None", "partitioned": True},
    ],
)
def test_S13_in_a_browser_the_cookie_comes_stays_and_goes(
    make_site: MakeSite, options: dict[str, Any]
) -> None:
    jar = Jar()

    def visit(view: Any) -> Reply:
        reply = make_site(view, **options).request([(b"cookie", jar.header())] if jar.header() else [])
        for line in reply.cookies:
            jar.receive(line)
        return reply

    visit(count)
    visit(count)
    assert visit(read).body == b"2"
    visit(log_out)
    assert jar.header() == b"" and not jar.refused
    assert visit(read).body == b"nobody"


PARTITIONED = {"samesite": "None", "partitioned": True}


def test_S17_golden_set_cookie_of_a_partitioned_session(make_site: MakeSite) -> None:
    (line,) = make_site(count, **PARTITIONED).request().cookies
    assert re.fullmatch(
        rb"__Host-id=[A-Za-z0-9_-]{43}; Path=/; Secure; HttpOnly; SameSite=None; Partitioned", line
    )
    (gone,) = make_site(log_out, **PARTITIONED).request(cookie(begin(make_site))).cookies
    assert gone == (
        b"__Host-id=; Path=/; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=0; "
        b"Secure; HttpOnly; SameSite=None; Partitioned"
    )


def test_S17_S16_the_twin_from_before_it_was_partitioned_does_no_harm(make_site: MakeSite) -> None:
    """A browser holds both and sends both; a log-out reaches the one of this partition."""
    jar = Jar()
    jar.receive(make_site(count).request().cookies[0])
    make_site(log_out).request([(b"cookie", jar.header())])  # its session ended, and the browser was not told
    jar.receive(make_site(count, **PARTITIONED).request([(b"cookie", jar.header())]).cookies[0])
    assert jar.header().count(b"__Host-id=") == 2
    site = make_site(read, **PARTITIONED)
    assert site.request([(b"cookie", jar.header())]).body == b"1"
    jar.receive(make_site(log_out, **PARTITIONED).request([(b"cookie", jar.header())]).cookies[0])
    assert jar.header().count(b"__Host-id=") == 1 and not jar.refused
    assert site.request([(b"cookie", jar.header())]).body == b"nobody"


def test_S19_max_age_is_sent_when_asked_for(make_site: MakeSite) -> None:
    assert b"; Max-Age=3600" in make_site(count, cookie_max_age=3600).request().cookies[0]
    assert b"Max-Age" not in make_site(count).request().cookies[0]


def test_G8_an_emptied_session_is_deleted_with_its_cookie(make_site: MakeSite, manager: Manager) -> None:
    def empty(session: Session) -> None:
        session.clear()

    reply = make_site(empty).request(cookie(begin(make_site)))
    assert b"Max-Age=0" in reply.cookies[0] and stored(manager) == 0


def test_send_cookie_false_takes_ids_and_hands_none_out(make_site: MakeSite) -> None:
    session_id = begin(make_site)
    assert make_site(read, send_cookie=False).request(cookie(session_id)).body == b"1"
    assert make_site(count, send_cookie=False).request().cookies == []


def test_R3_the_session_is_stored_before_the_headers_leave(make_site: MakeSite) -> None:
    """A redirect and the request that follows it at once."""

    def save(session: Session) -> Answer:
        session["n"] = "after"
        return Answer(b"", 302, [(b"location", b"/")])

    reply = make_site(save).request()
    assert reply.status == 302
    assert make_site(read).request(cookie(reply.session_id)).body == b"after"


# -- ids --------------------------------------------------------------------------------------------------


def test_S3_V2_an_id_that_nobody_issued_is_never_adopted(make_site: MakeSite, manager: Manager) -> None:
    reply = make_site(count).request(cookie(STRANGER))
    assert reply.session_id != STRANGER
    assert stored(manager) == 1
    assert manager.new(STRANGER).is_new
    assert make_site(read).request(cookie(reply.session_id)).body == b"1"


def test_S3_a_destroyed_id_is_an_id_that_nobody_issued(make_site: MakeSite) -> None:
    session_id = begin(make_site)
    make_site(log_out).request(cookie(session_id))
    assert make_site(read).request(cookie(session_id)).body == b"nobody"
    assert make_site(count).request(cookie(session_id)).session_id != session_id


def test_S5_V2_log_in_changes_the_id_and_the_old_one_is_dead(make_site: MakeSite) -> None:
    """Fixation: the attacker knows the id from before the log-in, and that is all they have."""

    def log_in(session: Session) -> None:
        session.regenerate_id()
        session["user"] = "anna"

    def who(session: Session) -> Answer:
        return Answer(session.get("user", "nobody").encode())

    planted = begin(make_site)
    own = make_site(log_in).request(cookie(planted)).session_id
    assert own != planted
    assert make_site(who).request(cookie(own)).body == b"anna"
    assert make_site(read).request(cookie(own)).body == b"1"
    assert make_site(who).request(cookie(planted)).body == b"nobody"


def test_S5_with_grace_the_old_id_leads_to_the_new_one(make_site: MakeSite) -> None:
    def renew(session: Session) -> None:
        session.regenerate_id(delete_old=False)

    old = begin(make_site)
    new = make_site(renew).request(cookie(old)).session_id
    late = make_site(read).request(cookie(old))
    assert late.body == b"1" and (late.cookies == [] or late.session_id == new)


BAD_IDS = [
    b"",
    b"../x",
    b"..%2fx",
    b"/etc/passwd",
    b"..\\x",
    b"a/b",
    b"*",
    b"a\0b",
    b"\0",
    b"caf\xc3\xa9",
    b"\xff" * 43,
    "\u0661\u0662\u0663".encode(),
    b"a b",
    b"a.b",
    b"a%61",
    b'"' + b"A" * 43 + b'"',
    b"A" * 129,
    b"A" * 100_000,
    b"a\r\nSet-Cookie: x=y",
    b"a\nb",
    b"a:b",
    b"id=id",
]


@pytest.mark.parametrize("bad", BAD_IDS, ids=lambda bad: repr(bad[:12]))
@pytest.mark.parametrize("storage", [DirectStorage, WaitingStorage])
def test_S4_V3_what_is_no_id_never_reaches_a_storage(
    bad: bytes, storage: type[DictStorage], make_site: MakeSite
) -> None:
    with Manager(storage=storage()) as manager:
        seen = manager.storage.seen  # type: ignore[attr-defined]
        for view in (read, ignore, log_out):
            reply = make_site(view, manager=manager).request([(b"cookie", b"__Host-id=" + bad)])
            assert reply.status == 200 and seen == []
        fresh = make_site(count, manager=manager).request([(b"cookie", b"__Host-id=" + bad)]).session_id
        assert set(seen) == {fresh} and len(fresh) == 43


@pytest.mark.parametrize(
    "junk",
    [
        b"\xff\xfe\x00=\x80;;;===;",
        b'x={"k":1}; a b=c; $bad',
        b";" * 1_000_000,
        b"__Host-id" * 111_111,
        b"\\" * 1_000_000,
        b"; ".join(b"c%d=v" % n for n in range(100_000)),
        b"=__Host-id=" + STRANGER.encode(),
        b"__Host-id",
    ],
    ids=lambda junk: repr(junk[:12]),
)
def test_V9_malformed_and_huge_cookie_headers_change_nothing(make_site: MakeSite, junk: bytes) -> None:
    session_id = begin(make_site)
    assert make_site(read).request([(b"cookie", junk)]).body == b"nobody"
    own = b"__Host-id=" + session_id.encode()
    for header in (junk + b"; " + own, own + b"; " + junk):
        assert make_site(read).request([(b"cookie", header)]).body == b"1"


@pytest.mark.parametrize(
    ("header", "ours"),
    [
        (b"__Host-id=%b", True),
        (b"a=1;__Host-id=%b;b=2", True),
        (b"a=1; \t__Host-id \t= \t%b \t; b=2", True),
        (b"__Host-id=%b ;", True),
        (b"x__Host-id=%b", False),
        (b"=__Host-id=%b", False),  # S18, CVE-2023-23934
        (b"a=1; =__Host-id=%b", False),
        (b"a=1 __Host-id=%b", False),
        (b"a=; b; c__Host-id=%b", False),
        (b"__Host-idx=%b", False),
        (b"__host-id=%b", False),
        (b"__Host-id==%b", False),
        (b"__Host-id=%b x", False),
        (b'__Host-id="%b"', False),
        (b"__Host-id: %b", False),
    ],
)
def test_V9_S18_only_the_exact_name_carries_a_live_id(make_site: MakeSite, header: bytes, ours: bool) -> None:
    session_id = begin(make_site).encode()
    reply = make_site(read).request([(b"cookie", header % session_id)])
    assert reply.body == (b"1" if ours else b"nobody")


# -- several cookies (S16) --------------------------------------------------------------------------------


def test_S16_of_twins_the_live_one_counts_in_both_orders(make_site: MakeSite) -> None:
    session_id = begin(make_site).encode()
    dead = STRANGER.encode()
    for first, second in (
        (session_id, dead),
        (dead, session_id),
        (session_id, session_id),
        (b"../x", session_id),
    ):
        reply = make_site(read).request([(b"cookie", b"__Host-id=%b; __Host-id=%b" % (first, second))])
        assert reply.body == b"1" and reply.cookies == []


def test_S16_of_two_live_sessions_none_is_used_in_both_orders(
    make_site: MakeSite, caplog: pytest.LogCaptureFixture
) -> None:
    mine, tossed = begin(make_site).encode(), begin(make_site).encode()
    for first, second in ((mine, tossed), (tossed, mine)):
        reply = make_site(read).request([(b"cookie", b"__Host-id=%b; __Host-id=%b" % (first, second))])
        assert reply.body == b"nobody" and reply.cookies == []
    assert "several live sessions" in caplog.text


def test_S16_crumbs_of_http2_are_one_header(make_site: MakeSite) -> None:
    session_id = begin(make_site).encode()
    crumbs = [(b"cookie", b"a=1"), (b"cookie", b"__Host-id=" + session_id), (b"cookie", b"b=2")]
    assert make_site(read).request(crumbs).body == b"1"


def test_S16_four_candidates_at_most_are_looked_up(make_site: MakeSite) -> None:
    with Manager(storage=DirectStorage()) as manager:
        header = b"; ".join(b"__Host-id=x%d" % n for n in range(1000))
        make_site(read, manager=manager).request([(b"cookie", header)])
        assert set(manager.storage.seen) == {"x0", "x1", "x2", "x3"}  # type: ignore[attr-defined]


# -- caches (S15, V7) -------------------------------------------------------------------------------------

LOOKS: dict[str, Callable[[Session], object]] = {
    "get": lambda s: s.get("n"),
    "getitem": lambda s: s["n"],
    "in": lambda s: "n" in s,  # CVE-2026-27205
    "len": len,  # CVE-2026-27205
    "bool": bool,
    "iter": list,
    "keys": lambda s: s.keys(),
    "values": lambda s: s.values(),
    "items": lambda s: s.items(),
    "get_map": lambda s: s.get_map(),
    "size": lambda s: s.size(),
    "contains": lambda s: s.contains("n"),
    "eq": lambda s: s == {},
    "id": lambda s: s.sid if hasattr(s, "sid") else s.id,
    "is_new": lambda s: s.is_new,
    "created_at": lambda s: s.created_at,
    "expires_at": lambda s: s.expires_at,
    "ttl": lambda s: s.ttl,
    "set": lambda s: s.set("n", 1),
    "setitem": lambda s: s.__setitem__("n", 2),
    "set_map": lambda s: s.set_map({"n": 3}),
    "update": lambda s: s.update(n=4),
    "setdefault": lambda s: s.setdefault("n", 5),
    "pop": lambda s: s.pop("n"),
    "popitem": lambda s: s.popitem(),
    "del": lambda s: s.__delitem__("n"),
    "remove": lambda s: s.remove("n"),
    "remove_all": lambda s: s.remove_all(),
    "clear": lambda s: s.clear(),
    "destroy": lambda s: s.destroy(),
    "regenerate_id": lambda s: s.regenerate_id(),
}


@pytest.mark.parametrize("look", LOOKS)
def test_S15_V7_every_look_at_the_session_varies_the_response(make_site: MakeSite, look: str) -> None:
    """Replay of CVE-2023-30861, CVE-2026-27205 and CVE-2026-35192, for each method."""

    def view(session: Session) -> None:
        LOOKS[look](session)

    reply = make_site(view).request(cookie(begin(make_site)))
    assert reply.status == 200
    assert reply.all(b"vary") == [b"Cookie"]
    assert bool(reply.cookies) == bool(reply.all(b"cache-control"))


def test_S15_V16_an_untouched_session_leaves_the_response_as_it_was(make_site: MakeSite) -> None:
    def view(session: Session) -> Answer:
        return Answer(headers=JSON_HEADERS)

    site = make_site(view)
    for headers in ([], cookie(begin(make_site)), cookie(STRANGER), cookie("../x")):
        assert site.request(headers).headers == headers_of(site, JSON_HEADERS)


def test_V16_a_touched_session_only_adds(make_site: MakeSite) -> None:
    def view(session: Session) -> Answer:
        count(session)
        return Answer(headers=JSON_HEADERS)

    site = make_site(view)
    untouched = headers_of(site, JSON_HEADERS)
    assert site.request().headers[: len(untouched)] == untouched


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], [b"Cookie"]),
        ([b"Accept-Encoding"], [b"Accept-Encoding, Cookie"]),
        ([b"accept, COOKIE"], [b"accept, COOKIE"]),
        ([b"*"], [b"*"]),
        ([b"Accept", b"Origin"], [b"Accept", b"Origin, Cookie"]),
        ([b"Cookie", b"Origin"], [b"Cookie", b"Origin"]),
        ([b""], [b"Cookie"]),
        ([b"X-Cookie"], [b"X-Cookie, Cookie"]),
    ],
)
def test_S15_vary_joins_the_line_of_the_app(
    make_site: MakeSite, lines: list[bytes], expected: list[bytes]
) -> None:
    def view(session: Session) -> Answer:
        session.get("n")
        return Answer(headers=[(b"Vary", line) for line in lines])

    site = make_site(view)
    assert site.request().all(b"vary") == lines_of(site, *expected)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], [b"no-store"]),
        ([b"public, max-age=3600"], [b"no-store"]),
        ([b"private"], [b"no-store"]),
        ([b"no-store, must-revalidate"], [b"no-store, must-revalidate"]),
        ([b"private", b"No-Store"], [b"private", b"No-Store"]),
    ],
)
def test_S15_what_carries_an_id_is_stored_by_no_cache(
    make_site: MakeSite, lines: list[bytes], expected: list[bytes]
) -> None:
    def view(session: Session) -> Answer:
        count(session)
        return Answer(headers=[(b"Cache-Control", line) for line in lines])

    site = make_site(view)
    assert site.request().all(b"cache-control") == lines_of(site, *expected)
    assert site.request(cookie(begin(make_site))).all(b"cache-control") == lines_of(site, *lines)


class CachingProxy:
    """A shared cache that keeps all it may (RFC 9111), by what Vary names; Set-Cookie does not stop it."""

    def __init__(self, send: Callable[[list[tuple[bytes, bytes]]], Reply]) -> None:
        self.send = send
        self.kept: list[tuple[dict[bytes, bytes], Reply]] = []

    def request(self, headers: list[tuple[bytes, bytes]]) -> Reply:
        asked = dict(headers)
        for varied, reply in self.kept:
            if all(asked.get(name, b"") == value for name, value in varied.items()):
                return reply
        reply = self.send(headers)
        if b"no-store" not in b",".join(reply.all(b"cache-control")):
            names = [
                name.strip().lower() for name in b",".join(reply.all(b"vary")).split(b",") if name.strip()
            ]
            self.kept.append(({name: asked.get(name, b"") for name in names}, reply))
        return reply


@pytest.mark.parametrize("look", ["get", "in", "len", "id"])
def test_S15_V7_behind_a_caching_proxy_nobody_gets_anothers_page_or_cookie(
    make_site: MakeSite, look: str
) -> None:
    def page(session: Session) -> Answer:
        LOOKS[look](session)
        return Answer(
            str(session.get("n", "nobody")).encode(), headers=[(b"cache-control", b"public, max-age=60")]
        )

    def write(session: Session) -> Answer:
        count(session)
        return Answer(headers=[(b"cache-control", b"public, max-age=60")])

    for view in (page, write):
        proxy = CachingProxy(make_site(view).request)
        anna = cookie(begin(make_site))
        replies = [proxy.request(headers) for headers in (anna, [], cookie(STRANGER), [], anna)]
        if view is page:
            assert [reply.body for reply in replies] == [b"1", b"nobody", b"nobody", b"nobody", b"1"]
        handed_out = [
            reply.session_id for reply in replies if b"=;" not in b"".join(reply.cookies) and reply.cookies
        ]
        assert len(handed_out) == len(set(handed_out))


def test_V7_a_slow_reader_does_not_overwrite_the_cookie_of_a_log_in(make_site: MakeSite) -> None:
    """Starlette #2019: the reader began before the log-in and ends after it."""
    old = begin(make_site)
    jar = Jar()

    def log_in(session: Session) -> None:
        session.regenerate_id()

    def slow(session: Session) -> None:
        session.get("n")
        jar.receive(make_site(log_in).request(cookie(old)).cookies[0])

    for line in make_site(slow).request(cookie(old)).cookies:
        jar.receive(line)
    assert make_site(read).request([(b"cookie", jar.header())]).body == b"1"


def test_V7_a_late_reader_does_not_delete_the_cookie_of_a_log_in(make_site: MakeSite) -> None:
    """A request that left the browser with the old id and is handled after the log-in: single-page apps."""
    old = begin(make_site)
    jar = Jar()

    def log_in(session: Session) -> None:
        session.regenerate_id()

    for view in (log_in, read):
        for line in make_site(view).request(cookie(old)).cookies:
            jar.receive(line)
    assert make_site(read).request([(b"cookie", jar.header())]).body == b"1"


def test_V7_S12_one_set_cookie_a_name_and_the_others_pass(make_site: MakeSite) -> None:
    def view(session: Session) -> Answer:
        count(session)
        own = [b"__Host-id=mine; Path=/", b"theme=dark", b"__Host-id2=x", b" __Host-id =mine"]
        return Answer(headers=[(b"Set-Cookie", line) for line in own])

    cookies = make_site(view).request().cookies
    assert cookies[:2] == [b"theme=dark", b"__Host-id2=x"] and len(cookies) == 3
    assert len(cookies[2].partition(b"=")[2].partition(b";")[0]) == 43


# -- nothing is stored for noise (V8) ---------------------------------------------------------------------


def test_V8_a_thousand_anonymous_requests_store_nothing(make_site: MakeSite, manager: Manager) -> None:
    site, out = make_site(read), make_site(log_out)
    for number in range(250):
        unknown = cookie(f"{number:043d}")
        assert site.request().cookies == out.request().cookies == []
        assert site.request(unknown).body == b"nobody"
        assert len(out.request(unknown).cookies) <= 1
    assert stored(manager) == 0


def test_V8_a_new_session_whose_data_went_again_is_not_stored(make_site: MakeSite, manager: Manager) -> None:
    def view(session: Session) -> None:
        session["a"] = 1
        del session["a"]

    assert make_site(view).request().cookies == [] and stored(manager) == 0


# -- failures ---------------------------------------------------------------------------------------------


def test_R4_an_exception_in_the_app_drops_the_changes(make_site: MakeSite) -> None:
    def fail(session: Session) -> None:
        session["n"] = 99
        raise LookupError("a bug of the app")

    session_id = begin(make_site)
    with pytest.raises(LookupError):
        make_site(fail).request(cookie(session_id))
    assert make_site(read).request(cookie(session_id)).body == b"1"


def test_R4_an_exception_does_not_undo_a_log_out(make_site: MakeSite, manager: Manager) -> None:
    def fail(session: Session) -> None:
        session.destroy()
        raise LookupError("a bug of the app")

    session_id = begin(make_site)
    with pytest.raises(LookupError):
        make_site(fail).request(cookie(session_id))
    assert make_site(read).request(cookie(session_id)).body == b"nobody" and stored(manager) == 0


@pytest.mark.parametrize("status", [500, 502, 503])
def test_R4_a_server_error_commits_nothing(make_site: MakeSite, manager: Manager, status: int) -> None:
    def fail(session: Session) -> Answer:
        session["n"] = 99
        return Answer(b"sorry", status)

    session_id = begin(make_site)
    reply = make_site(fail).request(cookie(session_id))
    assert (reply.status, reply.body, reply.cookies) == (status, b"sorry", [])
    assert make_site(read).request(cookie(session_id)).body == b"1"
    assert make_site(fail).request().cookies == [] and stored(manager) == 1


def test_R4_a_server_error_keeps_log_out_and_rotation(make_site: MakeSite) -> None:
    def out(session: Session) -> Answer:
        session.destroy()
        return Answer(status=500)

    def renew(session: Session) -> Answer:
        session.regenerate_id()
        return Answer(status=500)

    assert b"Max-Age=0" in make_site(out).request(cookie(begin(make_site))).cookies[0]
    assert (
        make_site(read).request(cookie(make_site(renew).request(cookie(begin(make_site))).session_id)).body
        == b"1"
    )


@pytest.mark.parametrize("status", [200, 404, 422])
def test_an_answer_below_500_commits(make_site: MakeSite, status: int) -> None:
    def view(session: Session) -> Answer:
        count(session)
        return Answer(status=status)

    assert make_site(read).request(cookie(make_site(view).request().session_id)).body == b"1"


@pytest.mark.parametrize("storage", [DirectStorage, DictStorage, WaitingStorage])
@pytest.mark.parametrize("twins", [False, True])
def test_R20_a_failed_read_is_503_and_no_logout(
    storage: type[DictStorage], twins: bool, make_site: MakeSite
) -> None:
    with Manager(storage=storage()) as manager:
        session_id = make_site(count, manager=manager).request().session_id
        headers = cookie(session_id)
        if twins:
            headers = [(b"cookie", f"__Host-id={session_id}; __Host-id={STRANGER}".encode())]
        manager.storage.broken = True  # type: ignore[attr-defined]
        reply = make_site(read, manager=manager).request(headers)
        assert reply.status == 503 and reply.cookies == []
        assert reply.all(b"retry-after") == [b"5"] and reply.all(b"cache-control") == [b"no-store"]
        assert int(reply.all(b"content-length")[0]) == len(reply.body) and b"not logged out" in reply.body
        manager.storage.broken = False  # type: ignore[attr-defined]
        assert make_site(read, manager=manager).request(headers).body == b"1"


@pytest.mark.parametrize("storage", [DirectStorage, DictStorage, WaitingStorage])
def test_R3_R20_a_failed_commit_is_503_and_not_200(storage: type[DictStorage], make_site: MakeSite) -> None:
    with Manager(storage=storage()) as manager:

        def write(session: Session) -> Answer:
            count(session)
            manager.storage.broken = True  # type: ignore[attr-defined]
            return Answer(b"stored, says the app", 201)

        session_id = make_site(count, manager=manager).request().session_id
        for headers in ([], cookie(session_id)):
            reply = make_site(write, manager=manager).request(headers)
            assert (reply.status, reply.cookies) == (503, [])
            assert b"stored" not in reply.body.partition(b"cannot be read or stored")[0]
            manager.storage.broken = False  # type: ignore[attr-defined]
        assert make_site(read, manager=manager).request(cookie(session_id)).body == b"1"
        assert stored(manager) == 1


def test_R20_S20_why_it_was_503_stands_in_the_log(
    make_site: MakeSite, caplog: pytest.LogCaptureFixture
) -> None:
    with Manager(storage=DirectStorage()) as manager:
        manager.storage.broken = True  # type: ignore[attr-defined]
        make_site(read, manager=manager).request(cookie(STRANGER))
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "answered 503" in record.message and "the storage is down" in caplog.text
    assert STRANGER not in caplog.text


def test_R20_an_app_that_never_looks_does_not_notice(make_site: MakeSite) -> None:
    with Manager(storage=DirectStorage()) as manager:
        manager.storage.broken = True  # type: ignore[attr-defined]
        assert make_site(ignore, manager=manager).request(cookie(STRANGER)).status == 200


def test_V5_R1_a_write_to_a_session_that_was_logged_out_meanwhile_is_refused(
    make_site: MakeSite, manager: Manager
) -> None:
    session_id = begin(make_site)

    def write(session: Session) -> None:
        session["n"] = 2
        manager.new(session_id).destroy()

    reply = make_site(write).request(cookie(session_id))
    assert reply.status == 409 and b"ended" in reply.body
    assert reply.cookies == []  # by now the browser may hold a newer one
    assert manager.new(session_id).is_new and stored(manager) == 0


def test_V5_the_app_can_answer_for_a_vanished_session_itself(make_site: MakeSite, manager: Manager) -> None:
    session_id = begin(make_site)

    def write(session: Session) -> Answer:
        session["n"] = 2
        manager.new(session_id).destroy()
        try:
            session.save()
        except SessionGone:
            session.discard()
            return Answer(b"log in again", 401)
        raise AssertionError

    assert make_site(write).request(cookie(session_id)).status == 401


def test_Z3_an_unsupported_value_is_an_error_of_the_app_and_keeps_the_old_record(make_site: MakeSite) -> None:
    def write(session: Session) -> None:
        session["n"] = [object()]

    session_id = begin(make_site)
    with pytest.raises(NotSerializable):
        make_site(write).request(cookie(session_id))
    assert make_site(read).request(cookie(session_id)).body == b"1"


# -- the header transport (S10) ---------------------------------------------------------------------------

SID = b"x-session-id"


def test_S10_the_header_carries_the_id_both_ways(make_site: MakeSite) -> None:
    options = {"header": "X-Session-Id"}
    reply = make_site(count, **options).request()
    (session_id,) = reply.all(SID)
    assert len(session_id) == 43 and reply.cookies == []
    assert reply.all(b"vary") == [b"X-Session-Id"] and reply.all(b"cache-control") == [b"no-store"]
    again = make_site(read, **options).request([(SID, session_id)])
    assert again.body == b"1" and again.all(SID) == []
    gone = make_site(log_out, **options).request([(SID, session_id)])
    assert gone.all(SID) == [b""] and gone.cookies == []


def test_S10_cookie_and_header_are_never_both_accepted(make_site: MakeSite) -> None:
    session_id = begin(make_site)
    assert make_site(read, header="X-Session-Id").request(cookie(session_id)).body == b"nobody"
    assert make_site(read).request([(SID, session_id.encode())]).body == b"nobody"
    assert (
        make_site(read).request([(b"x", session_id.encode()), (b"__host-id", session_id.encode())]).body
        == b"nobody"
    )


@pytest.mark.parametrize(
    "value", [b"", b" ", b";", b"x-session-id", b"x-session-id=", b"\xff", b"a" * 100_000]
)
def test_S10_odd_header_values_are_no_ids(make_site: MakeSite, value: bytes) -> None:
    site = make_site(read, header="X-Session-Id")
    for odd in (value, b"x" + value + begin(make_site).encode(), SID + begin(make_site).encode()):
        assert site.request([(SID, odd)]).body == b"nobody"


def test_S10_S16_of_two_headers_the_live_id_counts(make_site: MakeSite) -> None:
    session_id = begin(make_site).encode()
    for values in ([session_id, STRANGER.encode()], [STRANGER.encode(), session_id]):
        for headers in ([(SID, value) for value in values], [(SID, b", ".join(values))]):
            assert make_site(read, header="X-Session-Id").request(headers).body == b"1"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"header": "X-Session-Id", "cookie": "id"}, "header= replaces the cookie"),
        ({"header": "X-Session-Id", "insecure": True}, "header= replaces the cookie"),
        ({"header": "X-Session-Id", "samesite": "Strict"}, "header= replaces the cookie"),
        ({"header": ""}, "cannot carry ids"),
        ({"header": "X Session"}, "cannot carry ids"),
        ({"header": "X-Id\r\n"}, "cannot carry ids"),
        ({"header": "Cookie"}, "cannot carry ids"),
        ({"header": "Set-Cookie"}, "cannot carry ids"),
        ({"header": "Content-Type"}, "cannot carry ids"),
        ({"header": "VARY"}, "cannot carry ids"),
        ({"cookie": "a b"}, "not a token"),
        ({"domain": "shop.example"}, "with a Domain"),
        ({"path": "/shop"}, "Path other than /"),
        ({"samesite": "no"}, "samesite"),
        ({"cookie_max_age": -1}, "max-age"),
        ({"samesite": "None", "insecure": True}, "SameSite=None without Secure"),
        ({"partitioned": True, "insecure": True}, "Partitioned without Secure"),
    ],
)
@pytest.mark.filterwarnings("ignore::cysession.cookies.InsecureCookieWarning")
def test_S9_S10_S11_wrong_combinations_raise_at_start(options: dict[str, Any], complaint: str) -> None:
    from tests.web.sites import ADAPTERS

    for adapter in ADAPTERS.values():
        with pytest.raises(ValueError, match=complaint):
            adapter(ignore, Manager(storage=MemoryStorage()), options)


def test_S14_a_max_age_beyond_what_browsers_take_is_refused_or_cut() -> None:
    """Refused as an option of ours; Django's SESSION_COOKIE_AGE has always been allowed, and browsers cut it anyway."""
    from tests.web.sites import ADAPTERS

    for name, adapter in ADAPTERS.items():
        manager, options = Manager(storage=MemoryStorage()), {"cookie_max_age": 34_560_001}
        if name.startswith("django"):
            assert b"; Max-Age=34560000;" in adapter(count, manager, options).request().cookies[0]
        else:
            with pytest.raises(ValueError, match="max-age"):
                adapter(count, manager, options)


@pytest.mark.parametrize(
    ("name", "plain"), [(None, b"id"), ("__Host-shop", b"shop"), ("__SECURE-x", b"x"), ("y", b"y")]
)
def test_S9_insecure_renames_the_cookie_and_warns_once(
    make_site: MakeSite, name: str | None, plain: bytes
) -> None:
    with pytest.warns(InsecureCookieWarning, match="development") as caught:
        site = make_site(count, insecure=True, cookie=name)
    assert len(caught) == 1
    (line,) = site.request().cookies
    assert line.startswith(plain + b"=") and b"Secure" not in line and b"HttpOnly" in line
    jar = Jar(https=False)
    jar.receive(line)
    assert not jar.refused and site.request([(b"cookie", jar.header())]).cookies == []


# -- several managers -------------------------------------------------------------------------------------


def test_V13_two_sites_with_storages_of_their_own_share_nothing(make_site: MakeSite) -> None:
    other: Storage = MemoryStorage()
    with Manager(storage=other) as manager:
        session_id = begin(make_site)
        assert make_site(read, manager=manager).request(cookie(session_id)).body == b"nobody"
