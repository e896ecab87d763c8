"""The Django site of the tests: configured once in a process, over a SQLite database in memory for the users."""

from __future__ import annotations

from typing import Any

import django
from django.conf import settings
from django.core.management import call_command

SETTINGS: dict[str, Any] = {
    "SECRET_KEY": "of the tests only, and no session depends on it",
    "ALLOWED_HOSTS": ["*"],
    "ROOT_URLCONF": "tests.django.urls",
    "USE_TZ": True,
    "DATABASES": {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    "DEFAULT_AUTO_FIELD": "django.db.models.BigAutoField",
    "INSTALLED_APPS": [
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.sessions",
        "django.contrib.messages",
    ],
    "MIDDLEWARE": [
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.common.CommonMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
    ],
    "TEMPLATES": [
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "OPTIONS": {"context_processors": ["django.template.context_processors.request"]},
        }
    ],
    "PASSWORD_HASHERS": ["django.contrib.auth.hashers.MD5PasswordHasher"],  # fast; nothing else here is
    "SESSION_ENGINE": "cysession.django",
    "CYSESSION": {"STORAGE": "memory://"},
}


def set_up() -> None:
    if not settings.configured:
        settings.configure(**SETTINGS)
        django.setup()


def make_tables() -> None:
    set_up()
    call_command("migrate", verbosity=0, run_syncdb=True)
