"""One test for both sides of a client: the blocking one, and the awaited one on asyncio and on uvloop."""

import asyncio
import threading
import traceback
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import uvloop

from cysession.storage.redis.client import Client
from cysession.storage.redis.wire import Argument, Script

__all__ = ["LOOPS", "SIDES", "Caller", "message"]

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}
SIDES = ("sync", *LOOPS)


class Caller:
    """A client as a test calls it, whichever side that means. Use it as a context manager: it closes."""

    def __init__(self, side: str, source: Any, **options: Any) -> None:
        options.setdefault("timeout", 1.0)  # tests that measure nothing shall not fail on a busy machine
        self.side = side
        self.client = Client(source, **options)
        self.runner = asyncio.Runner(loop_factory=LOOPS[side]) if side in LOOPS else None

    def __enter__(self) -> "Caller":
        return self

    def __exit__(self, *exc: object) -> None:
        if self.runner is not None:
            self.runner.run(self.client.aclose())
            self.runner.close()
            self.runner = None
        self.client.close()

    def await_(self, awaitable: Awaitable[Any]) -> Any:
        assert self.runner is not None

        async def run() -> Any:
            return await awaitable

        return self.runner.run(run())

    def call(self, *command: Argument, retry: bool = False) -> Any:
        key = command[1] if len(command) > 1 and isinstance(command[1], bytes) else b""
        if self.runner is None:
            return self.client.call(key, *command, retry=retry)
        return self.await_(self.client.acall(key, *command, retry=retry))

    def call_many(self, key: bytes, commands: list[tuple[Argument, ...]], **options: Any) -> list[Any]:
        if self.runner is None:
            return self.client.call_many(key, commands, **options)
        return self.await_(self.client.acall_many(key, commands, **options))  # type: ignore[no-any-return]

    def run_script(self, script: Script, key: bytes, *args: Argument) -> Any:
        packed = script(key, *args)
        if self.runner is None:
            return self.client.call_packed(key, packed)
        return self.await_(self.client.acall_packed(key, packed))

    def run_scripts(self, key: bytes, packed: list[bytes]) -> list[Any]:
        """In one batch; errors stand in their places."""
        arguments = key, b"".join(packed), len(packed)
        if self.runner is None:
            return self.client.call_packed_many(*arguments, raise_errors=False)
        return self.await_(  # type: ignore[no-any-return]
            self.client.acall_packed_many(*arguments, raise_errors=False)
        )

    def together(self, commands: Iterable[tuple[Argument, ...]], **options: Any) -> list[Any]:
        """All commands at once, from threads or tasks of their own; results or errors, in order."""
        wanted = list(commands)
        if self.runner is not None:

            async def all_of_them() -> list[Any]:
                calls = [self.client.acall(_key(command), *command, **options) for command in wanted]
                return await asyncio.gather(*calls, return_exceptions=True)

            return self.runner.run(all_of_them())
        results: list[Any] = [None] * len(wanted)

        def one(number: int) -> None:
            try:
                command = wanted[number]
                results[number] = self.client.call(_key(command), *command, **options)
            except Exception as error:
                results[number] = error

        threads = [threading.Thread(target=one, args=(n,)) for n in range(len(wanted))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


def _key(command: tuple[Argument, ...]) -> bytes:
    return command[1] if len(command) > 1 and isinstance(command[1], bytes) else b""


def message(error: BaseException) -> str:
    """All that a log could show of an error, its causes included."""
    return "".join(traceback.format_exception(error, chain=True)) + repr(error) + str(error)
