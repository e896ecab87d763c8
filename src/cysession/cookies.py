"""Cookie header strings and nothing else: find the values of one name, format one Set-Cookie.

`http.cookies` is not used: one odd neighbour (`x={"k":1}`) makes it forget every cookie, backslashes cost it
quadratic time, it decodes what no browser encoded, and it lets control characters out. Here a Cookie header
is bytes, split at `;` only; names are compared exactly and values are handed out as they came (RFC 6265bis).
What goes out is checked once, when the cookie is configured.
"""

import re
from datetime import timedelta
from typing import Final

__all__ = [
    "DEFAULT_NAME",
    "MAX_AGE_LIMIT",
    "MAX_CANDIDATES",
    "InsecureCookieWarning",
    "SessionCookie",
    "find_values",
    "without_prefix",
]

DEFAULT_NAME: Final = "__Host-id"
MAX_CANDIDATES: Final = 4  # a browser can hold twins of a name (other paths and domains); more is an attack
MAX_AGE_LIMIT: Final = 34_560_000  # 400 days: browsers cut anything longer down to this
MAX_PAIR: Final = 4096  # name and value together; browsers drop a larger cookie without a word
MAX_ATTRIBUTE: Final = 1024  # browsers ignore a longer Path

_BLANKS: Final = b" \t"
_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,256}")
_PATH: Final = re.compile(r"/[\x20-\x2b\x2d-\x3a\x3c-\x7e]*")  # no control characters, no `;`, no `,`
_LABEL: Final = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST: Final = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")
_OCTETS: Final = bytes(c for c in range(0x21, 0x7F) if c not in b'",;\\')
_SAME_SITE: Final = {"lax": "Lax", "strict": "Strict", "none": "None"}
# Browsers compare these prefixes without regard to case, so we do too. The longest stand first.
_PREFIXES: Final = ("__host-http-", "__host-", "__secure-", "__http-")


# -- what a browser sends ---------------------------------------------------------------------------------


def find_values(header: bytes, name: bytes, limit: int = MAX_CANDIDATES) -> list[bytes]:
    """The values of the cookies called `name` in header order, at most `limit`. Never raises.

    Linear: a pair in which `name` shows up is looked at once and left at its `;`, and a run of blanks
    belongs to one pair, so no input makes it read the same bytes again and again.
    """
    values: list[bytes] = []
    found = header.find(name)
    while found >= 0:
        end = header.find(b";", found)
        key, equals, value = (header[found:end] if end >= 0 else header[found:]).partition(b"=")
        if (
            (key == name or key.rstrip(_BLANKS) == name)
            and equals
            and (not found or header.startswith(b"; ", found - 2) or _starts_a_pair(header, found))
        ):
            values.append(value.strip(_BLANKS))
            if len(values) == limit:
                break
        if end < 0:
            break
        found = header.find(name, end)
    return values


def _starts_a_pair(header: bytes, start: int) -> bool:
    while start and header[start - 1] in _BLANKS:
        start -= 1
    return not start or header[start - 1] == 0x3B


# -- what a server sends ----------------------------------------------------------------------------------


class InsecureCookieWarning(UserWarning):
    """An adapter was made with `insecure=True`: ids travel readable over plain http. With `httponly=False`: scripts can
    read them."""


