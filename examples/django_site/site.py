"""A Django site in one file: a basket, a log-in, and "log me out everywhere else". Its sessions are cysession's.

    pip install 'cysession[django]'
    python examples/django_site/site.py             http://127.0.0.1:8000, log in as anna with the password "basket"

What makes it cysession are SESSION_ENGINE and CYSESSION; SessionMiddleware in place of Django's own is optional.
Set CYSESSION_STORAGE to a URL, such as redis://localhost, for more than one process.
"""

import os
import sys
import tempfile
import warnings
from pathlib import Path

import django
from django.conf import settings
from django.core.management import call_command, execute_from_command_line
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.template import engines
from django.urls import path

STATE = Path(os.environ.get("SITE_STATE") or tempfile.mkdtemp(prefix="django-site-"))

settings.configure(
    # -- sessions --
    SESSION_ENGINE="cysession.django",
    CYSESSION={
        "STORAGE": os.environ.get("CYSESSION_STORAGE") or f"file://{STATE}/sessions",
        "BIND_USERS": True,  # so that a user's sessions can be found and ended
        "MAX_AGE": 7 * 86400,
    },
    SESSION_COOKIE_AGE=3600,
    SESSION_COOKIE_SECURE=False,  # plain http on this machine; True wherever the site is served over https
    MIDDLEWARE=[
        "cysession.django.SessionMiddleware",  # or django.contrib.sessions.middleware.SessionMiddleware
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
    ],
    # -- the rest of a small site --
    SECRET_KEY=os.environ.get("SECRET_KEY") or os.urandom(32).hex(),
    ALLOWED_HOSTS=["127.0.0.1", "localhost"],
    ROOT_URLCONF=__name__,
    USE_TZ=True,
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": STATE / "users.sqlite3"}},
    INSTALLED_APPS=[
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.messages",
        "django.contrib.sessions",  # its clearsessions command
    ],
    MESSAGE_STORAGE="django.contrib.messages.storage.session.SessionStorage",
    TEMPLATES=[
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "OPTIONS": {
                "context_processors": [
                    "django.template.context_processors.request",
                    "django.contrib.auth.context_processors.auth",
                    "django.contrib.messages.context_processors.messages",
                ]
            },
        }
    ],
)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # ids travel in plain http: this is a demonstration
    django.setup()

from django.contrib import messages  # noqa: E402
from django.contrib.auth import authenticate, get_user_model, login, logout  # noqa: E402
from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.views.decorators.http import require_POST  # noqa: E402

from cysession.django import get_manager  # noqa: E402

PAGE = """<!doctype html><title>Basket</title>
{% for message in messages %}<p>{{ message }}</p>{% endfor %}
<p>{{ user.username|default:"nobody" }}: {{ request.session.basket|join:", "|default:"an empty basket" }}</p>
<form method="post" action="add/">{% csrf_token %}<input name="item"><button>add</button></form>
{% if user.is_authenticated %}
<form method="post" action="logout/">{% csrf_token %}<button>log out</button></form>
<form method="post" action="elsewhere/">{% csrf_token %}<button>log out everywhere else</button></form>
{% else %}
<form method="post" action="login/">{% csrf_token %}
<input name="name"><input name="password" type="password"><button>log in</button></form>
{% endif %}
"""


def home(request: HttpRequest) -> HttpResponse:
    return HttpResponse(engines["django"].from_string(PAGE).render({}, request))


@require_POST
def add(request: HttpRequest) -> HttpResponse:
    request.session.setdefault("basket", []).append(request.POST["item"])  # saved: no `modified = True`
    return redirect("/")


@require_POST
def log_in(request: HttpRequest) -> HttpResponse:
    user = authenticate(request, username=request.POST["name"], password=request.POST["password"])
    if user is None:
        messages.error(request, "wrong name or password")
    else:
        login(request, user)  # moves the session, basket and all, to a new id
    return redirect("/")


@require_POST
def log_out(request: HttpRequest) -> HttpResponse:
    logout(request)
    return redirect("/")


@require_POST
def log_out_elsewhere(request: HttpRequest) -> HttpResponse:
    ended = get_manager().revoke(str(request.user.pk), keep=request.session.cysession)
    messages.info(request, f"sessions ended: {ended}")
    return redirect("/")


urlpatterns = [
    path("", home),
    path("add/", add),
    path("login/", log_in),
    path("logout/", log_out),
    path("elsewhere/", log_out_elsewhere),
]


def prepare() -> None:
    """The tables, and one user to log in as."""
    call_command("migrate", verbosity=0)
    users = get_user_model().objects
    if not users.filter(username="anna").exists():
        users.create_user("anna", password="basket")


prepare()
warnings.filterwarnings("ignore", message="insecure=True")
application = get_wsgi_application()

if __name__ == "__main__":
    print(f"http://127.0.0.1:8000  (state in {STATE}; log in as anna, password basket)")
    execute_from_command_line([sys.argv[0], "runserver", "--noreload", *(sys.argv[1:] or ["127.0.0.1:8000"])])
