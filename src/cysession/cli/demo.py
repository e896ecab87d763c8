"""A small site to click through.

Visit counter, log-in with a fresh id, log-out, and the list of your sessions with a button that ends the others: open
it in two browsers. One WSGI file on the standard library's server, for this machine only: it speaks plain http and
listens on 127.0.0.1. `make demo` in the source tree starts a larger one.
"""

import argparse
import html
import secrets
import time
import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs

from cysession import Manager, Session
from cysession.storage import open_storage
from cysession.wsgi import ENVIRON_KEY, SessionMiddleware

from .numbers import LAST_PORT, natural
from .output import Output, ago
from .target import shown

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["add_to", "run", "site"]

HOST: Final = "127.0.0.1"
MAX_FORM: Final = 4096
MAX_NAME: Final = 40
DAY: Final = 86400.0


def add_to(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--port", type=natural(LAST_PORT), default=8000, help="0 takes a free one (default 8000)"
    )
    parser.add_argument(
        "--storage", default="memory://", metavar="URL", help="where sessions are kept (default memory://)"
    )


def run(args: argparse.Namespace, output: Output) -> int:
    with Manager(DAY, open_storage(args.storage)) as manager:
        try:
            server = _server(args.port, site(manager))
        except OSError as error:
            output.note(
                f"cysession: cannot listen on {HOST}:{args.port}: {error.strerror}; choose another --port"
            )
            return 2
        with server:
            url = f"http://{HOST}:{server.server_port}/"
            output.step({"url": url}, f"{url}  (sessions in {shown(args.storage)}; stop with Ctrl-C)")
            server.serve_forever(poll_interval=0.2)
    return 0


def site(manager: Manager) -> "WSGIApplication":
    def app(environ: "WSGIEnvironment", start: "StartResponse") -> Iterable[bytes]:
        session: Session = environ[ENVIRON_KEY]
        if environ["REQUEST_METHOD"] == "POST":
            return _post(manager, session, environ, start)
        if environ["PATH_INFO"] != "/":
            return _answer(start, "404 Not Found", "There is nothing here.")
        session["visits"] = session.get("visits", 0) + 1
        session.setdefault("csrf", secrets.token_urlsafe(16))
        session.save()  # so that this session is in the list below
        return _answer(start, "200 OK", _page(manager, session))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # plain http on this machine is what this is for
        return SessionMiddleware(app, manager, insecure=True)


# ---- what the buttons do --------------------------------------------------------------------------------------


def _post(
    manager: Manager, session: Session, environ: "WSGIEnvironment", start: "StartResponse"
) -> Iterable[bytes]:
    form = _form(environ)
    token = session.get("csrf", "")
    if not token or not secrets.compare_digest(form.get("csrf", "").encode(), token.encode()):
        return _answer(start, "403 Forbidden", "This form has expired. Nothing was changed.")
    action = ACTIONS.get(environ["PATH_INFO"])
    if action is None:
        return _answer(start, "404 Not Found", "There is nothing here.")
    action(manager, session, form)
    start("303 See Other", [("Location", "/"), ("Content-Length", "0")])
    return []


def _form(environ: "WSGIEnvironment") -> dict[str, str]:
    length = environ.get("CONTENT_LENGTH") or "0"
    size = min(int(length), MAX_FORM) if length.isdigit() else 0
    fields = parse_qs(environ["wsgi.input"].read(size).decode("utf-8", "replace"))
    return {name: values[0] for name, values in fields.items()}


def _log_in(_: Manager, session: Session, form: dict[str, str]) -> None:
    name = " ".join(form.get("name", "").split())[:MAX_NAME]
    if name:
        session.bind(name)
        session.set_map({"name": name, "csrf": secrets.token_urlsafe(16)})
        session.regenerate_id()


def _log_out(_: Manager, session: Session, form: dict[str, str]) -> None:
    session.destroy()


def _end_others(manager: Manager, session: Session, form: dict[str, str]) -> None:
    if session.user is not None:
        manager.revoke(session.user, keep=session)


ACTIONS: Final[dict[str, Callable[[Manager, Session, dict[str, str]], None]]] = {
    "/log-in": _log_in,
    "/log-out": _log_out,
    "/end-others": _end_others,
}


# ---- the page ---------------------------------------------------------------------------------------------------

STYLE: Final = """
:root { color-scheme: light dark; } body { font: 16px/1.6 system-ui, sans-serif; max-width: 38rem; margin: 3rem auto;
padding: 0 1rem } form { display: inline } button, input { font: inherit; padding: .3rem .8rem } li { margin: .3rem 0 }
"""
GUARDS: Final = [
    ("Content-Type", "text/html; charset=utf-8"),
    (
        "Content-Security-Policy",
        "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
]


def _answer(start: "StartResponse", status: str, content: str) -> Iterable[bytes]:
    head = f'<!doctype html><html lang="en"><title>cysession demo</title><style>{STYLE}</style>'
    page = f"{head}<h1>cysession</h1>{content}"
    body = page.encode()
    start(status, [*GUARDS, ("Content-Length", str(len(body)))])
    return [body]


def _page(manager: Manager, session: Session) -> str:
    visits = session["visits"]
    parts = [f"<p>This session has seen {visits} visit{'' if visits == 1 else 's'}.</p>"]
    if session.user is None:
        parts.append(
            _button(session, "/log-in", "Log in", '<input name="name" placeholder="any name" required> ')
        )
        return "".join(parts)
    parts.append(f"<p>You are <b>{html.escape(session['name'])}</b>, on these devices:</p><ul>")
    for info in manager.sessions_of(session.user):
        here = " (this one)" if info.handle == session.handle else ""
        visits = info.data.get("visits", 0)
        parts.append(f"<li>began {ago(time.time() - info.created_at)}, {visits} visits{here}</li>")
    parts.append("</ul>" + _button(session, "/end-others", "End the others") + " ")
    parts.append(_button(session, "/log-out", "Log out"))
    return "".join(parts)


def _button(session: Session, path: str, label: str, more: str = "") -> str:
    token = html.escape(session["csrf"])
    hidden = f'<input type="hidden" name="csrf" value="{token}">'
    return f'<form method="post" action="{path}">{hidden}{more}<button>{label}</button></form>'


def _server(port: int, app: "WSGIApplication") -> "WSGIServer":
    from socketserver import ThreadingMixIn  # here, because the other commands need no server
    from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

    class Server(ThreadingMixIn, WSGIServer):
        daemon_threads = True

    class Handler(WSGIRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            """No line for every request."""

    return make_server(HOST, port, app, Server, Handler)
