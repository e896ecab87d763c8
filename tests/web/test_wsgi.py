"""What only WSGI has: start_response and write(), exc_info, bodies of all kinds and their close(), real servers."""

from __future__ import annotations

import contextlib
import http.client
import socketserver
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.util import FileWrapper
from wsgiref.validate import validator

import pytest
import waitress

from cysession import Manager, MemoryStorage, NotSerializable, Session, SessionClosed, StorageUnavailable
from cysession.wsgi import SessionMiddleware
from tests.web.sites import Reply, call_wsgi, cookie, environ_of
from tests.web.storages import DirectStorage

PLAIN = [("Content-Type", "text/plain")]
App = Callable[..., Any]


@pytest.fixture(params=[MemoryStorage, DirectStorage])
def manager(request: pytest.FixtureRequest) -> Manager:
    return Manager(3600, request.param())


def live(manager: Manager) -> str:
    session = manager.new()
    session["n"] = 1
    session.save()
    return session.id


def ask(app: App, manager: Manager, session_id: str = "", **environ: Any) -> Reply:
    """One request through the middleware, with a validator on either side of it."""
    guarded = validator(SessionMiddleware(validator(app), manager))
    environ = {"wsgi.input": Input(), "wsgi.errors": Errors(), **environ}
    return call_wsgi(guarded, cookie(session_id) if session_id else (), **environ)


class Input:
    """Enough of a stream for the validator."""

    def read(self, *size: int) -> bytes:
        return b""

    readline = read

    def readlines(self, *size: int) -> list[bytes]:
        return []

    def __iter__(self) -> Iterator[bytes]:
        return iter(())


class Errors:
    def write(self, text: str) -> None: ...
    def flush(self) -> None: ...
    def writelines(self, lines: list[str]) -> None: ...


class Chunks:
    """A body that notes when it is read and closed."""

    def __init__(self, *chunks: bytes, before: Callable[[], object] = bool) -> None:
        self.chunks = iter(chunks)
        self.before = before
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        self.before()
        return next(self.chunks)

    def close(self) -> None:
        self.closed += 1


# -- when the headers leave --------------------------------------------------------------------------------


BODIES: dict[str, Callable[[], Any]] = {
    "list": lambda: [b"a", b"b"],
    "tuple": lambda: (b"a", b"b"),
    "empty list": list,
    "generator": lambda: (chunk for chunk in (b"a", b"b")),
    "empty generator": lambda: (chunk for chunk in ()),
    "object": lambda: Chunks(b"a", b"b"),
    "an empty chunk first": lambda: Chunks(b"", b"a", b"b"),
}


@pytest.mark.parametrize("kind", BODIES)
def test_R3_every_kind_of_body_is_committed_and_sent_whole(kind: str, manager: Manager) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        environ["cysession.session"]["n"] = 2
        start_response("200 OK", PLAIN)
        return BODIES[kind]()

    reply = ask(app, manager)
    assert reply.body == (b"" if "empty" in kind and "first" not in kind else b"ab")
    assert manager.new(reply.session_id)["n"] == 2


@pytest.mark.parametrize("kind", BODIES)
def test_R3_the_session_is_stored_before_the_server_hears_of_the_headers(kind: str, manager: Manager) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        environ["cysession.session"]["n"] = 2
        start_response("200 OK", PLAIN)
        assert len(manager.storage) == 0  # type: ignore[arg-type]
        return BODIES[kind]()

    seen = []

    def start_response(status: str, headers: Any) -> Any:
        seen.append(len(manager.storage))  # type: ignore[arg-type]

    for _ in SessionMiddleware(app, manager)(environ_of(), start_response):
        assert seen
    assert seen == [1]


def test_R3_a_generator_app_may_start_and_change_its_session_up_to_the_first_chunk(manager: Manager) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        session = environ["cysession.session"]
        write = start_response("200 OK", PLAIN)
        session["n"] = 2
        assert callable(write)
        yield b"a"
        assert session["n"] == 2  # reading goes on
        with pytest.raises(SessionClosed):
            session["n"] = 3
        yield b"b"

    reply = call_wsgi(SessionMiddleware(app, manager))
    assert reply.body == b"ab" and manager.new(reply.session_id).get_map() == {"n": 2}


def test_R3_write_sends_the_headers_of_a_stored_session(manager: Manager) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        session = environ["cysession.session"]
        write = start_response("200 OK", PLAIN)
        session["n"] = 2
        write(b"a")
        assert len(manager.storage) == 1  # type: ignore[arg-type]
        with pytest.raises(SessionClosed):
            session["n"] = 3
        write(b"b")
        return [b"c"]

    reply = ask(app, manager)
    assert reply.body == b"abc" and manager.new(reply.session_id)["n"] == 2


