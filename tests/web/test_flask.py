"""What only Flask has: its session API, its settings, flashes, templates, error handlers, streams, its test client."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import (
    Blueprint,
    Flask,
    Response,
    flash,
    get_flashed_messages,
    render_template_string,
    send_file,
    session,
    stream_with_context,
)
from flask.sessions import SessionMixin
from markupsafe import Markup

from cysession import (
    FileStorage,
    Manager,
    MemoryStorage,
    NotSerializable,
    SessionClosed,
    SessionGone,
    StorageUnavailable,
)
from cysession.cookies import InsecureCookieWarning
from cysession.flask import CySession, FlaskSession
from cysession.testing import FakeClock
from tests.web.browser import Jar
from tests.web.sites import Reply, call_wsgi
from tests.web.storages import DictStorage, DirectStorage

DAY = 86400


class Site:
    """A Flask app whose views are given by path, and one browser."""

    def __init__(
        self, storage: Any = None, *, clock: FakeClock | None = None, ttl: int = 3600, **options: Any
    ) -> None:
        self.manager = Manager(ttl, storage or MemoryStorage(), clock=clock)
        self.clock = clock
        self.views: dict[str, Callable[[], Any]] = {}
        self.app = Flask("shop")
        self.app.add_url_rule("/", "view", self._answer)
        self.app.add_url_rule("/<path:rest>", "views", self._answer)
        self.jar = Jar()
        self.options = options
        self.installed = False

    def _answer(self, rest: str = "") -> Any:
        answer = self.views["/" + rest]()
        return "ok" if answer is None else answer

    def install(self) -> None:
        CySession(self.app, self.manager, **self.options)
        self.installed = True

    def run(self, function: Callable[[], Any]) -> Reply:
        """The answer to a request of the browser whose view is this function, which may return nothing."""
        self.views["/"] = function
        if not self.installed:
            self.install()
        if self.clock is not None:
            self.jar.now = int(self.clock())
        carried = self.jar.header()
        reply = call_wsgi(self.app, [(b"cookie", carried)] if carried else [])
        for line in reply.cookies:
            self.jar.receive(line)
        return reply

    def stored(self) -> int:
        return len(self.manager.storage)  # type: ignore[arg-type]


@pytest.fixture
def site() -> Site:
    return Site()


# -- the session API ----------------------------------------------------------------------------------------


def test_it_is_what_flask_calls_a_session(site: Site) -> None:
    def view() -> None:
        real = session._get_current_object()  # type: ignore[attr-defined]
        assert isinstance(real, SessionMixin) and isinstance(real, FlaskSession)
        assert not site.app.session_interface.is_null_session(real)
        assert (session.new, session.permanent, session.modified) == (True, False, False)
        session["a"] = 1
        assert session.modified and session == {"a": 1} and len(session) == 1

    assert site.run(view).status == 200


def test_all_of_a_dict_works(site: Site) -> None:
    def fill() -> None:
        session.update(a=1, b=2)
        session.setdefault("c", [])
        session["d"] = {"e": 5}

    def look() -> None:
        data = {"a": 1, "b": 2, "c": [], "d": {"e": 5}}
        assert dict(session) == session.copy() == data and session == data  # type: ignore[attr-defined]
        assert list(session) == list(session.keys()) == list("abcd")
        assert list(session.values()) == [1, 2, [], {"e": 5}] and ("a", 1) in session.items()
        assert "a" in session and "x" not in session and session.get("x", 7) == 7
        assert session.pop("a") == 1 and session.pop("a", None) is None
        with pytest.raises(KeyError):
            session.pop("a")
        with pytest.raises(KeyError):
            session["a"]
        del session["b"]
        real = session._get_current_object()  # type: ignore[attr-defined]
        real |= {"f": 6}
        session.setdefault("c", None).append(3)

    def again() -> None:
        assert session == {"c": [3], "d": {"e": 5}, "f": 6}
        assert session.popitem()[0] in {"c", "d", "f"} and len(session) == 2
        session.clear()
        assert not session

    for view in (fill, look, again):
        assert site.run(view).status == 200
    assert site.stored() == 0


def test_nested_changes_need_no_modified(site: Site) -> None:
    site.run(lambda: session.update(cart={"tea": [1]}))
    site.run(lambda: session["cart"]["tea"].append(2))
    assert site.run(lambda: str(session["cart"])).body == b"{'tea': [1, 2]}"


def test_modified_false_stores_nothing_of_the_request(site: Site) -> None:
    site.run(lambda: session.update(n=1, cart=[]))

    def view() -> str:
        session.modified = True
        session["n"] = 2
        session["cart"].append("tea")
        session.modified = False
        return f"{session.modified} {session['n']}"

    assert site.run(view).body == b"False 2"
    assert site.run(lambda: f"{session['n']} {session['cart']}").body == b"1 []"


@pytest.mark.parametrize(
    "change",
    [
        lambda: session.update(m=3),
        lambda: session.pop("old"),
        lambda: session.__delitem__("old"),
        lambda: session.setdefault("m", 3),
        lambda: session.set("m", 3),
        lambda: session.remove("old"),
        lambda: session.bind("anna"),
        lambda: setattr(session, "permanent", True),
        lambda: setattr(session, "modified", True),
    ],
)
def test_after_modified_false_another_change_stores_all(site: Site, change: Callable[[], object]) -> None:
    """As Flask's own session does, whose changes are stored together or not at all."""
    site.run(lambda: session.update(n=1, old=1))

    def view() -> None:
        session["n"] = 2
        session.modified = False
        change()
        assert session.modified

    site.run(view)
    assert site.run(lambda: str(session["n"])).body == b"2"


