"""Encryption at rest: AES-256-GCM from the `cryptography` package, a ring of keys.

A sealed payload is the id of the key (8 bytes), a random nonce (12 bytes) and the ciphertext with its tag.
What it belongs to is authenticated with it: the header of the record (identity and deadlines), the key's
id and the storage key of the session, so the records of two users cannot be swapped, nor a deadline be
moved. The first key of the ring seals, every one opens. A random nonce allows some 2**32 records a key;
rotate keys before that.
"""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from cysession.errors import CorruptRecord, StorageMisconfigured

__all__ = ["Sealer"]

PURPOSE = b"cysession file record 1"
KEY_BYTES = 32
ID_BYTES = 8
NONCE_BYTES = 12


class Sealer:
    def __init__(self, keys: Sequence[bytes | str]) -> None:
        if find_spec("cryptography") is None:
            raise StorageMisconfigured("keys= needs `cryptography`; pip install cysession[crypto]")
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        if isinstance(keys, (bytes, str)):
            raise StorageMisconfigured("keys is a list of keys, the one that encrypts first: keys=[key]")
        self._refused: type[Exception] = InvalidTag
        self._ring: dict[bytes, Any] = {}
        for key in keys:
            secret = key.encode() if isinstance(key, str) else bytes(key)
            if len(secret) < KEY_BYTES:
                raise StorageMisconfigured(
                    f"a session key needs at least {KEY_BYTES} random bytes; "
                    'make one with: python -c "import secrets; print(secrets.token_urlsafe(32))"'
                )
            self._ring[_derive(secret, b"id")[:ID_BYTES]] = AESGCM(_derive(secret, b"key"))
        self._current = next(iter(self._ring))

    def seal(self, payload: bytes, context: bytes) -> bytes:
        nonce = os.urandom(NONCE_BYTES)
        box: bytes = self._ring[self._current].encrypt(nonce, payload, PURPOSE + self._current + context)
        return self._current + nonce + box

    def open(self, sealed: bytes, context: bytes) -> bytes:
        """The payload. Raises CorruptRecord unless a key of ours sealed just this for just this context."""
        name, nonce = sealed[:ID_BYTES], sealed[ID_BYTES : ID_BYTES + NONCE_BYTES]
        cipher = self._ring.get(name)
        if cipher is None or len(nonce) < NONCE_BYTES:
            raise CorruptRecord("a record sealed with a key that is not in the ring")
        try:
            payload: bytes = cipher.decrypt(nonce, sealed[ID_BYTES + NONCE_BYTES :], PURPOSE + name + context)
        except self._refused:
            pass
        else:
            return payload
        raise CorruptRecord("a record that was not sealed for this session")


def _derive(secret: bytes, use: bytes) -> bytes:
    """Independent bytes for each use of a secret, which may be of any length and not uniform."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=PURPOSE + b" " + use).derive(secret)
