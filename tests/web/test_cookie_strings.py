"""Cookie header in, Set-Cookie out: RFC 6265bis and nothing cleverer (V9, S9, S11-S14, S16-S18)."""

from __future__ import annotations

import re
import time
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cysession.cookies import DEFAULT_NAME, MAX_CANDIDATES, SessionCookie, find_values, without_prefix
from tests.web.browser import Jar

ID = "kX9-" + "A" * 39


# -- parsing ----------------------------------------------------------------------------------------------


def by_the_standard(header: bytes, name: bytes) -> list[bytes]:
    """RFC 6265bis 5.6 read aloud, for every pair of the header; slow and obvious."""
    values = []
    for pair in header.split(b";"):
        key, equals, value = pair.partition(b"=")
        if equals and key.strip(b" \t") == name:
            values.append(value.strip(b" \t"))
    return values


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (b"id=abc", [b"abc"]),
        (b"a=1; id=abc; b=2", [b"abc"]),
        (b"a=1;id=abc;b=2", [b"abc"]),
        (b"  id \t= \tabc\t ; b=2", [b"abc"]),
        (b"id=abc;", [b"abc"]),
        (b"id=", [b""]),
        (b"id=a=b", [b"a=b"]),
        (b'id="abc"', [b'"abc"']),  # quotes are part of the value
        (b"id=%61", [b"%61"]),  # and nothing is percent-decoded
        (b"id=caf\xc3\xa9", [b"caf\xc3\xa9"]),
        (b"id=a b", [b"a b"]),
        (b"id=a,b", [b"a,b"]),  # a comma separates nothing
        (b"id=1; id=2; id=3", [b"1", b"2", b"3"]),
        (b"", []),
        (b";;; ; =", []),
        (b"id", []),
        (b"id; id=2", [b"2"]),
        (b"xid=1; idx=2; ID=3; i d=4; id id=5; x id=6", []),
    ],
)
def test_V9_pairs_split_at_semicolons_and_names_match_exactly(header: bytes, expected: list[bytes]) -> None:
    assert find_values(header, b"id", limit=9) == expected == by_the_standard(header, b"id")


@pytest.mark.parametrize(
    "neighbour",
    [
        b'x={"k":1}',
        b"a b=c",
        b"$bad",
        b"=",
        b"x=\\\\\\",
        b'x="open',
        b"\xff\xfe=\x00",
        b"x=a,b",
        b"a=b=c",
        b"[]",
    ],
)
def test_V9_a_neighbours_cookie_never_hides_ours(neighbour: bytes) -> None:
    assert find_values(neighbour + b"; id=abc", b"id") == [b"abc"]
    assert find_values(b"id=abc; " + neighbour, b"id") == [b"abc"]


@pytest.mark.parametrize(
    "forged", [b"%5f_Host-id=evil", b"__Host%2Did=evil", b"__host-id=evil", b'"__Host-id"=evil']
)
def test_V9_a_name_is_never_decoded_into_ours(forged: bytes) -> None:
    assert find_values(forged, b"__Host-id") == []


@pytest.mark.parametrize(
    "forged", [b"=__Host-id=evil", b" =__Host-id=evil", b"__Host-id", b"a=1; =__Host-id=evil"]
)
def test_S18_a_nameless_cookie_never_takes_our_name(forged: bytes) -> None:
    assert find_values(forged, b"__Host-id") == []


def test_S16_at_most_four_candidates_are_handed_out() -> None:
    header = b"; ".join(b"id=%d" % n for n in range(10_000))
    assert find_values(header, b"id") == [b"0", b"1", b"2", b"3"] and MAX_CANDIDATES == 4


@given(st.binary(max_size=60), st.sampled_from([b"id", b"__Host-id", b"aa", b"=", b"i"]))
def test_V9_any_bytes_parse_as_the_standard_says(header: bytes, name: bytes) -> None:
    if name != b"=":  # never a configured name; here only to see that nothing is raised
        assert find_values(header, name, limit=99) == by_the_standard(header, name)
    find_values(header, name)


@given(
    st.lists(
        st.sampled_from([b"id", b"i", b"d", b"=", b";", b" ", b"\t", b"x", b'"', b"id=v", b"; "]), max_size=24
    )
)
def test_V9_near_misses_parse_as_the_standard_says(pieces: list[bytes]) -> None:
    header = b"".join(pieces)
    assert find_values(header, b"id", limit=99) == by_the_standard(header, b"id")


