"""Sessions for Flask: `CySession(app, manager)`, and `flask.session` is kept on the server.

    from cysession.flask import CySession

    CySession(app, Manager(storage=...))            # or CySession(manager=...) and later .init_app(app)

What works as Flask's own session does: the mapping, `permanent`, `modified`, `accessed`, `new`, `flash()`, the test
client's `session_transaction()`. What is better: a list or dict changed in place is noticed without `modified = True`,
no secret key is needed, a request that never looks at its session reads nothing, and what `cysession.Session` has is
there too: `session.regenerate_id()` at every log-in, `session.destroy()` at log-out, `session.bind(user)`. Its `id`,
`user` and `handle` are `session.core.id` and so on, because `{{ session.user }}` means the key in a template.

Settings, read by `init_app`:

    SESSION_COOKIE_NAME, _DOMAIN, _PATH (or APPLICATION_ROOT), _HTTPONLY, _SAMESITE, _PARTITIONED are honoured; the
    options of `HttpOptions`, given to CySession, go before them. Where a setting has Flask's own default value the
    safer one of cysession is used: cookie `__Host-id` (`__Secure-id` with a domain or path), Secure, SameSite=Lax.
    SESSION_COOKIE_SECURE has no say: cookies are Secure unless CySession is told `insecure=True`, for plain http.

    PERMANENT_SESSION_LIFETIME is the idle time of a session with `session.permanent = True` and the Max-Age of its
    cookie; others have the manager's ttl and a cookie that ends with the browser. SESSION_REFRESH_EACH_REQUEST: the
    cookie of a permanent session slides with every use. It is sent again once a tenth of its life has passed, not in
    each response, which no cache might keep then; False: only by requests that change the session.

A session is stored after all `after_request` functions, before the headers leave. If the storage fails, the client
gets 503 and keeps its cookie; if the session was ended elsewhere meanwhile, 409. Handlers of the app for
`StorageUnavailable`, `StorageMisconfigured` and `SessionGone` (`@app.errorhandler`) take precedence. A response
with a status of 500 or more drops what was not committed, but not a log-out or a new id.

A body that is generated while it is sent (`stream_with_context`) can read the session as it was, but no longer change
it: a write raises SessionClosed instead of getting lost.
"""

from typing import Unpack

from flask import Flask

from .. import Manager
from .._http import HttpOptions
from .interface import ANSWERED, SessionInterface, answer
from .session import FlaskSession

__all__ = ["CySession", "FlaskSession", "SessionInterface"]


class CySession:
    """The extension. `options` are those of `HttpOptions`; a wrong combination raises ValueError in `init_app`.

    manager: None makes one in `init_app`, with FileStorage() and PERMANENT_SESSION_LIFETIME as its ttl.
    """

    def __init__(
        self, app: Flask | None = None, manager: Manager | None = None, **options: Unpack[HttpOptions]
    ) -> None:
        self.manager = manager
        self._options = options
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Keep the sessions of this app. One CySession may serve several."""
        if self.manager is None:
            self.manager = Manager(app.permanent_session_lifetime)
        app.session_interface = SessionInterface(self.manager, app, **self._options)
        app.extensions["cysession"] = self
        handlers = app.error_handler_spec[None][None]
        for error in ANSWERED:
            handlers.setdefault(error, answer)
