"""The views of the test site."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.contrib.auth import authenticate, login, logout
from django.http import HttpRequest, HttpResponse
from django.template import engines
from django.urls import path


def count(request: HttpRequest) -> HttpResponse:
    request.session["n"] = request.session.get("n", 0) + 1
    return HttpResponse(str(request.session["n"]))


def read(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(request.session.get("n", "nobody")))


def ignore(request: HttpRequest) -> HttpResponse:
    return HttpResponse("ok")


def fill(request: HttpRequest) -> HttpResponse:
    request.session["cart"] = {"lines": []}
    return HttpResponse("ok")


def add(request: HttpRequest) -> HttpResponse:
    request.session["cart"]["lines"].append("tea")  # deep inside, and no `modified = True`
    return HttpResponse("ok")


def cart(request: HttpRequest) -> HttpResponse:
    template = (
        "{{ request.session.cart.lines|join:',' }}/{% for key in request.session.keys %}{{ key }}{% endfor %}"
    )
    return HttpResponse(engines["django"].from_string(template).render({}, request))


def fail(request: HttpRequest) -> HttpResponse:
    request.session["n"] = 99
    raise LookupError("a bug of the app")


def flush(request: HttpRequest) -> HttpResponse:
    request.session.flush()
    return HttpResponse("ok")


def overtaken(request: HttpRequest) -> HttpResponse:
    """The user logs out in another window while this request is under way."""
    request.session["n"] = 99
    type(request.session)(request.session.session_key).flush()
    if "save" in request.GET:
        request.session.save()
    return HttpResponse("ok")


def log_in(request: HttpRequest) -> HttpResponse:
    user = authenticate(request, username=request.GET["name"], password="secret")
    login(request, user)
    return HttpResponse("ok")


def log_out(request: HttpRequest) -> HttpResponse:
    logout(request)
    return HttpResponse("ok")


def who(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.user.get_username() or "nobody")


def say(request: HttpRequest) -> HttpResponse:
    messages.success(request, "stored")
    return HttpResponse("ok")


def hear(request: HttpRequest) -> HttpResponse:
    return HttpResponse(",".join(str(message) for message in messages.get_messages(request)))


def stay(request: HttpRequest) -> HttpResponse:
    request.session.set_expiry({"browser": 0, "minute": 60, "decades": 10**9}[request.GET["how"]])
    return HttpResponse("ok")


async def acount(request: HttpRequest) -> HttpResponse:
    await request.session.aset("n", await request.session.aget("n", 0) + 1)
    return HttpResponse(str(await request.session.aget("n")))


VIEWS: list[Any] = [
    *(count, read, ignore, fill, add, cart, fail, flush, overtaken),
    *(log_in, log_out, who, say, hear, stay, acount),
]
urlpatterns = [path(f"{view.__name__}/", view) for view in VIEWS]
