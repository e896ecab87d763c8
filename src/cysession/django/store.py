"""SessionStore: Django's session API over one compiled session.

What Django's engines promise holds: data are a dict, loaded at the first access; `save()` updates what is there or
raises UpdateError, `create()` stores at once, a dead key is dropped at load. What this one adds:

    in place      a list, dict or set that was changed in place makes the session `modified`: no ritual
    merge         a save writes the keys that were changed or removed; keys that other requests changed survive
    final         no save brings a session back that was deleted meanwhile, not even in a race
    types         what cysession.codec keeps comes back as it was: datetimes, sets, tuples, dicts with int keys

Reading counts as use: with an expiry in seconds the stored session ends that long after its last use. With a
datetime or a timedelta it ends at that moment.
"""

from contextlib import suppress
from typing import Any, Final

from django.conf import settings
from django.contrib.auth.signals import user_logged_in
from django.contrib.sessions.backends.base import CreateError, UpdateError
from django.contrib.sessions.exceptions import SessionInterrupted
from django.utils.module_loading import import_string

from .. import NotSerializable, NotSupported, Session, SessionGone
from ..ids import well_formed
from .conf import get_manager, option
from .expiry import EXPIRY, ExpiringSession
from .values import plain, plain_key

__all__ = ["SessionStore"]

SECOND: Final = 1_000_000_000
ABSENT: Final = object()
EMPTY: Final = "\0empty"  # the only key of a session that Django stored without data; we store none without
INTERRUPTED: Final = (
    "The request's session was deleted before its key could be renewed. The user may have logged out in a "
    "concurrent request, for example."
)