def test_write_from_inside_a_body(manager: Manager) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        environ["cysession.session"]["n"] = 2
        start_response("200 OK", PLAIN)(b"a")
        yield b"b"

    reply = call_wsgi(SessionMiddleware(app, manager))
    assert reply.body == b"ab" and manager.new(reply.session_id)["n"] == 2


def test_lists_and_files_reach_the_server_as_they_are(manager: Manager) -> None:
    """It looks for a length of 1, or for its own file wrapper."""
    given: list[Any] = []

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", PLAIN)
        return given[-1]

    for body in ([b"a"], (b"a",), FileWrapper(Input())):  # type: ignore[arg-type]
        given.append(body)
        environ = environ_of(**{"wsgi.file_wrapper": FileWrapper})
        assert SessionMiddleware(app, manager)(environ, lambda *a: None) is body  # type: ignore[arg-type]


def test_headers_of_the_app_are_not_changed(manager: Manager) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        environ["cysession.session"]["n"] = 2
        start_response("200 OK", PLAIN)
        return [b""]

    before = list(PLAIN)
    assert len(ask(app, manager).cookies) == 1 and before == PLAIN


# -- close() ------------------------------------------------------------------------------------------------


def test_close_reaches_the_body_once(manager: Manager) -> None:
    body = Chunks(b"a")

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", PLAIN)
        return body

    assert call_wsgi(SessionMiddleware(app, manager)).body == b"a"
    assert body.closed == 1


@pytest.mark.parametrize("chunks", [0, 1])
def test_close_reaches_the_body_of_a_client_that_left(chunks: int, manager: Manager) -> None:
    body = Chunks(b"a", b"b", b"c")

    def app(environ: Any, start_response: Any) -> Any:
        environ["cysession.session"]["n"] = 2
        start_response("200 OK", PLAIN)
        return body

    sent = SessionMiddleware(app, manager)(environ_of(), lambda *a: None)  # type: ignore[arg-type]
    stream = iter(sent)
    for _ in range(chunks):
        next(stream)
    sent.close()  # type: ignore[attr-defined]
    assert body.closed == 1
    assert len(manager.storage) == chunks  # type: ignore[arg-type]


def test_close_reaches_a_body_whose_session_could_not_be_stored() -> None:
    manager = Manager(storage=DirectStorage())
    body = Chunks(b"secret")

    def app(environ: Any, start_response: Any) -> Any:
        environ["cysession.session"]["n"] = 2
        manager.storage.broken = True  # type: ignore[attr-defined]
        start_response("200 OK", PLAIN)
        return body

    reply = call_wsgi(SessionMiddleware(app, manager))
    assert reply.status == 503 and b"secret" not in reply.body and body.closed == 1


# -- exc_info -----------------------------------------------------------------------------------------------


def test_exc_info_takes_the_response_back_before_it_has_left(manager: Manager) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        environ["cysession.session"]["n"] = 2
        start_response("200 OK", PLAIN)
        try:
            raise LookupError
        except LookupError:
            start_response("500 Oops", PLAIN, sys.exc_info())
        return [b"sorry"]

    session_id = live(manager)
    reply = ask(app, manager, session_id)
    assert (reply.status, reply.body, reply.cookies) == (500, b"sorry", [])
    assert manager.new(session_id)["n"] == 1


def test_exc_info_after_the_headers_raises_the_error_of_the_app(manager: Manager) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", PLAIN)
        yield b"a"
        try:
            raise LookupError
        except LookupError:
            start_response("500 Oops", PLAIN, sys.exc_info())

    with pytest.raises(LookupError):
        call_wsgi(SessionMiddleware(app, manager))


def test_start_response_twice_without_exc_info_is_refused(manager: Manager) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", PLAIN)
        start_response("200 OK", PLAIN)

    with pytest.raises(AssertionError, match="second time"):
        call_wsgi(SessionMiddleware(app, manager))


# -- failures -----------------------------------------------------------------------------------------------


def test_R20_the_app_learns_that_what_it_wrote_was_replaced() -> None:
    manager = Manager(storage=DirectStorage())
    learned: list[BaseException] = []

    def app(environ: Any, start_response: Any) -> Any:
        environ["cysession.session"]["n"] = 2
        manager.storage.broken = True  # type: ignore[attr-defined]
        write = start_response("200 OK", PLAIN)
        try:
            write(b"stored, says the app")
        except StorageUnavailable as error:
            learned.append(error)
            start_response("500 Oops", PLAIN, sys.exc_info())
        write(b"written late")
        return [b"written late"]

    reply = ask(app, manager)
    assert reply.status == 503 and b"says" not in reply.body and b"late" not in reply.body
    assert len(learned) == 1 and reply.cookies == []


