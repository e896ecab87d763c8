"""URLs of a site whose one view comes with the request."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest
from django.urls import re_path


def answer(request: HttpRequest) -> Any:
    given = request.scope if hasattr(request, "scope") else request.META
    return given["tests.view"](request)


urlpatterns = [re_path("", answer)]