def test_modified_can_be_asked_when_the_request_is_over(site: Site) -> None:
    site.install()
    with site.app.test_client() as client:
        site.views["/"] = lambda: str(session.get("n"))
        client.get("/", base_url="https://localhost")
        assert session.accessed and not session.modified
        site.views["/"] = lambda: str(session.setdefault("n", 1))
        client.get("/", base_url="https://localhost")
        assert session.modified and session == {"n": 1}


def test_a_session_of_its_own_has_its_methods_too(site: Site) -> None:
    def log_in() -> str:
        session["user"] = "anna"
        session.bind("anna")
        session.ttl = 600
        assert session.ttl == 600
        session.regenerate_id()
        return session.sid

    session_id = site.run(log_in).body.decode()
    assert site.manager.new(session_id).user == "anna"
    assert site.run(lambda: str(session.expires_at is not None)).body == b"True"
    site.run(lambda: session.destroy())
    assert site.stored() == 0 and site.jar.header() == b""


def test_flask_sessions_way_to_regenerate(site: Site) -> None:
    old = site.run(lambda: session.update(n=1)).session_id
    new = site.run(lambda: site.app.session_interface.regenerate(session)).session_id  # type: ignore[attr-defined]
    assert old != new and site.manager.new(old).is_new and site.manager.new(new)["n"] == 1


def test_V15_a_template_that_names_a_key_never_prints_the_id(site: Site) -> None:
    site.run(lambda: session.update(user="anna", name="Anna"))
    page = "{{ session.user }}|{{ session.name }}|{{ session['name'] }}|{{ session.id }}|{{ session.handle }}"
    assert site.run(lambda: render_template_string(page)).body == b"anna|Anna|Anna||"

    def view() -> None:
        with pytest.raises(AttributeError, match=r"session\.core\.id"):
            session.id  # noqa: B018

    assert site.run(view).status == 200


def test_a_copy_is_no_endless_search() -> None:
    half_made = FlaskSession.__new__(FlaskSession)
    for name in ("core", "get_map", "__setstate__"):
        with pytest.raises(AttributeError):
            getattr(half_made, name)


def test_a_template_that_does_not_look_varies_nothing(site: Site) -> None:
    reply = site.run(lambda: render_template_string("hello"))
    assert reply.all(b"vary") == []


def test_S15_any_touch_of_the_proxy_varies_the_response_as_flask_has_it(site: Site) -> None:
    assert site.run(lambda: str(session.accessed)).all(b"vary") == [b"Cookie"]


# -- flashes ------------------------------------------------------------------------------------------------


def test_flashed_messages_are_there_once(site: Site) -> None:
    def fill() -> None:
        flash("saved")
        flash("careful", "warning")
        flash(Markup("<b>bold</b>"))

    site.run(fill)
    page = "{% for m in get_flashed_messages() %}{{ m }};{% endfor %}"
    assert site.run(lambda: render_template_string(page)).body == b"saved;careful;<b>bold</b>;"
    assert site.run(lambda: render_template_string(page)).body == b"" and site.stored() == 0


