"""Session ids: how they are made, recognised, named in a storage and named in a log.

A fresh id is 32 bytes of the operating system's random generator and nothing else. A presented id is
untrusted input: `well_formed` runs before any storage sees it. Storages that keep data outside the process
name a record by `storage_key`, a one-way hash, so no listing, backup or memory dump of theirs holds a usable
id. Logs and events name a session by `fingerprint`, which means nothing outside this process and its forks.
"""

import os
import re
from binascii import b2a_base64

__all__ = ["ID_BYTES", "MAX_LENGTH", "fingerprint", "locator", "new_id", "storage_key", "well_formed"]

ID_BYTES = 32
MAX_LENGTH = 128

_LOCATOR = "#"  # what ids never hold
_match = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_LENGTH}}}").fullmatch
_url_safe = bytes.maketrans(b"+/", b"-_")
_log_key = os.urandom(32)


def new_id() -> str:
    """A fresh id: 43 URL-safe characters, 256 random bits. Raises if the generator fails: no fallback."""
    # os.urandom itself: what `secrets` calls in the end, and it keeps no state that a fork could copy.
    return b2a_base64(os.urandom(ID_BYTES), newline=False).translate(_url_safe, b"=").decode("ascii")


def well_formed(session_id: object) -> bool:
    """Whether this could be an id at all: a str of 1 to 128 characters of A-Z a-z 0-9 _ -."""
    return isinstance(session_id, str) and _match(session_id) is not None


def storage_key(session_id: str, realm: str = "") -> str:
    """The name of a session's record in a storage: 64 hex digits, different in every realm.

    The realm's length is hashed before it, so no (realm, id) can be cut differently into another pair. A
    locator names what it was made from.
    """
    if session_id.startswith(_LOCATOR):
        return session_id[1:]
    name = realm.encode("utf-8", "surrogatepass")
    text = b"cysession:%d:%b:%b" % (len(name), name, session_id.encode("utf-8", "surrogatepass"))
    from hashlib import sha256  # here: it loads OpenSSL, and sessions in memory need no such name

    return sha256(text).hexdigest()


def locator(session_id: str, realm: str = "") -> str:
    """What the user index of a storage keeps in place of the id: "#" and the storage key."""
    return _LOCATOR + storage_key(session_id, realm)


def fingerprint(session_id: str) -> str:
    """8 hex digits that name this session in logs; keyed, so nobody can test guessed ids against a log."""
    from hashlib import blake2s

    return blake2s(session_id.encode("utf-8", "surrogatepass"), digest_size=4, key=_log_key).hexdigest()
