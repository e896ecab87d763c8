"""The Redis storages where there is no fork() and no poll(): a whole cycle, and a link that has rested."""

from __future__ import annotations

from tests.redis.servers import RedisServer
from tests.unit.test_other_systems import run_without_posix

# Imported while everything is there: they have branches of their own for Windows.
LIBRARIES = "import redis.asyncio, redis.cluster, redis.sentinel, hiredis\n"


def test_a_session_lives_in_redis_without_posix(server: RedisServer) -> None:
    out = run_without_posix(
        f"""
        import asyncio
        from cysession import Manager, RedisHashStorage, RedisStorage
        from cysession.storage.redis import link

        link.STALE = -1.0  # every link has rested long enough to be looked at

        async def awaited(manager, token):
            async with manager.new(token) as session:
                return session["a"]

        for kind in (RedisStorage, RedisHashStorage):
            with Manager(60, kind({server.url!r}, prefix=kind.__name__)) as manager:
                with manager.new() as session:
                    session["a"] = [1]
                with manager.new(session.id) as again:
                    print(again["a"], asyncio.run(awaited(manager, session.id)))
        """,
        before=LIBRARIES,
    )
    assert out == "[1] [1]\n" * 2