def test_flashed_messages_with_categories_and_in_the_same_request(site: Site) -> None:
    def view() -> str:
        flash(Markup("<i>"), "error")
        flash("<i>", "error")
        return render_template_string(
            "{% for c, m in get_flashed_messages(with_categories=true) %}{{ c }}={{ m }};{% endfor %}"
        )

    assert site.run(view).body == b"error=<i>;error=&lt;i&gt;;"


def test_a_flash_added_to_waiting_ones(site: Site) -> None:
    site.run(lambda: flash(Markup("<b>")))
    site.run(lambda: flash("two"))
    site.run(lambda: session["_flashes"] and None)
    assert site.run(lambda: "|".join(map(str, get_flashed_messages()))).body == b"<b>|two"


# -- permanent ----------------------------------------------------------------------------------------------


def lasting(**config: Any) -> Site:
    site = Site(clock=FakeClock())
    site.app.config.update(PERMANENT_SESSION_LIFETIME=timedelta(days=10), **config)
    return site


def stay() -> None:
    session.permanent = True
    session["n"] = 1


def read() -> str:
    return str(session.get("n", "nobody"))


def test_permanent_gives_cookie_and_session_the_lifetime() -> None:
    site = lasting()
    line = site.run(stay).cookies[0]
    assert re.fullmatch(
        rb"__Host-id=[\w-]{43}\.\d+; Path=/; Max-Age=864000; Secure; HttpOnly; SameSite=Lax", line
    )
    assert site.clock is not None
    site.clock.advance(9 * DAY)  # the manager's ttl is an hour
    assert site.run(lambda: str(session.permanent)).body == b"True"
    site.clock.advance(10 * DAY)
    assert site.run(read).body == b"nobody"


def test_a_session_that_is_not_permanent_has_neither() -> None:
    site = lasting()
    assert b"Max-Age" not in site.run(lambda: session.update(n=1)).cookies[0]
    assert site.clock is not None
    site.clock.advance(3601)
    assert site.run(read).body == b"nobody"


def test_permanent_may_be_taken_back() -> None:
    site = lasting()
    site.run(stay)

    def leave() -> None:
        session.permanent = False
        assert not session.permanent

    site.run(leave)
    assert site.run(lambda: f"{session.permanent} {session.ttl}").body == b"False 3600.0"


def test_G10_the_cookie_of_a_permanent_session_slides() -> None:
    site = lasting()
    site.run(stay)
    assert site.run(read).cookies == []  # a tenth of its life must pass
    assert site.clock is not None
    for _ in range(5):
        site.clock.advance(6 * DAY)
        reply = site.run(read)
        assert reply.body == b"1" and b"Max-Age=864000" in reply.cookies[0]
        assert reply.all(b"cache-control") == [b"no-store"]


def test_without_refresh_each_request_only_changes_send_it_again() -> None:
    site = lasting(SESSION_REFRESH_EACH_REQUEST=False)
    site.run(stay)
    assert site.clock is not None
    site.clock.advance(6 * DAY)
    assert site.run(read).cookies == []
    assert len(site.run(lambda: session.update(n=2)).cookies) == 1


def test_V8_permanent_alone_stores_nothing() -> None:
    """`session.permanent = True` before each request is a habit; it must not make a record for every visitor."""
    site = lasting()

    @site.app.before_request
    def _always() -> None:
        session.permanent = True

    for _ in range(3):
        assert site.run(lambda: str(session.permanent)).cookies == []
    assert site.stored() == 0
    assert b"Max-Age=864000" in site.run(lambda: session.update(n=1)).cookies[0]
    commits = site.manager.stats()["created"]
    site.run(lambda: session.pop("n") and None)
    assert site.stored() == 0 and commits == 1


def test_permanent_before_each_request_writes_nothing_to_a_session_that_is() -> None:
    storage = DictStorage()
    site = Site(storage, clock=FakeClock())

    @site.app.before_request
    def _always() -> None:
        session.permanent = True

    site.run(lambda: session.update(n=1))
    (record,) = storage.records.values()
    site.run(read)
    assert list(storage.records.values()) == [record]


def test_a_lifetime_beyond_what_browsers_take_is_cut() -> None:
    site = lasting()
    site.app.config["PERMANENT_SESSION_LIFETIME"] = timedelta(days=4000)
    assert b"Max-Age=34560000" in site.run(stay).cookies[0]


def test_cookie_max_age_given_to_the_extension_holds_for_all() -> None:
    site = Site(clock=FakeClock(), cookie_max_age=7200)
    assert b"Max-Age=7200" in site.run(stay).cookies[0]


