"""A model of the rules by which a browser keeps cookies: RFC 6265bis 5.6-5.8, the name prefixes, CHIPS.

Written from the standard and not from `cysession.cookies`: what this model drops, a browser drops silently.
"""

from __future__ import annotations

from dataclasses import dataclass, field

WSP = " \t"


@dataclass
class Jar:
    """The cookies of one browser, seen from one page. `now` is seconds, set by the test."""

    host: str = "shop.example"
    https: bool = True
    now: int = 1_800_000_000
    cookies: dict[tuple[str, str, bool, str, bool], tuple[str, float | None, bool]] = field(
        default_factory=dict
    )
    refused: list[str] = field(default_factory=list)

    def receive(self, set_cookie: bytes) -> None:
        line = set_cookie.decode("latin-1")
        if any((ord(c) < 0x20 and c != "\t") or ord(c) == 0x7F for c in line):
            return self._refuse(line, "control character")
        pair, *attributes = line.split(";")
        name, equals, value = pair.partition("=")
        if not equals:
            name, value = "", pair
        name, value = name.strip(WSP), value.strip(WSP)
        if len(name) + len(value) > 4096 or not (name or value):
            return self._refuse(line, "size")
        found: dict[str, str] = {}
        for attribute in attributes:
            key, _, text = attribute.partition("=")
            if len(text.strip(WSP)) <= 1024:
                found[key.strip(WSP).lower()] = text.strip(WSP)

        secure, domain = "secure" in found, found.get("domain", "").removeprefix(".").lower()
        path = found.get("path", "/")
        path = path if path.startswith("/") else "/"
        if secure and not self.https:
            return self._refuse(line, "Secure over http")
        if domain and self.host != domain and not self.host.endswith("." + domain):
            return self._refuse(line, "foreign domain")
        if found.get("samesite", "").lower() == "none" and not secure:
            return self._refuse(line, "SameSite=None without Secure")
        if "partitioned" in found and not secure:
            return self._refuse(line, "Partitioned without Secure")
        lowered = name.lower() if name else value.lower()
        if lowered.startswith(("__secure-", "__http-", "__host-")) and not (secure and name):
            return self._refuse(line, "prefix without Secure or without a name")
        if lowered.startswith("__host-") and (domain or found.get("path") != "/"):
            return self._refuse(line, "__Host- with Domain or other Path")
        if lowered.startswith(("__http-", "__host-http-")) and "httponly" not in found:
            return self._refuse(line, "__Http- without HttpOnly")

        key = (name, domain or self.host, not domain, path, "partitioned" in found)
        if not self.https and any(k[0] == name and old[2] for k, old in self.cookies.items()):
            return self._refuse(line, "would hide a Secure cookie")
        ends: float | None = None
        if "max-age" in found:
            ends = self.now + int(found["max-age"]) if int(found["max-age"]) > 0 else float("-inf")
        elif "expires" in found:
            ends = float("-inf") if " 1970 " in found["expires"] else None
        self.cookies[key] = (value, ends, secure)
        return None

    def header(self, path: str = "/") -> bytes:
        """The Cookie header for a request of this page, longest path first."""
        live = [
            (key, value)
            for key, (value, ends, secure) in self.cookies.items()
            if (ends is None or ends > self.now)
            and (self.https or not secure)
            and _path_matches(path, key[3])
        ]
        live.sort(key=lambda item: -len(item[0][3]))
        return "; ".join(f"{key[0]}={value}" if key[0] else value for key, value in live).encode("latin-1")

    def _refuse(self, line: str, why: str) -> None:
        self.refused.append(f"{why}: {line}")


def _path_matches(request: str, cookie: str) -> bool:
    return request == cookie or (
        request.startswith(cookie) and (cookie.endswith("/") or request[len(cookie)] == "/")
    )
