"""Programs that cannot work: each marked line must be rejected by both checkers, for the marked reason.

`# wrong: <code of mypy>, <rule of pyright>`; ci/check_types.py compares the marks with what the checkers say.
"""

from cysession import Manager, MemoryStorage, Session, Storage, asgi

manager = Manager(ttl="1h")  # wrong: arg-type, reportArgumentType
manager = Manager(3600, MemoryStorage)  # wrong: arg-type, reportArgumentType
manager = Manager(3600, MemoryStorage(), 86400)  # wrong: call-arg, reportCallIssue
manager = Manager(timeout=3600)  # wrong: call-arg, reportCallIssue
session = manager.new(b"bytes")  # wrong: arg-type, reportArgumentType
manager.storage = "memory://"  # wrong: assignment, reportAttributeAccessIssue
manager.on("created", 5)  # wrong: call-overload, reportArgumentType reportCallIssue
signed_in = manager.stats()["logged_in"]  # wrong: typeddict-item, reportGeneralTypeIssues

session = manager.new()
session[1] = "one"  # wrong: index, reportArgumentType
session.id = "chosen"  # wrong: misc, reportAttributeAccessIssue
session.remove(["a", "b"])  # wrong: arg-type, reportArgumentType
session.contains(key="a")  # wrong: call-arg, reportCallIssue
session.bind(42)  # wrong: arg-type, reportArgumentType
session.user = "anna"  # wrong: misc, reportAttributeAccessIssue
session.ttl = None  # wrong: assignment, reportAttributeAccessIssue
session.flash("hello")  # wrong: attr-defined, reportAttributeAccessIssue
count: int = session.modify("count", lambda old: str(old))  # wrong: assignment, reportAssignmentType
Session("id")  # wrong: call-arg, reportCallIssue


class OwnSession(Session):  # wrong: misc, reportGeneralTypeIssues
    pass


class Own(Storage):
    def remove_all(self, session_id: int) -> bool:  # wrong: override, reportIncompatibleMethodOverride
        raise NotImplementedError


async def forgets_to_await() -> None:
    with manager.new() as inner:
        inner.asave()  # wrong: unused-coroutine, reportUnusedCoroutine
        inner["total"] = 1 + inner.aload()  # wrong: operator, reportOperatorIssue


async def app(scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None: ...


asgi.SessionMiddleware(app, manager)  # nothing wrong
asgi.SessionMiddleware(manager, app)  # wrong: arg-type, reportArgumentType
asgi.SessionMiddleware(app, manager, samesite=1)  # wrong: arg-type, reportArgumentType
asgi.SessionMiddleware(app, manager, cookie_name="sid")  # wrong: call-arg, reportCallIssue