# -- settings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, "__Host-id=ID; Path=/; Secure; HttpOnly; SameSite=Lax"),
        ({"SESSION_COOKIE_NAME": "shop"}, "shop=ID; Path=/; Secure; HttpOnly; SameSite=Lax"),
        ({"SESSION_COOKIE_SAMESITE": "Strict"}, "__Host-id=ID; Path=/; Secure; HttpOnly; SameSite=Strict"),
        ({"SESSION_COOKIE_SAMESITE": "None"}, "__Host-id=ID; Path=/; Secure; HttpOnly; SameSite=None"),
        (
            {"SESSION_COOKIE_DOMAIN": "shop.example"},
            "__Secure-id=ID; Domain=shop.example; Path=/; Secure; HttpOnly; SameSite=Lax",
        ),
        ({"SESSION_COOKIE_PATH": "/app"}, "__Secure-id=ID; Path=/app; Secure; HttpOnly; SameSite=Lax"),
        ({"APPLICATION_ROOT": "/app"}, "__Secure-id=ID; Path=/app; Secure; HttpOnly; SameSite=Lax"),
        ({"SESSION_COOKIE_SECURE": True}, "__Host-id=ID; Path=/; Secure; HttpOnly; SameSite=Lax"),
        (
            {"SESSION_COOKIE_PARTITIONED": True, "SESSION_COOKIE_SAMESITE": "None"},
            "__Host-id=ID; Path=/; Secure; HttpOnly; SameSite=None; Partitioned",
        ),
    ],
)
def test_S11_golden_set_cookie_of_the_settings(config: dict[str, Any], expected: str) -> None:
    site = Site()
    site.app.config.update(config)
    (line,) = site.run(lambda: session.update(n=1)).cookies
    assert re.sub("=[A-Za-z0-9_-]{43};", "=ID;", line.decode()) == expected


def test_httponly_false_is_honoured_with_a_warning() -> None:
    site = Site()
    site.app.config["SESSION_COOKIE_HTTPONLY"] = False
    with pytest.warns(InsecureCookieWarning, match="scripts can read"):
        site.install()
    assert b"HttpOnly" not in site.run(lambda: session.update(n=1)).cookies[0]


@pytest.mark.parametrize(
    "config",
    [
        {"SESSION_COOKIE_NAME": "a b"},
        {"SESSION_COOKIE_NAME": "__Host-id", "SESSION_COOKIE_DOMAIN": "shop.example"},
        {"SESSION_COOKIE_NAME": "__Host-id", "SESSION_COOKIE_PATH": "/app"},
        {"SESSION_COOKIE_SAMESITE": "lazy"},
        {"SESSION_COOKIE_DOMAIN": "shop example"},
        {"SESSION_COOKIE_PATH": "app"},
    ],
)
def test_S9_S11_wrong_settings_raise_at_start(config: dict[str, Any]) -> None:
    site = Site()
    site.app.config.update(config)
    with pytest.raises(ValueError):
        site.install()


def test_options_go_before_settings() -> None:
    site = Site(cookie="own", path="/shop", samesite="Strict")
    site.app.config.update(
        SESSION_COOKIE_NAME="other", SESSION_COOKIE_PATH="/", SESSION_COOKIE_SAMESITE="Lax"
    )
    line = site.run(lambda: session.update(n=1)).cookies[0]
    assert line.startswith(b"own=") and b"; Path=/shop; " in line and b"SameSite=Strict" in line


def test_the_header_transport_heeds_no_cookie_setting() -> None:
    site = Site(header="X-Session-Id")
    site.app.config["SESSION_COOKIE_DOMAIN"] = "shop.example"
    reply = site.run(lambda: session.update(n=1))
    assert reply.cookies == [] and len(reply.all(b"x-session-id")[0]) == 43
    assert reply.all(b"vary") == [b"X-Session-Id"]


def test_factory_pattern_with_two_apps() -> None:
    sessions = CySession(manager=Manager(storage=MemoryStorage()))
    apps = [Flask("one"), Flask("two")]
    apps[1].config["SESSION_COOKIE_NAME"] = "two"
    lines = []
    for app in apps:
        sessions.init_app(app)
        assert app.extensions["cysession"] is sessions
        app.add_url_rule("/", "home", lambda: session.update(n=1) or "ok")
        lines.append(call_wsgi(app).cookies[0].partition(b"=")[0])
    assert lines == [b"__Host-id", b"two"]


