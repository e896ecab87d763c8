"""The Redis storages keep the contract on a real server, in one process and in several."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import ClassVar

import pytest
import redis

from cysession import RedisHashStorage, RedisStorage, Storage
from cysession.ids import storage_key
from cysession.testing import AsyncStorageContract, StorageContract
from cysession.testing.kit import Kit
from tests.redis.servers import RedisServer

pytestmark = pytest.mark.redis

PATIENCE = 5.0  # seconds: a machine that is busy with other tests is no failure


@pytest.fixture(scope="module", autouse=True)
def _server() -> Iterator[None]:
    with RedisServer() as InRedis.server:
        yield


class InRedis(Kit):
    shared_between_processes = True
    kind: ClassVar[type[RedisStorage]] = RedisStorage
    options: ClassVar[dict[str, int]] = {}
    server: ClassVar[RedisServer]

    def make_storage(self) -> Storage:
        self.server.flush()
        return self.kind(self.server.url, timeout=PATIENCE, **self.options)

    def raw_dump(self, storage: Storage) -> bytes:
        """Names and contents."""
        keys = self.server.ok("KEYS", "*")
        return b"".join(key + self.server.ok("DUMP", key) for key in keys)

    def corrupt_record(self, storage: Storage, session_id: str) -> bool:
        key = f"cysession:{storage_key(session_id)}"
        self.server.ok("SET", key, flipped(self.server.ok("GET", key)), "KEEPTTL")
        return True

    def out_of_order(self, storage: Storage) -> AbstractContextManager[object]:
        return refusing(self.server)


@contextmanager
def refusing(server: RedisServer) -> Iterator[None]:
    """Nothing gets through, and nothing of it lands later: every connection is closed, and no other is let in."""
    with redis.Redis(port=server.port, single_connection_client=True) as only:
        only.config_set("maxclients", 1)
        only.client_kill_filter(_type="normal", skipme=True)
        try:
            yield
        finally:
            only.config_set("maxclients", 10000)


class InHashes(InRedis):
    kind = RedisHashStorage

    def corrupt_record(self, storage: Storage, session_id: str) -> bool:
        key = f"cysession:hash:{storage_key(session_id)}"
        self.server.ok("HSET", key, "", flipped(self.server.ok("HGET", key, "")))
        return True


def flipped(raw: bytes) -> bytes:
    damaged = bytearray(raw)
    damaged[len(raw) // 2] ^= 0xFF
    return bytes(damaged)


class TestRedisStorage(InRedis, StorageContract):
    max_steps = 4


class TestRedisStorageAsync(InRedis, AsyncStorageContract):
    max_steps = 3


class TestRedisHashStorage(InHashes, StorageContract):
    max_steps = 3


class TestRedisHashStorageAsync(InHashes, AsyncStorageContract):
    max_steps = 3


# ---- with a near-cache, of which the contract shall notice nothing ------------------------------------


class Nearby(InRedis):
    options: ClassVar[dict[str, int]] = {"near_cache": 100}

    def corrupt_record(self, storage: Storage, session_id: str) -> bool:
        damaged = super().corrupt_record(storage, session_id)
        self.run(self._hear())
        return damaged

    def in_processes(self, *work: Callable[[], object]) -> None:
        super().in_processes(*work)
        self.run(self._hear())

    async def _hear(self) -> None:
        """The loop of a site runs all the time and hears of changes; the kit's rests between two steps. What the
        server has announced comes before its next answer."""
        assert isinstance(self.storage, RedisStorage)
        await self.storage._client.acall(b"", b"PING")


class TestNearCacheAsync(Nearby, AsyncStorageContract):
    max_steps = 3


class TestNearCacheOfHashesAsync(Nearby, InHashes, AsyncStorageContract):
    max_steps = 3
