"""When a session ends: Django's rules, on the manager's clock if it has one of its own."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from django.conf import settings
from django.contrib.sessions.backends.base import SessionBase
from django.utils import timezone

from .. import Manager
from .conf import get_manager

__all__ = ["EXPIRY", "ExpiringSession"]

# Django's name: seconds, 0 for "with the browser", or a moment in ISO format
EXPIRY: Final = "_session_expiry"


class ExpiringSession(SessionBase):  # type: ignore[misc]  # Django is not typed
    """The part of SessionStore that tells time."""

    @property
    def _manager(self) -> Manager:
        return get_manager()

    def get_expiry_age(self, **kwargs: Any) -> int:
        return super().get_expiry_age(**self._with_now(kwargs))  # type: ignore[no-any-return]

    async def aget_expiry_age(self, **kwargs: Any) -> int:
        return await super().aget_expiry_age(**self._with_now(kwargs))  # type: ignore[no-any-return]

    def get_expiry_date(self, **kwargs: Any) -> datetime:
        return super().get_expiry_date(**self._with_now(kwargs))  # type: ignore[no-any-return]

    async def aget_expiry_date(self, **kwargs: Any) -> datetime:
        return await super().aget_expiry_date(**self._with_now(kwargs))  # type: ignore[no-any-return]

    def set_expiry(self, value: float | datetime | timedelta | None) -> None:
        super().set_expiry(self._now() + value if isinstance(value, timedelta) else value)

    async def aset_expiry(self, value: float | datetime | timedelta | None) -> None:
        await super().aset_expiry(self._now() + value if isinstance(value, timedelta) else value)

    def _with_now(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        return kwargs if "modification" in kwargs else {**kwargs, "modification": self._now()}

    def _now(self) -> datetime:
        clock = self._manager.storage.clock
        if clock is None:
            return timezone.now()  # type: ignore[no-any-return]
        return datetime.fromtimestamp(clock(), UTC if settings.USE_TZ else None)

    def _is_over(self, data: Mapping[str, Any]) -> bool:
        """Whether the moment has come that was set as its expiry; idle time is the storage's business."""
        expiry = data.get(EXPIRY)
        return isinstance(expiry, str) and self.get_expiry_age(expiry=expiry) <= 0
