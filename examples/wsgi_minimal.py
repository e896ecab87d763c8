"""The smallest WSGI server with sessions: `python -m examples.wsgi_minimal`, then look at http://127.0.0.1:8000.

Any other WSGI server runs it as well: `waitress-serve examples.wsgi_minimal:app`.
"""

from cysession import Manager
from cysession.wsgi import SessionMiddleware


def count(environ, start_response):
    session = environ["cysession.session"]
    session["visits"] = session.get("visits", 0) + 1
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"visit %d\n" % session["visits"]]


# insecure=True is for plain http; behind https leave it out.
app = SessionMiddleware(count, Manager(ttl=3600), insecure=True)

if __name__ == "__main__":
    from wsgiref.simple_server import make_server

    make_server("127.0.0.1", 8000, app).serve_forever()
