"""The app of test_servers.py, as a worker process imports it: a Flask app on files in $SESSIONS."""

import os

from flask import Flask, Response, session, stream_with_context

from cysession import FileStorage, Manager
from cysession.flask import CySession

app = Flask(__name__)
CySession(app, Manager(3600, FileStorage(os.environ["SESSIONS"])))


@app.get("/")
def count() -> str:
    session["n"] = session.get("n", 0) + 1
    return f"{session['n']} {os.getpid()}"


@app.get("/stream")
def stream() -> Response:
    session["n"] = session.get("n", 0) + 1
    return Response(stream_with_context(f"{part} " for part in ("visit", session["n"])))