def test_without_a_manager_files_and_the_lifetime_of_the_app(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    app = Flask("shop")
    app.config["PERMANENT_SESSION_LIFETIME"] = 600
    sessions = CySession(app)
    assert sessions.manager is not None and sessions.manager.ttl == 600
    assert isinstance(sessions.manager.storage, FileStorage)
    sessions.manager.close()


# -- failures -----------------------------------------------------------------------------------------------


def break_storage(site: Site) -> None:
    site.manager.storage.broken = True  # type: ignore[attr-defined]


@pytest.mark.parametrize("moment", ["read", "commit"])
def test_R20_the_app_may_have_its_own_page_for_a_failed_storage(moment: str) -> None:
    site = Site(DirectStorage())

    @site.app.errorhandler(StorageUnavailable)
    def _page(error: StorageUnavailable) -> Any:
        return f"own page: {type(error).__name__}", 503, {"Retry-After": "60"}

    site.run(lambda: session.update(n=1))

    def fail() -> str:
        if moment == "read":
            break_storage(site)
        session["n"] = 2
        break_storage(site)
        return "stored, says the app"

    reply = site.run(fail)
    assert (reply.status, reply.body, reply.cookies) == (503, b"own page: StorageUnavailable", [])
    assert reply.all(b"retry-after") == [b"60"]
    assert int(reply.all(b"content-length")[0]) == len(reply.body)


def test_R20_a_blueprint_may_have_a_page_of_its_own() -> None:
    site = Site(DirectStorage())
    shop = Blueprint("shop", __name__)

    @shop.errorhandler(Exception)
    def _page(error: Exception) -> Any:
        return f"the blueprint's: {type(error).__name__}", 503

    @shop.get("/shop")
    def _view() -> str:
        session["n"] = 1
        break_storage(site)
        return "stored, says the app"

    site.app.register_blueprint(shop)
    site.install()
    reply = call_wsgi(site.app, PATH_INFO="/shop")
    assert (reply.status, reply.body) == (503, b"the blueprint's: StorageUnavailable")


def test_a_handler_registered_before_the_extension_stays() -> None:
    site = Site(DirectStorage())
    site.app.register_error_handler(StorageUnavailable, lambda error: ("mine", 503))

    def fail() -> None:
        break_storage(site)
        session["n"] = 1

    assert site.run(fail).body == b"mine"


def test_V5_the_app_may_have_its_own_page_for_a_session_that_ended() -> None:
    site = Site()

    @site.app.errorhandler(SessionGone)
    def _page(error: SessionGone) -> Any:
        return "log in again", 401

    session_id = site.run(lambda: session.update(n=1)).session_id

    def write() -> None:
        session["n"] = 2
        site.manager.new(session_id).destroy()

    reply = site.run(write)
    assert (reply.status, reply.body, reply.cookies) == (401, b"log in again", [])


def test_R4_flasks_own_error_page_stores_nothing_and_hands_out_a_new_id() -> None:
    site = Site()
    old = site.run(lambda: session.update(n=1)).session_id

    def fail() -> None:
        session.regenerate_id()
        session["n"] = 2
        raise LookupError("a bug of the app")

    reply = site.run(fail)
    assert reply.status == 500 and reply.session_id != old
    assert site.run(read).body == b"1"


def test_Z3_what_cannot_be_stored_is_a_500_of_flask() -> None:
    site = Site()
    site.run(lambda: session.update(n=1))
    assert site.run(lambda: session.update(n=[object()])).status == 500
    assert site.run(read).body == b"1"


def test_R3_what_after_request_functions_change_is_stored() -> None:
    site = Site()

    @site.app.after_request
    def _late(response: Response) -> Response:
        session["late"] = 1
        return response

    assert site.manager.new(site.run(lambda: None).session_id)["late"] == 1


def test_R20_the_body_that_was_replaced_is_closed() -> None:
    site = Site(DirectStorage())
    closed = []

    class Body:
        def __iter__(self) -> Iterator[bytes]:
            return iter([b"stored, says the app"])

        def close(self) -> None:
            closed.append(1)

    def fail() -> Response:
        session["n"] = 1
        break_storage(site)
        response = Response(Body())  # type: ignore[arg-type]
        response.call_on_close(lambda: closed.append(2))
        return response

    assert site.run(fail).status == 503 and closed == [1, 2]


# -- bodies that are made while they are sent ---------------------------------------------------------------


def test_a_stream_reads_the_session_as_it_was_and_cannot_change_it() -> None:
    site = Site()
    site.run(lambda: session.update(n=1))

    def view() -> Response:
        def generate() -> Iterator[str]:
            yield f"n={session['n']}"
            with pytest.raises(SessionClosed):
                session["n"] = 2
            yield "."

        return Response(stream_with_context(generate()))

    reply = site.run(view)
    assert reply.body == b"n=1." and reply.all(b"vary") == [b"Cookie"]
    assert site.run(read).body == b"1"


def test_a_stream_that_never_looks_survives_a_broken_storage() -> None:
    site = Site(DirectStorage())
    site.run(lambda: session.update(n=1))
    break_storage(site)
    assert site.run(lambda: Response(iter(c for c in "ok"))).body == b"ok"


def test_R3_what_a_view_changes_before_it_streams_is_stored_first() -> None:
    site = Site()

    def view() -> Response:
        session["n"] = 5

        def generate() -> Iterator[str]:
            yield str(site.stored())

        return Response(stream_with_context(generate()))

    assert site.run(view).body == b"1" and site.run(read).body == b"5"


def test_files_are_sent_without_a_read_and_stay_cacheable(tmp_path: Path) -> None:
    storage = DirectStorage()
    site = Site(storage)
    site.run(lambda: session.update(n=1))
    (tmp_path / "style.css").write_bytes(b"body {}")
    storage.seen.clear()
    reply = site.run(lambda: send_file(tmp_path / "style.css"))
    assert reply.body == b"body {}" and storage.seen == [] and reply.all(b"vary") == []


# -- the test client ----------------------------------------------------------------------------------------


def test_session_transaction_writes_and_reads() -> None:
    site = Site()
    site.install()
    site.views["/"] = read
    client = site.app.test_client()
    with client.session_transaction() as opened:
        opened["n"] = 41
    assert client.get("/").data == b"41"
    with client.session_transaction() as opened:
        assert opened["n"] == 41
        opened.clear()
    assert client.get("/").data == b"nobody" and site.stored() == 0


def test_session_transaction_tells_what_failed() -> None:
    site = Site(DirectStorage())
    site.install()
    client = site.app.test_client()
    with pytest.raises(StorageUnavailable):
        with client.session_transaction() as opened:
            opened["n"] = 1
            break_storage(site)
    site.manager.storage.broken = False  # type: ignore[attr-defined]
    with pytest.raises(NotSerializable):
        with client.session_transaction() as opened:
            opened["n"] = object()


def test_the_session_can_be_looked_at_after_the_request() -> None:
    site = Site()
    site.install()
    site.views["/"] = lambda: session.update(n=1) or "ok"
    with site.app.test_client() as client:
        client.get("/")
        assert session["n"] == 1


def test_only_sessions_of_its_own_are_saved() -> None:
    site = Site()
    site.install()

    class Foreign(dict[str, Any], SessionMixin): ...

    with pytest.raises(TypeError, match="Foreign"):
        site.app.session_interface.save_session(site.app, Foreign(), Response())


def test_S16_a_twin_that_cannot_be_read_fails_only_those_who_look() -> None:
    site = Site(DirectStorage())
    twins = [(b"cookie", b"__Host-id=" + b"A" * 43 + b"; __Host-id=" + b"B" * 43)]
    site.install()
    site.views["/"] = read
    site.views["/blind"] = lambda: "ok"
    site.views["/bool"] = lambda: str(bool(session))
    site.views["/method"] = lambda: session.destroy() or "ok"
    break_storage(site)
    assert call_wsgi(site.app, twins, PATH_INFO="/blind").body == b"ok"
    for path in ("/", "/bool", "/method"):
        reply = call_wsgi(site.app, twins, PATH_INFO=path)
        assert (reply.status, reply.cookies) == (503, [])


def test_V13_another_app_on_the_same_files_with_a_realm_of_its_own(tmp_path: Path) -> None:
    own, other = [Site(FileStorage(tmp_path / "s", realm=realm)) for realm in ("a", "b")]
    own.run(lambda: session.update(n=1))
    other.jar = own.jar
    assert (own.run(read).body, other.run(read).body) == (b"1", b"nobody")
    for site in (own, other):
        site.manager.close()


def test_S9_plain_http_is_told_of_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    site = Site()
    site.views["/"] = lambda: session.update(n=1)
    site.install()
    for _ in range(2):
        call_wsgi(site.app, **{"wsgi.url_scheme": "http"})
    assert caplog.text.count("over plain http") == 1
