"""Client: commands to Redis and their replies, within one deadline and with our own errors. No knowledge of sessions.

Everything takes a `slot_key`: the key that says which node of a cluster is meant (all keys of one call must share its
slot; elsewhere it is ignored). Every method has an awaited twin with an "a" before its name; both sides live in one
object and may be used by any number of threads and event loops at once.

Errors of all methods:
    StorageUnavailable    not reached, no answer within the deadline, connection lost, server loading, failing over ...
                          Whether the commands were executed is then unknown, as after any lost answer.
    StorageFull           the server has no memory for this write (OOM)
    StorageMisconfigured  password, ACL, TLS, database number, wrong kind of server: waiting will not help
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from cysession.errors import StorageUnavailable

from .wire import Argument, ErrorReply, Reply, Script, explain, pack, pack_many, strict

__all__ = ["Client"]


class Client:
    """Args:
    source: a URL (redis:// rediss:// unix:// redis+cluster:// redis+sentinel://) or a client or pool of
        redis-py, sync or asyncio, whose settings are taken over (its connections are not).
    timeout: seconds that a call may take in all: connecting, waiting, a retry.
    """

    def __init__(self, source: Any, *, timeout: float = 0.25) -> None:
        import redis
        import redis.asyncio

        self._timeout = timeout
        self._pool: Any = redis.ConnectionPool.from_url(source, protocol=2, socket_timeout=timeout)
        self._source = source
        self._apools: dict[Any, Any] = {}

    @property
    def is_cluster(self) -> bool:
        """Whether keys live on different nodes, so that a command may only name keys of one slot."""
        return False

    # --- packed commands: what everything else is made of -------------------------------------------------------

    def call_packed(self, slot_key: bytes, packed: bytes, *, retry: bool = False) -> Reply:
        """One command that `wire.pack` or a `wire.Template` has packed."""
        return self.call_packed_many(slot_key, packed, 1, retry=retry)[0]

    def call_packed_many(
        self, slot_key: bytes, packed: bytes, count: int, *, retry: bool = False, raise_errors: bool = True
    ) -> list[Reply]:
        """`count` commands packed one after the other: one write, one round trip, `count` replies."""
        import redis

        replies: list[Reply] = []
        connection: Any = self._pool.get_connection()
        try:
            connection.send_packed_command((packed,))
            for _ in range(count):
                try:
                    replies.append(connection.read_response())
                except redis.ResponseError as error:
                    code = "NOSCRIPT" if isinstance(error, redis.exceptions.NoScriptError) else ""
                    replies.append(ErrorReply(f"{code} {error}".strip()))
        except redis.RedisError:
            connection.disconnect()
            raise StorageUnavailable from None
        except BaseException:
            connection.disconnect()
            raise
        finally:
            self._pool.release(connection)
        return strict(replies) if raise_errors else replies

    async def acall_packed(self, slot_key: bytes, packed: bytes, *, retry: bool = False) -> Reply:
        """call_packed, awaited."""
        return (await self.acall_packed_many(slot_key, packed, 1, retry=retry))[0]

    async def acall_packed_many(
        self, slot_key: bytes, packed: bytes, count: int, *, retry: bool = False, raise_errors: bool = True
    ) -> list[Reply]:
        """call_packed_many, awaited."""
        import redis
        import redis.asyncio

        loop = asyncio.get_running_loop()
        pool = self._apools.get(loop)
        if pool is None:
            pool = self._apools[loop] = redis.asyncio.ConnectionPool.from_url(
                self._source, protocol=2, socket_timeout=self._timeout, max_connections=1000
            )
        replies: list[Reply] = []
        connection = await pool.get_connection()
        try:
            await connection.send_packed_command([packed])
            for _ in range(count):
                try:
                    replies.append(await connection.read_response())
                except redis.ResponseError as error:
                    code = "NOSCRIPT" if isinstance(error, redis.exceptions.NoScriptError) else ""
                    replies.append(ErrorReply(f"{code} {error}".strip()))
        except redis.RedisError:
            await connection.disconnect()
            raise StorageUnavailable from None
        except BaseException:
            await connection.disconnect()
            raise
        finally:
            await pool.release(connection)
        return strict(replies) if raise_errors else replies

    # --- commands -----------------------------------------------------------------------------------------------

    def call(self, slot_key: bytes, *command: Argument, retry: bool = False) -> Reply:
        """One command to the node of `slot_key`.

        retry: the command may be executed twice without harm, so it is sent once more, within the deadline, if its
        connection is lost. Without it the command is sent again only where it certainly was not executed.
        """
        return self.call_packed(slot_key, pack(*command), retry=retry)

    async def acall(self, slot_key: bytes, *command: Argument, retry: bool = False) -> Reply:
        """call, awaited."""
        return await self.acall_packed(slot_key, pack(*command), retry=retry)

    def call_many(
        self,
        slot_key: bytes,
        commands: Sequence[Sequence[Argument]],
        *,
        retry: bool = False,
        raise_errors: bool = True,
    ) -> list[Reply]:
        """Several commands to one node: one write, one round trip, no transaction.

        raise_errors: raise the first error reply (all commands have then been executed or refused one by one);
        False: return `ErrorReply` objects in their places, for `wire.explain`.
        """
        if not commands:
            return []
        packed = pack_many(commands)
        return self.call_packed_many(slot_key, packed, len(commands), retry=retry, raise_errors=raise_errors)

    async def acall_many(
        self,
        slot_key: bytes,
        commands: Sequence[Sequence[Argument]],
        *,
        retry: bool = False,
        raise_errors: bool = True,
    ) -> list[Reply]:
        """call_many, awaited."""
        if not commands:
            return []
        packed = pack_many(commands)
        return await self.acall_packed_many(
            slot_key, packed, len(commands), retry=retry, raise_errors=raise_errors
        )

    # --- scripts ------------------------------------------------------------------------------------------------

    def run_script(
        self, script: Script, keys: Sequence[bytes], args: Sequence[Argument] = (), *, retry: bool = False
    ) -> Reply:
        """A script on the node of its first key: by digest, and whole if the server does not know it."""
        packed = script.by_digest(keys, args)
        (reply,) = self.call_packed_many(keys[0], packed, 1, retry=retry, raise_errors=False)
        if type(reply) is ErrorReply:
            if reply.code != "NOSCRIPT":
                raise explain(reply) from None
            return self.call_packed(keys[0], script.by_source(keys, args), retry=retry)
        return reply

    async def arun_script(
        self, script: Script, keys: Sequence[bytes], args: Sequence[Argument] = (), *, retry: bool = False
    ) -> Reply:
        """run_script, awaited."""
        packed = script.by_digest(keys, args)
        (reply,) = await self.acall_packed_many(keys[0], packed, 1, retry=retry, raise_errors=False)
        if type(reply) is ErrorReply:
            if reply.code != "NOSCRIPT":
                raise explain(reply) from None
            return await self.acall_packed(keys[0], script.by_source(keys, args), retry=retry)
        return reply

    # --- the end ------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the connections of the sync side, and those of event loops that are not running."""
        self._pool.disconnect()

    async def aclose(self) -> None:
        """Close the connections of the running event loop, and those of the sync side."""
        pool = self._apools.pop(asyncio.get_running_loop(), None)
        if pool is not None:
            await pool.disconnect()
        self.close()