class SessionCookie:
    """One cookie's name and attributes, checked at construction; `set` and `delete` format its Set-Cookie.

    A browser refuses a wrong combination silently, so each one raises ValueError here, where a developer
    sees it.
    """

    __slots__ = ("_attributes", "_delete", "_head", "key", "max_age", "name")

    def __init__(
        self,
        name: str = DEFAULT_NAME,
        *,
        domain: str | None = None,
        path: str = "/",
        secure: bool = True,
        httponly: bool = True,
        samesite: str = "Lax",
        partitioned: bool = False,
        max_age: int | timedelta | None = None,
    ) -> None:
        _check_name(name)
        domain = _checked_domain(domain)
        _check_path(path)
        samesite = _checked_samesite(samesite, secure)
        if partitioned and not secure:
            raise ValueError(
                "browsers refuse Partitioned without Secure: serve it over https or leave it out"
            )
        _check_prefix(name, domain, path, secure, httponly)
        seconds = _checked_max_age(max_age)

        scope = (f"; Domain={domain}" if domain else "") + f"; Path={path}"
        lifetime = "" if seconds is None else f"; Max-Age={seconds}"
        flags = "; Secure" if secure else ""
        flags += "; HttpOnly" if httponly else ""
        flags += f"; SameSite={samesite}"
        flags += "; Partitioned" if partitioned else ""
        past = "; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=0"
        self.name = name
        self.key = name.encode("ascii")
        self.max_age = seconds  # None: the cookie ends with the browser
        self._head = self.key + b"="
        self._attributes = (scope + lifetime + flags).encode("ascii")
        self._delete = self._head + (scope + past + flags).encode("ascii")

    def set(self, value: str) -> bytes:
        """The Set-Cookie value that hands out `value`; ValueError if it would not come back as it is."""
        octets = value.encode("utf-8", "surrogatepass")  # what is not ASCII is refused with the rest below
        if octets.translate(None, _OCTETS):
            raise ValueError(
                f'the value for cookie {self.name} may hold only printable ASCII without blanks and " , ; \\'
            )
        if len(self.key) + len(octets) > MAX_PAIR:
            raise ValueError(f"browsers drop cookie {self.name}: it has more than {MAX_PAIR} octets")
        return self._head + octets + self._attributes

    def delete(self) -> bytes:
        """The Set-Cookie value that makes a browser forget the cookie.

        It repeats every attribute: Domain and Path say which cookie is meant, and without Secure or
        Partitioned a browser will not touch a prefixed or partitioned one.
        """
        return self._delete

    def __repr__(self) -> str:
        return f"<SessionCookie {self.name}{self._attributes.decode('ascii')}>"


def without_prefix(name: str) -> str:
    """`name` without a prefix that promises https to the browser."""
    lowered = name.lower()
    for prefix in _PREFIXES:
        if lowered.startswith(prefix):
            return name[len(prefix) :]
    return name


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not _TOKEN.fullmatch(name):
        raise ValueError(
            f"cookie name {name!r:.80} is not a token: use 1 to 256 ASCII letters, digits and !#$%&'*+-.^_`|~"
        )
    if not without_prefix(name):
        raise ValueError(f"cookie name {name!r} is a prefix without a name after it")


def _checked_domain(domain: object) -> str | None:
    if domain is None:
        return None
    host = domain.lower().removeprefix(".") if isinstance(domain, str) else ""  # a leading dot means nothing
    if not _HOST.fullmatch(host):
        raise ValueError(
            f"cookie domain {domain!r:.80} is not a host name: no scheme, no port, no path, only ASCII"
        )
    return host


def _check_path(path: object) -> None:
    if not isinstance(path, str) or not _PATH.fullmatch(path) or len(path) > MAX_ATTRIBUTE:
        raise ValueError(
            f"cookie path {path!r:.80} must start with / and hold printable ASCII without ; and , "
            f"({MAX_ATTRIBUTE} characters at most)"
        )


def _checked_samesite(samesite: object, secure: bool) -> str:
    known = _SAME_SITE.get(samesite.lower()) if isinstance(samesite, str) else None
    if known is None:
        raise ValueError(f"samesite={samesite!r:.80} is unknown: use 'Lax', 'Strict' or the string 'None'")
    if known == "None" and not secure:
        raise ValueError("browsers refuse SameSite=None without Secure: use https or samesite='Lax'")
    return known


def _check_prefix(name: str, domain: str | None, path: str, secure: bool, httponly: bool) -> None:
    lowered = name.lower()
    if not lowered.startswith(_PREFIXES):
        return
    if not secure:
        raise ValueError(
            f"browsers refuse cookie {name} without Secure: plain http needs a name without prefix"
        )
    if lowered.startswith(("__http-", "__host-http-")) and not httponly:
        raise ValueError(f"browsers refuse cookie {name} without HttpOnly: keep httponly=True")
    if lowered.startswith("__host-") and (domain is not None or path != "/"):
        raise ValueError(f"browsers refuse cookie {name} with a Domain or a Path other than /: use __Secure-")


def _checked_max_age(max_age: object) -> int | None:
    if max_age is None:
        return None
    seconds = max_age
    if isinstance(max_age, timedelta) and not max_age % timedelta(seconds=1):
        seconds = max_age // timedelta(seconds=1)
    if type(seconds) is not int or not 0 <= seconds <= MAX_AGE_LIMIT:
        raise ValueError(
            f"cookie max-age {max_age!r:.80} must be whole seconds from 0 to {MAX_AGE_LIMIT} (400 days), "
            "or None: the cookie ends with the browser"
        )
    return seconds