class SessionStore(ExpiringSession):
    """The session of one request, and what `client.session` of the test client is."""

    _session_cache: dict[str, Any] | None = None  # the data; None: not loaded yet
    _key: str | None = None
    _core: Session | None = None  # the compiled session; None: nothing was read yet
    _seen: dict[str, Any] | None = None  # what _session_cache held when _core was last in step with it
    _modified = False
    accessed = False
    expiry_changed = False  # in this request, so that the cookie has to be sent again

    def __init__(self, session_key: str | None = None) -> None:
        # Without SessionBase.__init__: it imports a serializer, which nobody needs, on every request.
        if session_key is not None:
            if "." in session_key:
                session_key = _without_stamp(session_key)
            self._key = session_key if self._validate_session_key(session_key) else None

    @classmethod
    def of(cls, session: Session) -> "SessionStore":
        """The store of a session that is not started yet, or that was started to choose it."""
        store = cls()
        store._key = session.presented  # the session itself drops what is no id
        store._core = session
        return store

    # ---- what Django's methods build on --------------------------------------------------------------------

    @property
    def serializer(self) -> Any:
        """For encode() and decode() of third parties; what is stored is encoded by cysession.codec."""
        return import_string(settings.SESSION_SERIALIZER)

    @property
    def modified(self) -> bool:
        """Whether something was set, or changed in place. Neither loads the session nor counts as an access."""
        if self._modified:
            return True
        return self._core is not None and self._core.is_dirty

    @modified.setter
    def modified(self, value: bool) -> None:
        self._modified = value

    @property
    def session_key(self) -> str | None:
        """The key; None for a session that was never stored. Unchecked until the session is loaded, as in Django."""
        return self._key

    def _set_session_key(self, value: str | None) -> None:
        self._key = value if self._validate_session_key(value) else None
        if self._key is not None:
            self._core = self._seen = None

    _session_key = property(lambda self: self._key, _set_session_key)

    def _validate_session_key(self, key: object) -> bool:
        return well_formed(key) and len(key) >= 8  # type: ignore[arg-type]

    def _get_new_session_key(self) -> str:
        return self._manager.new().id

    async def _aget_new_session_key(self) -> str:
        return self._manager.new().id

    def __setitem__(self, key: str, value: Any) -> None:
        if type(key) is not str:
            key = plain_key(key)
        self._get_session()[key] = value
        self._modified = True

    async def aset(self, key: str, value: Any) -> None:
        if type(key) is not str:
            key = plain_key(key)
        (await self._aget_session())[key] = value
        self._modified = True

    @property
    def cysession(self) -> Session:
        """The session itself, for what Django has no name for: modify(), bind(), regenerate_id(delete_old=False).

        Changes made so far go over to it, and what it changes shows here; save() commits both.
        """
        core = self._bound()
        if self._session_cache is not None:
            self._stage(core)
            self._session_cache = None
        elif self._seen is None:
            self._seen = {}  # what core has is what the dict will be made of
        return core

    def is_empty(self) -> bool:
        """No key and no data: what Django's middleware neither saves nor leaves a cookie for."""
        if self._key or self._session_cache:
            return False
        return self._core is None or not self._core.is_dirty

    # ---- reading -------------------------------------------------------------------------------------------

    def get(self, key: str, default: Any = None) -> Any:
        return self._get_session().get(key, default)

    def _get_session(self, no_load: bool = False) -> dict[str, Any]:
        self.accessed = True
        data = self._session_cache
        if data is None:
            empty = no_load or (self._key is None and self._seen is None)
            data = self._session_cache = {} if empty else self.load()
        return data

    async def _aget_session(self, no_load: bool = False) -> dict[str, Any]:
        self.accessed = True
        data = self._session_cache
        if data is None:
            empty = no_load or (self._key is None and self._seen is None)
            data = self._session_cache = {} if empty else await self.aload()
        return data

    _session = property(_get_session)

    def load(self) -> dict[str, Any]:
        """What is stored. A key that names no live session is dropped, as Django's engines do."""
        core = self._to_load()
        data = core.get_map()
        if EXPIRY in data and self._is_over(data):
            core.destroy()
            data = {}
        return self._loaded(core, data)

    async def aload(self) -> dict[str, Any]:
        core = self._to_load()
        await core.aload()
        data = core.get_map()
        if EXPIRY in data and self._is_over(data):
            await core.adestroy()
            data = {}
        return self._loaded(core, data)

    def _to_load(self) -> Session:
        # Called by hand on a loaded session this is one more look at the storage, and the changes stay.
        if self._core is None or self._session_cache is not None:
            return self._manager.new(self._key)
        return self._core

    def _loaded(self, core: Session, data: dict[str, Any]) -> dict[str, Any]:
        data.pop(EMPTY, None)
        self._key = None if core.is_new else core.id
        if self._session_cache is None:
            self._core = core
            self._seen = data.copy()
        return data

    def exists(self, session_key: str | None) -> bool:
        if not self._validate_session_key(session_key):
            return False
        ttl = round(self.get_session_cookie_age() * SECOND)
        record = self._manager.storage.peek_record(session_key, ttl)  # type: ignore[arg-type]
        return record is not None and not self._is_over(record)

    async def aexists(self, session_key: str | None) -> bool:
        if not self._validate_session_key(session_key):
            return False
        ttl = round(self.get_session_cookie_age() * SECOND)
        record = await self._manager.storage.apeek_record(session_key, ttl)  # type: ignore[arg-type]
        return record is not None and not self._is_over(record)

    # ---- saving --------------------------------------------------------------------------------------------

    def create(self) -> None:
        """A new session with a key of its own, stored at once, with the data that are here."""
        self._get_session(no_load=self._seen is None)
        core = self._to_create()
        self._commit(core)
        self._created(core)

    async def acreate(self) -> None:
        await self._aget_session(no_load=self._seen is None)
        core = self._to_create()
        await self._acommit(core)
        self._created(core)

    def save(self, must_create: bool = False) -> None:
        """Write what changed. UpdateError: the session was deleted or has expired meanwhile, and stays so."""
        if self.session_key is None:
            return self.create()
        self._get_session(no_load=must_create)
        if must_create:
            core = self._to_create_as(self.exists(self.session_key))
        else:
            core = self._bound()
            if core.is_new:
                raise UpdateError
        try:
            if not self._commit(core) and not self.exists(self.session_key):
                raise UpdateError
        except SessionGone:
            raise UpdateError from None
        return None

    async def asave(self, must_create: bool = False) -> None:
        if self.session_key is None:
            return await self.acreate()
        await self._aget_session(no_load=must_create)
        if must_create:
            core = self._to_create_as(await self.aexists(self.session_key))
        else:
            core = self._bound()
            await core.aload()
            if core.is_new:
                raise UpdateError
        try:
            if not await self._acommit(core) and not await self.aexists(self.session_key):
                raise UpdateError
        except SessionGone:
            raise UpdateError from None
        return None

    # ---- for cysession.django.SessionMiddleware: the end of a request --------------------------------------

    @property
    def in_use(self) -> bool:
        """Whether the request looked at its session or changed it."""
        return self.accessed or self._modified or (self._core is not None and self._core.accessed)

    def commit(self) -> Session:
        """Store what changed, begin the idle time anew, and hand out the session that the cookie is to name.

        Raises SessionGone where save() raises UpdateError. Nothing is stored for a new session without data.
        """
        core = self._bound()
        if (self._modified or core.is_dirty) and self._has_changes(core):
            self._commit(core)
        else:
            core.save()
        return self._left(core)

    async def acommit(self) -> Session:
        core = self._bound()
        await core.aload()
        if (self._modified or core.is_dirty) and self._has_changes(core):
            await self._acommit(core)
        else:
            await core.asave()
        return self._left(core)

    def abandon(self) -> Session:
        """Forget what was not stored yet: the response is an error of the server."""
        core = self._bound()
        core.discard()
        return self._left(core)

    def _has_changes(self, core: Session) -> bool:
        """Whether the dict has any for `core`."""
        if self._session_cache is None:
            return False
        if self._key is None:
            return bool(self._session_cache)
        if core.is_new:
            raise SessionGone
        return True

    def _left(self, core: Session) -> Session:
        if self.accessed and not core.accessed:
            core.size()  # the response depends on there being no session
        return core

    def _bound(self) -> Session:
        if self._core is None:
            self._core = self._manager.new(self.session_key)
        return self._core

    def _to_create(self) -> Session:
        # A core without a record is kept: it knows which cookie its request came with.
        if self._core is not None and self.session_key is None and self._core.is_new:
            return self._core
        return self._manager.new()

    def _to_create_as(self, taken: bool) -> Session:
        """Under a key that the server chose. Two that choose the same at once end up in one session."""
        if taken:
            raise CreateError
        core = self._manager.new()
        core.set_id(self._key or "")
        return core

    def _created(self, core: Session) -> None:
        self._key = core.id
        self._modified = True

    def _commit(self, core: Session) -> bool:
        """Whether anything was written."""
        try:
            if not self._stage(core):
                core.destroy()
                return True
            changed = core.is_dirty
            core.save()
            return changed
        except NotSerializable:
            if not self._simplify():
                raise
        return self._commit(core)

    async def _acommit(self, core: Session) -> bool:
        try:
            if not self._stage(core):
                await core.adestroy()
                return True
            changed = core.is_dirty
            await core.asave()
            return changed
        except NotSerializable:
            if not self._simplify():
                raise
        return await self._acommit(core)

    def _stage(self, core: Session) -> bool:
        """Hand the changes of the dict over to `core`, which notices those in place itself. False: its time is up."""
        data = self._session_cache
        assert data is not None
        seen = self._seen if core is self._core else None
        if seen is None:
            core.remove_all()
            for key, value in data.items():
                core.set(key, value)
        else:
            added = 0
            for key, value in data.items():
                before = seen.get(key, ABSENT)
                if before is not value:
                    core.set(key, value)
                    added += before is ABSENT
            if len(data) != len(seen) + added:
                core.remove(*(seen.keys() - data.keys()))
        if not data:
            if EMPTY not in core:
                core.set(EMPTY, True)
        elif not seen:
            core.remove(EMPTY)
        expiry = data.get(EXPIRY)
        if expiry != (None if seen is None else seen.get(EXPIRY)):
            self.expiry_changed = True
        self._core = core
        self._seen = data.copy()
        age = self.get_expiry_age(expiry=expiry) if expiry else self.get_session_cookie_age()
        if age <= 0:
            return False
        if core.ttl != age:
            core.ttl = age
        return True

    def _simplify(self) -> bool:
        """Reduce subclasses of the basic types to those, as JSON does: SafeString, choices, QueryDict, namedtuple."""
        data = self._session_cache
        assert data is not None
        reduced = {key: plain(value) for key, value in data.items()}
        changed = {key: value for key, value in reduced.items() if value is not data[key]}
        data.update(changed)
        return bool(changed)

    # ---- the end of a session, and of a key ----------------------------------------------------------------

    def clear(self) -> None:
        super().clear()
        self._seen = None  # not key by key: what other requests add meanwhile goes too

    def delete(self, session_key: str | None = None) -> None:
        """Delete a session, this one by default, for good: no save of another request brings it back."""
        core = self._to_delete(session_key)
        if core is not None:
            core.destroy()

    async def adelete(self, session_key: str | None = None) -> None:
        core = self._to_delete(session_key)
        if core is not None:
            await core.adestroy()

    def _to_delete(self, session_key: str | None) -> Session | None:
        if session_key is None or session_key == self.session_key:
            if self.session_key is None:
                return None
            self._seen = None
            return self._bound()
        return self._manager.new(session_key) if self._validate_session_key(session_key) else None

    def cycle_key(self) -> None:
        """Move the session to a new key; the old one is dead at once. What log-in does (OWASP ASVS 7.2.4)."""
        self._get_session()
        core, old = self._core, self.session_key
        if old is None or core is None:
            self.create()
            self.delete(old or "")
            return
        core.load()
        try:
            self._commit(core)
            self._key = core.regenerate_id()
        except SessionGone:
            raise SessionInterrupted(INTERRUPTED) from None
        self._modified = True

    async def acycle_key(self) -> None:
        await self._aget_session()
        core, old = self._core, self.session_key
        if old is None or core is None:
            await self.acreate()
            await self.adelete(old or "")
            return
        await core.aload()
        try:
            await self._acommit(core)
            self._key = await core.aregenerate_id()
        except SessionGone:
            raise SessionInterrupted(INTERRUPTED) from None
        self._modified = True

    @classmethod
    def clear_expired(cls) -> None:
        """What `manage.py clearsessions` calls. Storages sweep by themselves; this does it now."""
        with suppress(NotSupported):  # a storage where what has expired is gone by itself
            get_manager().storage.sweep()


def _without_stamp(value: str) -> str:
    """A cookie of `cysession.django.SessionMiddleware` without its time of issue: client.session of tests."""
    key, _, stamp = value.rpartition(".")
    return key if stamp.isdecimal() and len(stamp) <= 12 else value


def bind_user(sender: object, *, request: Any, user: Any, **_: object) -> None:
    """At log-in, with BIND_USERS: note whose session it is, so that the manager can list and revoke them."""
    store = getattr(request, "session", None)
    if isinstance(store, SessionStore) and (option("BIND_USERS") or option("MAX_PER_USER")):
        store.cysession.bind(str(user.pk))


user_logged_in.connect(bind_user, dispatch_uid="cysession.django")
