"""The compiled half of the HTTP adapters: it agrees with the careful way, or says that it does not know."""

from __future__ import annotations

import time
from collections import UserDict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cysession import Manager, MemoryStorage, NotSerializable, Session, SessionClosed
from cysession._core import (
    Exchange,
    carrier_value,
    close_plain,
    presented_id,
    presented_stamp,
    stamp_is_young,
)
from cysession.cookies import find_values
from cysession.ids import well_formed

NAME = b"__Host-id"
ID = b"aZ09_-" * 7

PIECES = [
    NAME,
    b"=",
    b";",
    b"; ",
    b" ",
    b"\t",
    b".",
    b"1",
    b"a",
    ID,
    b"\xff",
    b"\0",
    b'"',
    b"x",
    b"__Host-",
    b"12345678901234",
]
cookie_headers = st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join)
header_names = st.sampled_from([b"cookie", b"cookiE", b"cooki", b"cookies", b"", b"host", b"\xff"])
header_values = st.one_of(cookie_headers, st.binary(max_size=20))


def look(value: bytes) -> object:
    return presented_id([(b"host", b"shop.example"), (b"cookie", value)], b"cookie", NAME)


def carefully(value: bytes) -> set[str]:
    """All ids that a header presents, spelled out."""
    ids = set()
    for found in find_values(value, NAME):
        head, dot, stamp = found.rpartition(b".")
        if dot and stamp.isdigit() and len(stamp) <= 12:
            found = head
        text = found.decode("latin-1")
        if well_formed(text):
            ids.add(text)
    return ids


@given(cookie_headers)
def test_V9_what_it_says_is_what_the_careful_way_says(value: bytes) -> None:
    found = look(value)
    if found is None:
        assert carefully(value) == set()
    elif found is not False:
        assert carefully(value) == {found}


@given(st.lists(st.tuples(header_names, header_values), max_size=6), st.booleans())
def test_S10_S16_only_the_one_carrier_header_counts(
    headers: list[tuple[bytes, bytes]], as_tuple: bool
) -> None:
    carriers = [value for name, value in headers if name == b"cookie"]
    found = presented_id(tuple(headers) if as_tuple else headers, b"cookie", NAME)
    if not carriers:
        assert found is None
    elif len(carriers) > 1:
        assert found is False
    else:
        assert found == look(carriers[0])


@pytest.mark.parametrize(
    "value",
    [
        NAME + b"=" + ID,
        b"theme=dark; " + NAME + b"=" + ID,
        NAME + b"=" + ID + b"; theme=dark",
        NAME + b"=" + ID + b";theme=dark",
        NAME + b"=" + ID + b".1700000000",
        NAME + b"=" + ID + b".1700000000; theme=dark",
        NAME + b"=" + ID + b";",
    ],
)
def test_what_browsers_write_needs_no_closer_look(value: bytes) -> None:
    assert look(value) == ID.decode()


@pytest.mark.parametrize(
    ("value", "stamp"),
    [
        (b"", None),
        (b"a=1", None),
        (NAME + b"=a", -1),
        (NAME + b"=a.0", 0),
        (NAME + b"=a.1700000000; b=c", 1_700_000_000),
        (NAME + b"=a.999999999999", 999_999_999_999),
        (NAME + b"=a.9999999999999", False),
        (NAME + b"=a.", False),
        (NAME + b"=a.1; " + NAME + b"=a.2", False),
    ],
)
def test_S19_the_stamp_behind_the_id(value: bytes, stamp: object) -> None:
    found = presented_stamp(value, NAME)
    assert found == stamp and type(found) is type(stamp)


@pytest.mark.parametrize(
    ("stamp", "young"),
    [
        ("", False),
        (".89", False),
        (".90", False),
        (".91", True),
        (".100", True),
        (".101", False),
        (".x", False),
    ],
)
def test_S19_a_stamp_is_young_for_so_many_seconds(stamp: str, young: bool) -> None:
    value = NAME + b"=a" + stamp.encode()
    assert stamp_is_young(value, NAME, lambda: 100.9, 10) is young
    assert stamp_is_young(value + b"; " + NAME + b"=b" + stamp.encode(), NAME, lambda: 100.9, 10) is False


def test_S19_without_a_clock_the_system_tells_how_old_a_stamp_is() -> None:
    for age, young in ((0, True), (5, True), (20, False), (-5, False)):
        value = NAME + b"=a.%d" % (time.time() - age)
        assert stamp_is_young(value, NAME, None, 10) is young


@pytest.mark.parametrize("value", [b"", b"theme=dark", b"__host-id=" + ID, b"__Host-i=" + ID, b";;;"])
def test_a_header_without_the_name_presents_nothing(value: bytes) -> None:
    assert look(value) is None


@pytest.mark.parametrize(
    "value",
    [
        NAME,
        NAME + b"=",
        NAME + b"=.1",
        NAME + b"=a.",
        NAME + b"=a.b",
        NAME + b"=a.1234567890123",
        NAME + b"=a ",
        NAME + b"= a",
        NAME + b' ="a"',
        NAME + b"=" + b"a" * 129,
        b"x" + NAME + b"=a",
        b";" + NAME + b"=a",
        b"  " + NAME + b"=a",
        NAME + b"=a; " + NAME + b"=a",
        NAME + b"=a; x" + NAME,
    ],
)
def test_S16_a_choice_or_an_odd_spelling_is_left_to_the_careful_way(value: bytes) -> None:
    assert look(value) is False


