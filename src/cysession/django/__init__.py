"""Django: `SESSION_ENGINE = "cysession.django"`. Models, views and tests stay as they are.

    SESSION_ENGINE = "cysession.django"
    CYSESSION = {"STORAGE": "redis://localhost/0"}      # see cysession.django.conf

With Django's own `django.contrib.sessions.middleware.SessionMiddleware` every header is Django's. The optional
`cysession.django.SessionMiddleware` in its place costs less and has the cookie policy of the other adapters.
"""

from .conf import get_manager as get_manager
from .middleware import SessionMiddleware as SessionMiddleware
from .store import SessionStore as SessionStore

__all__ = ["SessionMiddleware", "SessionStore", "get_manager"]