def test_R20_an_app_that_lets_the_error_of_write_pass_has_its_503_too() -> None:
    manager = Manager(storage=DirectStorage())

    def app(environ: Any, start_response: Any) -> Any:
        environ["cysession.session"]["n"] = 2
        manager.storage.broken = True  # type: ignore[attr-defined]
        start_response("200 OK", PLAIN)(b"stored, says the app")

    assert ask(app, manager).status == 503


@pytest.mark.parametrize("told", [True, False])
def test_R20_a_500_page_made_for_a_failed_storage_becomes_503(told: bool) -> None:
    """The error handling of a framework may sit inside ours, and would answer 500."""
    manager = Manager(storage=DirectStorage())

    def app(environ: Any, start_response: Any) -> Any:
        manager.storage.broken = True  # type: ignore[attr-defined]
        try:
            environ["cysession.session"]["n"] = 2
        except StorageUnavailable:
            start_response("500 Oops", PLAIN, *([sys.exc_info()] if told else []))
        return [b"a page of the framework"]

    reply = ask(app, manager, "A" * 43)
    assert reply.status == 503 and reply.cookies == [] and b"framework" not in reply.body


def test_R20_a_failure_while_the_body_is_made_is_503_if_nothing_has_left() -> None:
    manager = Manager(storage=DirectStorage())

    def app(environ: Any, start_response: Any) -> Any:
        manager.storage.broken = True  # type: ignore[attr-defined]
        start_response("200 OK", PLAIN)
        yield str(environ["cysession.session"].get("n")).encode()

    reply = call_wsgi(SessionMiddleware(app, manager), cookie("A" * 43))
    assert reply.status == 503 and reply.cookies == []


def test_R4_an_error_in_the_body_before_its_first_chunk_commits_nothing(manager: Manager) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        environ["cysession.session"]["n"] = 2
        start_response("200 OK", PLAIN)
        raise LookupError
        yield b""

    session_id = live(manager)
    with pytest.raises(LookupError):
        call_wsgi(SessionMiddleware(app, manager), cookie(session_id))
    assert manager.new(session_id)["n"] == 1


def test_R4_after_an_exception_the_session_takes_no_more_writes(manager: Manager) -> None:
    kept: list[Session] = []

    def app(environ: Any, start_response: Any) -> Any:
        kept.append(environ["cysession.session"])
        raise LookupError

    with pytest.raises(LookupError):
        ask(app, manager)
    with pytest.raises(SessionClosed):
        kept[0]["n"] = 3


def test_Z3_what_cannot_be_stored_can_still_have_an_error_page(manager: Manager) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        environ["cysession.session"]["n"] = [object()]
        write = start_response("200 OK", PLAIN)
        try:
            write(b"a")
        except NotSerializable:
            start_response("500 Oops", PLAIN, sys.exc_info())
        return [b"sorry"]

    reply = ask(app, manager)
    assert (reply.status, reply.body, reply.cookies) == (500, b"sorry", [])


def test_S5_the_client_learns_its_new_id_although_the_app_raised(manager: Manager) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        environ["cysession.session"].regenerate_id()
        raise LookupError

    sent: list[Any] = []

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
        sent.append((status, headers))
        return sent.append

    with pytest.raises(LookupError):
        SessionMiddleware(app, manager)(environ_of(cookie(live(manager))), start_response)
    (status, headers), body = sent
    assert status.startswith("500") and body
    (line,) = [value for name, value in headers if name.lower() == "set-cookie"]
    assert manager.new(line.partition("=")[2].partition(";")[0])["n"] == 1


def test_an_app_that_never_starts_a_response_is_the_servers_to_judge(manager: Manager) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        environ["cysession.session"]["n"] = 2
        return [b"a"]

    with pytest.raises(AssertionError):
        call_wsgi(SessionMiddleware(app, manager))
    assert len(manager.storage) == 0  # type: ignore[arg-type]


