"""The smallest server with sessions: `uvicorn examples.asgi_minimal:app`, then look at http://127.0.0.1:8000."""

from cysession import Manager
from cysession.asgi import SessionMiddleware


async def count(scope, receive, send):
    session = scope["session"]
    session["visits"] = session.get("visits", 0) + 1
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"visit %d\n" % session["visits"]})


# insecure=True is for plain http; behind https leave it out.
app = SessionMiddleware(count, Manager(ttl=3600), insecure=True)
