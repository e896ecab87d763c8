"""Sessions of a Django site, made by Django itself and taken over: nobody has to log in again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cysession import FileStorage, Manager, cli

SETTINGS = """
SECRET_KEY = "for this test only"
USE_TZ = True
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions"]
DATABASES = {{"default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": "{directory}/site.db"}}}}
SESSION_ENGINE = "django.contrib.sessions.backends.{engine}"
SESSION_FILE_PATH = "{directory}"
{more}
"""
MAKE = """
import django; django.setup()
from importlib import import_module
from django.conf import settings
from django.core.management import call_command
call_command("migrate", verbosity=0)
Store = import_module(settings.SESSION_ENGINE).SessionStore
for user in ("7", "7", None):
    store = Store()
    store["colour"] = "petrol"
    if user:
        store["_auth_user_id"] = user
    store.create() if not store.session_key else None
    store.save()
    print(store.session_key)
old = Store()
old["colour"] = "grey"
old.set_expiry(-5)
old.save()
"""


class Site:
    def __init__(self, directory: Path, engine: str, more: str = "") -> None:
        self.directory = directory
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(directory), *filter(None, sys.path)]),
            "DJANGO_SETTINGS_MODULE": "site_settings",
        }
        text = SETTINGS.format(directory=directory, engine=engine, more=more)
        (directory / "site_settings.py").write_text(text)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments], env=self.environment, capture_output=True, text=True, timeout=90
        )

    def make(self) -> list[str]:
        done = self.run("-c", MAKE)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    def check(self, key: str) -> None:
        """Under these settings Django itself finds the session, and its user."""
        code = "import django; django.setup()\nfrom cysession.django import SessionStore\n"
        done = self.run(
            "-c", f"{code}store = SessionStore({key!r}); print(store['colour'], store['_auth_user_id'])"
        )
        assert done.stdout.split() == ["petrol", "7"], done.stderr

    def migrate(self, *more: str) -> subprocess.CompletedProcess[str]:
        target = f"file://{self.directory}/sessions?durability=none"
        arguments = ("migrate", "--from", "django", "site_settings", "--to", target, "--json", *more)
        return self.run("-m", "cysession", *arguments)


@pytest.mark.parametrize("engine", ["db", "cached_db", "file"])
def test_sessions_move_with_their_keys_and_users(engine: str, tmp_path: Path) -> None:
    site = Site(tmp_path, engine)
    keys = site.make()
    assert len(keys) == 3
    if engine == "file":
        (tmp_path / f"sessionid{'x' * 32}").write_text("neither signed nor sealed")
    else:
        tamper = "import django; django.setup()\nfrom django.contrib.sessions.models import Session\n"
        tamper += (
            "s = Session.objects.latest('expire_date'); s.pk = 'x' * 32; s.session_data += '?'; s.save()"
        )
        assert site.run("-c", tamper).returncode == 0
    done = site.migrate()
    told = json.loads(done.stdout)
    assert done.returncode == cli.BAD, done.stderr  # the forged one
    assert (told["moved"], told["unreadable"]) == (3, 1)
    with Manager(1209600, FileStorage(tmp_path / "sessions")) as manager:
        for key, user in zip(keys, ("7", "7", None), strict=True):
            session = manager.new(key)
            assert session.id == key and session["colour"] == "petrol" and session.user == user
        assert len(manager.sessions_of("7")) == 2
    settings = f"SESSION_ENGINE = 'cysession.django'\nCYSESSION = {{'STORAGE': 'file://{tmp_path}/sessions'}}"
    Site(tmp_path, engine, settings).check(keys[0])
    site = Site(tmp_path, engine)
    again = json.loads(site.migrate().stdout)
    assert (again["moved"], again["already_there"]) == (0, 3)


@pytest.mark.parametrize(
    ("engine", "more", "code", "says"),
    [
        ("cache", "", cli.MISSING, "cannot be listed"),
        ("db", "SESSION_SERIALIZER = 'shop.PickleSerializer'", cli.MISCONFIGURED, "JSONSerializer"),
        ("db", "INSTALLED_APPS = ['no_such_app']", cli.MISCONFIGURED, "settings cannot be loaded"),
        ("db", "", cli.UNAVAILABLE, "database failed with OperationalError"),
    ],
)
def test_what_cannot_be_read_is_refused(engine: str, more: str, code: int, says: str, tmp_path: Path) -> None:
    done = Site(tmp_path, engine, more).migrate()
    assert done.returncode == code, done.stderr
    assert says in done.stderr and "Traceback" not in done.stderr and not done.stdout