HOSTILE = {
    "backslashes": lambda size: b"\\" * size,
    "semicolons": lambda size: b";" * size,
    "names": lambda size: b"__Host-id" * (size // 9),
    "bare names": lambda size: b"__Host-id;" * (size // 10),
    "nearly names": lambda size: b"__Host-i" * (size // 8),
    "blanks before": lambda size: b"x" + b" " * size + b"__Host-id=1",
    "blanks after": lambda size: b"__Host-id" + b" " * size + b"x",
    "blanks around": lambda size: b" \t__Host-id \tx;" * (size // 15),
    "quotes": lambda size: b'x="' + b'\\"' * (size // 2),
}


@pytest.mark.parametrize("shape", HOSTILE)
def test_V9_parsing_is_linear_up_to_512_kB(shape: str) -> None:
    def seconds(size: int) -> float:
        header, best = HOSTILE[shape](size), 1.0
        for _ in range(5):
            start = time.perf_counter()
            find_values(header, b"__Host-id")
            best = min(best, time.perf_counter() - start)
        return best

    small, large = seconds(64 * 1024), seconds(512 * 1024)
    assert large < 0.2
    assert large < 8 * 4 * max(small, 1e-5)  # 8 times the input; quadratic would cost 64 times


# -- formatting -------------------------------------------------------------------------------------------

GOLDEN: list[tuple[dict[str, Any], bytes, bytes]] = [
    (
        {},
        b"__Host-id=V; Path=/; Secure; HttpOnly; SameSite=Lax",
        b"__Host-id=; Path=/; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=0; "
        b"Secure; HttpOnly; SameSite=Lax",
    ),
    (
        {"name": "id", "secure": False},
        b"id=V; Path=/; HttpOnly; SameSite=Lax",
        b"id=; Path=/; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=0; HttpOnly; SameSite=Lax",
    ),
    (
        {
            "name": "__Secure-id",
            "domain": ".Example.COM",
            "path": "/app",
            "samesite": "strict",
            "max_age": 3600,
        },
        b"__Secure-id=V; Domain=example.com; Path=/app; Max-Age=3600; Secure; HttpOnly; SameSite=Strict",
        b"__Secure-id=; Domain=example.com; Path=/app; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=0; "
        b"Secure; HttpOnly; SameSite=Strict",
    ),
    (
        {"samesite": "None", "partitioned": True},
        b"__Host-id=V; Path=/; Secure; HttpOnly; SameSite=None; Partitioned",
        b"__Host-id=; Path=/; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=0; "
        b"Secure; HttpOnly; SameSite=None; Partitioned",
    ),
    (
        {"name": "__Host-Http-id"},
        b"__Host-Http-id=V; Path=/; Secure; HttpOnly; SameSite=Lax",
        b"__Host-Http-id=; Path=/; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=0; "
        b"Secure; HttpOnly; SameSite=Lax",
    ),
    (
        {"name": "id", "httponly": False, "max_age": timedelta(days=400)},
        b"id=V; Path=/; Max-Age=34560000; Secure; SameSite=Lax",
        b"id=; Path=/; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=0; Secure; SameSite=Lax",
    ),
]


@pytest.mark.parametrize(("options", "set_line", "delete_line"), GOLDEN)
def test_S11_S13_golden_set_cookie_strings(
    options: dict[str, Any], set_line: bytes, delete_line: bytes
) -> None:
    cookie = SessionCookie(**options)
    assert cookie.set("V") == set_line
    assert cookie.delete() == delete_line


@pytest.mark.parametrize("options", [options for options, _, _ in GOLDEN])
def test_S13_a_browser_keeps_what_is_set_and_forgets_what_is_deleted(options: dict[str, Any]) -> None:
    cookie, jar = SessionCookie(**options), Jar(host="www.example.com")
    jar.receive(cookie.set(ID))
    assert jar.header("/app") == f"{cookie.name}={ID}".encode()
    jar.receive(cookie.delete())
    assert jar.header("/app") == b"" and not jar.refused


def test_S19_without_max_age_the_cookie_ends_with_the_browser() -> None:
    line = SessionCookie().set(ID)
    assert b"Max-Age" not in line and b"Expires" not in line


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"secure": False}, "without Secure"),  # S9: the default name promises https
        ({"domain": "example.com"}, "with a Domain"),
        ({"path": "/app"}, "Path other than /"),
        ({"name": "__HOST-id", "secure": False}, "without Secure"),
        ({"name": "__hOsT-id", "domain": "example.com"}, "with a Domain"),
        ({"name": "__SECURE-id", "secure": False}, "without Secure"),
        ({"name": "__Http-id", "httponly": False}, "without HttpOnly"),
        ({"name": "__host-HTTP-id", "httponly": False}, "without HttpOnly"),
        ({"name": "__Host-Http-id", "path": "/x"}, "Path other than /"),
        ({"name": "__Host-"}, "prefix without a name"),
        ({"name": ""}, "not a token"),
        ({"name": "a b"}, "not a token"),
        ({"name": "a=b"}, "not a token"),
        ({"name": "a;b"}, "not a token"),
        ({"name": "a\r\nSet-Cookie: x"}, "not a token"),
        ({"name": "id\n"}, "not a token"),
        ({"name": "\u0131d"}, "not a token"),
        ({"name": "a" * 257}, "not a token"),
        ({"name": b"id"}, "not a token"),
        ({"samesite": "none", "secure": False, "name": "id"}, "SameSite=None without Secure"),
        ({"samesite": "sometimes"}, "samesite"),
        ({"samesite": ""}, "samesite"),
        ({"samesite": None}, "samesite"),
        ({"samesite": "Lax\r\n"}, "samesite"),
        ({"partitioned": True, "secure": False, "name": "id"}, "Partitioned without Secure"),
        ({"name": "id", "path": ""}, "path"),
        ({"name": "id", "path": "app"}, "path"),
        ({"name": "id", "path": "/\r\nX: y"}, "path"),
        ({"name": "id", "path": "/a;b"}, "path"),
        ({"name": "id", "path": "/a,b"}, "path"),
        ({"name": "id", "path": "/\0"}, "path"),
        ({"name": "id", "path": "/caf\xe9"}, "path"),
        ({"name": "id", "path": "/" + "a" * 1024}, "path"),
        ({"name": "id", "domain": ""}, "domain"),
        ({"name": "id", "domain": "https://example.com"}, "domain"),
        ({"name": "id", "domain": "example.com:80"}, "domain"),
        ({"name": "id", "domain": "a..b"}, "domain"),
        ({"name": "id", "domain": "-a.example"}, "domain"),
        ({"name": "id", "domain": "example.com\n"}, "domain"),
        ({"name": "id", "domain": "b\xfccher.example"}, "domain"),
        ({"name": "id", "domain": "a" * 64 + ".example"}, "domain"),
        ({"name": "id", "domain": "a." * 127 + "example"}, "domain"),
        ({"max_age": -1}, "max-age"),
        ({"max_age": 0.4}, "max-age"),
        ({"max_age": 1e9}, "max-age"),
        ({"max_age": 3600.0}, "max-age"),
        ({"max_age": float("nan")}, "max-age"),
        ({"max_age": True}, "max-age"),
        ({"max_age": "3600"}, "max-age"),
        ({"max_age": 34_560_001}, "max-age"),
        ({"max_age": 2**63}, "max-age"),
        ({"max_age": timedelta.max}, "max-age"),
        ({"max_age": timedelta(milliseconds=400)}, "max-age"),
        ({"max_age": timedelta(seconds=-1)}, "max-age"),
    ],
)
def test_S9_S11_S12_S14_what_browsers_refuse_raises_at_construction(
    options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(complaint)):
        SessionCookie(**options)


@pytest.mark.parametrize(
    "value", ["a b", "a;b", "a,b", 'a"b', "a\\b", "a\r\nb", "\0", "\x7f", "caf\xe9", "\ud800", "a\tb"]
)
def test_S12_a_value_that_a_header_could_not_carry_raises_without_being_quoted(value: str) -> None:
    with pytest.raises(ValueError, match="printable ASCII") as caught:
        SessionCookie().set(value)
    assert value not in str(caught.value)


def test_S14_name_and_value_fit_into_4096_octets() -> None:
    room = 4096 - len(DEFAULT_NAME)
    assert SessionCookie().set("a" * room)
    with pytest.raises(ValueError, match="4096"):
        SessionCookie().set("a" * (room + 1))


TOKEN = "!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
OCTETS = "".join(chr(c) for c in range(0x21, 0x7F) if chr(c) not in '",;\\')
SET_COOKIE = re.compile(
    rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+=[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*"
    rb"(; Domain=[a-z0-9.-]+)?; Path=/[ -+\--:<-~]*(; Max-Age=(0|[1-9][0-9]*))?"
    rb"(; Secure)?(; HttpOnly)?; SameSite=(Lax|Strict|None)(; Partitioned)?"
)


@given(
    name=st.text(TOKEN, min_size=1, max_size=20),
    value=st.text(OCTETS, max_size=50),
    path=st.text(max_size=10).map(lambda text: "/" + text),
    domain=st.none() | st.text(max_size=10) | st.just("shop.example"),
    secure=st.booleans(),
    samesite=st.sampled_from(["Lax", "strict", "NONE"]),
    partitioned=st.booleans(),
    max_age=st.none() | st.integers(),
)
def test_S12_what_comes_out_matches_the_grammar_and_a_browser_takes_it(
    name: str, value: str, **options: Any
) -> None:
    try:
        cookie = SessionCookie(name, **options)
    except ValueError:
        return
    line = cookie.set(value)
    assert SET_COOKIE.fullmatch(line)
    if options["domain"] in (None, "shop.example"):
        jar = Jar()
        jar.receive(line)
        assert not jar.refused
        if options["max_age"] != 0:
            assert find_values(jar.header(options["path"]), cookie.key) == [value.encode()]
        jar.receive(cookie.delete())
        assert jar.header(options["path"]) == b"" and not jar.refused


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("__Host-id", "id"),
        ("__SECURE-a", "a"),
        ("__host-http-b", "b"),
        ("__Http-c", "c"),
        ("sid", "sid"),
        ("_Host-x", "_Host-x"),
    ],
)
def test_S9_a_name_loses_the_prefix_that_plain_http_cannot_keep(name: str, plain: str) -> None:
    assert without_prefix(name) == plain