# -- plain http ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({"wsgi.url_scheme": "http"}, 1),
        ({"wsgi.url_scheme": "http", "HTTP_HOST": "shop.example:8080"}, 1),
        ({"wsgi.url_scheme": "https"}, 0),
        ({"wsgi.url_scheme": "http", "HTTP_X_FORWARDED_PROTO": "https"}, 0),
        *(
            ({"wsgi.url_scheme": "http", "HTTP_HOST": host}, 0)
            for host in ("localhost", "localhost:8000", "127.0.0.1:8000", "[::1]", "[::1]:8000")
        ),
    ],
)
def test_S9_why_a_browser_will_not_keep_the_cookie_stands_in_the_log_once(
    environ: dict[str, str], told: int, caplog: pytest.LogCaptureFixture
) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        environ["cysession.session"]["n"] = 2
        start_response("200 OK", PLAIN)
        return [b"a"]

    made = SessionMiddleware(app, Manager(storage=MemoryStorage()))
    for _ in range(3):
        assert call_wsgi(made, **environ).cookies
    assert caplog.text.count("over plain http") == told


@pytest.mark.filterwarnings("ignore::cysession.cookies.InsecureCookieWarning")
@pytest.mark.parametrize("options", [{"insecure": True}, {"header": "X-Session-Id"}])
def test_S9_whoever_chose_plain_http_is_not_told(
    options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        environ["cysession.session"]["n"] = 2
        start_response("200 OK", PLAIN)
        return [b"a"]

    made = SessionMiddleware(app, Manager(storage=MemoryStorage()), **options)
    call_wsgi(made, **{"wsgi.url_scheme": "http"})
    assert "over plain http" not in caplog.text


# -- real servers -------------------------------------------------------------------------------------------


class Quiet(WSGIRequestHandler):
    def log_message(self, *args: Any) -> None: ...


class Threaded(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True


class Wsgiref:
    def __init__(self, app: App) -> None:
        self.server = make_server("127.0.0.1", 0, app, server_class=Threaded, handler_class=Quiet)
        self.port = self.server.server_port
        self.run = self.server.serve_forever

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class Waitress:
    def __init__(self, app: App) -> None:
        self.server: Any = waitress.create_server(app, host="127.0.0.1", port=0, threads=4)
        self.port = int(self.server.effective_port)

    def run(self) -> None:
        with contextlib.suppress(OSError):  # closed under its select
            self.server.run()

    def stop(self) -> None:
        self.server.task_dispatcher.shutdown()
        self.server.trigger.pull_trigger(self.server.close)


@pytest.fixture(params=[Wsgiref, Waitress])
def served(request: pytest.FixtureRequest) -> Iterator[Callable[[App], int]]:
    """served(app) -> the port where a real server answers for it."""
    running: list[tuple[Any, threading.Thread]] = []

    def serve(app: App) -> int:
        server = request.param(app)
        thread = threading.Thread(target=server.run)
        thread.start()
        running.append((server, thread))
        return int(server.port)

    yield serve
    for server, thread in running:
        server.stop()
        thread.join(30)
        assert not thread.is_alive()


def get(port: int, path: str = "/", **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response, body


def test_a_visit_to_a_real_server(served: Callable[[App], int], manager: Manager) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        session = environ["cysession.session"]
        session["n"] = session.get("n", 0) + 1
        start_response("200 OK", PLAIN)
        if environ["PATH_INFO"] == "/stream":
            return iter([b"visit ", b"%d" % session["n"]])
        return [b"visit %d" % session["n"]]

    port = served(SessionMiddleware(app, manager))
    response, body = get(port)
    assert body == b"visit 1" and response.headers["Vary"] == "Cookie"
    assert response.headers["Content-Length"] == "7"  # found by the server, in the list of the app
    jar = response.headers["Set-Cookie"].partition(";")[0]
    for number, path in enumerate(("/", "/stream", "/"), 2):
        response, body = get(port, path, Cookie=jar)
        assert body == b"visit %d" % number and "Set-Cookie" not in response.headers


def test_R20_a_real_server_sends_the_503(served: Callable[[App], int]) -> None:
    manager = Manager(storage=DirectStorage())

    def app(environ: Any, start_response: Any) -> Any:
        manager.storage.broken = True  # type: ignore[attr-defined]
        environ["cysession.session"]["n"] = 1
        start_response("200 OK", PLAIN)
        return iter([b"stored, says the app"])

    port = served(SessionMiddleware(app, manager))
    response, body = get(port)
    assert response.status == 503 and "Set-Cookie" not in response.headers and b"says" not in body
    assert response.headers["Retry-After"] == "5"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_S5_a_real_server_hands_out_the_new_id_although_the_app_raised(
    served: Callable[[App], int], manager: Manager, capfd: pytest.CaptureFixture[str]
) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        environ["cysession.session"].regenerate_id()
        raise LookupError("a bug of the app")

    response, _ = get(served(SessionMiddleware(app, manager)), Cookie=f"__Host-id={live(manager)}")
    assert response.status == 500
    new = response.headers["Set-Cookie"].partition("=")[2].partition(";")[0]
    assert manager.new(new)["n"] == 1