def test_the_longest_id_is_128_characters() -> None:
    assert look(NAME + b"=" + b"a" * 128) == "a" * 128


@pytest.mark.parametrize(
    ("value", "found"),
    [(ID, ID.decode()), (ID + b".1", ID.decode()), (b"", False), (b"a b", False), (b"a;", False)],
)
def test_S10_without_a_cookie_name_the_whole_value_is_the_id(value: bytes, found: object) -> None:
    assert presented_id([(b"x-id", value)], b"x-id", None) == found


@pytest.mark.parametrize(
    "headers",
    [
        iter([(b"cookie", NAME + b"=a")]),
        [[b"cookie", NAME + b"=a"]],
        [("cookie", "a")],
        [(b"cookie", "a")],
        [(b"cookie",)],
        [(b"cookie", b"a", b"b")],
        [None],
        None,
    ],
)
def test_other_types_than_a_server_sends_are_left_to_the_careful_way(headers: object) -> None:
    assert presented_id(headers, b"cookie", NAME) is False


def test_S16_the_only_header_of_a_name() -> None:
    assert carrier_value([(b"host", b"h"), (b"cookie", b"c")], b"cookie") == b"c"
    assert carrier_value([(b"host", b"h")], b"cookie") is None
    assert carrier_value([(b"cookie", b"a"), (b"cookie", b"b")], b"cookie") is False


def test_the_carrier_has_to_be_bytes() -> None:
    with pytest.raises(TypeError):
        presented_id([], "cookie", NAME)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        presented_id([], None, NAME)  # type: ignore[arg-type]


# -- the other half: a response that leaves with no more than Vary -------------------------------------------


VARY = (b"vary", b"Cookie")


def start(*headers: Any) -> dict[str, Any]:
    return {"type": "http.response.start", "status": 200, "headers": list(headers)}


@pytest.fixture
def manager() -> Manager:
    return Manager(3600, MemoryStorage())


@pytest.fixture
def session(manager: Manager) -> Session:
    """A stored session that was looked at and changed."""
    with manager.new() as made:
        made["n"] = 1
    found = manager.new(made.id)
    found["n"] += 1
    return found


def test_a_plain_response_leaves_as_a_copy_with_vary(manager: Manager, session: Session) -> None:
    message = start((b"content-type", b"text/plain"))
    dressed = close_plain(session, message, VARY)
    assert dressed == start((b"content-type", b"text/plain"), VARY)
    assert message == start((b"content-type", b"text/plain"))
    assert manager.new(session.id)["n"] == 2
    with pytest.raises(SessionClosed):
        session["n"] = 3


def test_a_session_that_nobody_looked_at_leaves_the_message_alone(manager: Manager) -> None:
    session, message = manager.new(), start()
    assert close_plain(session, message, VARY) is message
    with pytest.raises(SessionClosed):
        session["n"] = 3


@pytest.mark.parametrize(
    "message",
    [
        start((b"vary", b"Accept")),
        start((b"VARY", b"*")),
        start((b"Vary", b"Cookie")),
        start((b"very", b"1")),  # looked at closely, and then it gets its Vary
        start([b"a", b"b"]),
        start(("a", "b")),
        start((b"a",)),
        {"type": "http.response.start", "status": 200},
        {"type": "http.response.start", "status": 200, "headers": ((b"a", b"b"),)},
        UserDict(start()),
    ],
    ids=repr,
)
def test_what_is_not_plain_is_left_to_the_careful_way(
    manager: Manager, session: Session, message: Any
) -> None:
    before = repr(message)
    assert close_plain(session, message, VARY) is None
    assert repr(message) == before and manager.new(session.id)["n"] == 2  # it is committed all the same


@pytest.mark.parametrize("end", ["begin", "rotate", "destroy"])
def test_a_response_that_hands_out_or_takes_back_an_id_is_not_plain(
    manager: Manager, session: Session, end: str
) -> None:
    if end == "begin":
        session = manager.new()
        session["n"] = 1
    elif end == "rotate":
        session.regenerate_id()
    else:
        session.destroy()
    assert close_plain(session, start(), VARY) is None


def test_without_a_vary_nothing_is_plain(session: Session) -> None:
    assert close_plain(session, start(), None) is None


def test_a_commit_that_fails_raises_and_the_session_stays_open(session: Session) -> None:
    session["n"] = [object()]
    with pytest.raises(NotSerializable):
        close_plain(session, start(), VARY)
    session["n"] = 3


def test_only_a_session_can_be_closed() -> None:
    for other in (None, {}):
        with pytest.raises(TypeError):
            close_plain(other, start(), VARY)  # type: ignore[arg-type]


@pytest.mark.parametrize("other", [None, {}])
def test_an_exchange_is_one_of_a_session(other: Any) -> None:
    with pytest.raises(TypeError):
        Exchange(None, other, False, {}, print)
