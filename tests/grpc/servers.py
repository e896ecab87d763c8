"""Real servers and a real client: one view behind every shape of call, without protoc.

A view is called with (request, context) for every response. On an event loop its result is awaited if it can be.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc

from cysession import Manager
from cysession.grpc import AioSessionInterceptor, SessionInterceptor

PATIENCE = 10.0  # seconds until a call that hangs is a failure
SERVICE = "shop.Counter"
SHAPES = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")

View = Callable[[bytes, Any], Any]


@dataclass
class Reply:
    """How a call ended."""

    responses: list[bytes]
    code: grpc.StatusCode
    details: str
    trailing: list[tuple[str, str | bytes]]

    def all(self, key: str = "x-session-id") -> list[str | bytes]:
        return [value for name, value in self.trailing if name == key]

    @property
    def session_id(self) -> str:
        """The id that the trailing metadata hand out, once."""
        (value,) = self.all()
        assert isinstance(value, str) and len(value) == 43
        return value


# -- the service ------------------------------------------------------------------------------------------


def blocking(view: View) -> dict[str, Any]:
    def unary_unary(request: bytes, context: Any) -> bytes:
        return view(request, context)

    def unary_stream(request: bytes, context: Any) -> Iterator[bytes]:
        for _ in range(2):
            yield view(request, context)

    def stream_unary(requests: Iterator[bytes], context: Any) -> bytes:
        return [view(request, context) for request in requests][-1]

    def stream_stream(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        for request in requests:
            yield view(request, context)

    return {
        "unary_unary": unary_unary,
        "unary_stream": unary_stream,
        "stream_unary": stream_unary,
        "stream_stream": stream_stream,
    }


def awaiting(view: View) -> dict[str, Any]:
    async def answer(request: bytes, context: Any) -> bytes:
        result = view(request, context)
        return await result if inspect.isawaitable(result) else result

    async def unary_stream(request: bytes, context: Any) -> Any:
        for _ in range(2):
            yield await answer(request, context)

    async def stream_unary(requests: Any, context: Any) -> bytes:
        return [await answer(request, context) async for request in requests][-1]

    async def stream_stream(requests: Any, context: Any) -> Any:
        async for request in requests:
            yield await answer(request, context)

    return {
        "unary_unary": answer,
        "unary_stream": unary_stream,
        "stream_unary": stream_unary,
        "stream_stream": stream_stream,
    }


def reading_and_writing(view: View) -> dict[str, Any]:
    """The other style of aio: the context reads and writes the messages."""
    shapes = awaiting(view)
    answer = shapes["unary_unary"]

    async def unary_stream(request: bytes, context: Any) -> None:
        for _ in range(2):
            await context.write(await answer(request, context))

    async def stream_unary(_: Any, context: Any) -> bytes:
        result = b""
        while (request := await context.read()) is not grpc.aio.EOF:
            result = await answer(request, context)
        return result

    async def stream_stream(_: Any, context: Any) -> None:
        while (request := await context.read()) is not grpc.aio.EOF:
            await context.write(await answer(request, context))

    return {
        **shapes,
        "unary_stream": unary_stream,
        "stream_unary": stream_unary,
        "stream_stream": stream_stream,
    }


def service(functions: dict[str, Any]) -> grpc.GenericRpcHandler:
    handlers = {
        shape: getattr(grpc, f"{shape}_rpc_method_handler")(function) for shape, function in functions.items()
    }
    return grpc.method_handlers_generic_handler(SERVICE, handlers)


# -- the servers ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def threaded(view: View, manager: Manager, options: dict[str, Any]) -> Iterator[int]:
    with ThreadPoolExecutor(8) as pool:
        server = grpc.server(pool, interceptors=[SessionInterceptor(manager, **options)])
        server.add_generic_rpc_handlers((service(blocking(view)),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield port
        finally:
            server.stop(0).wait(PATIENCE)


def on_a_loop(style: Callable[[View], dict[str, Any]]) -> Any:
    @contextlib.contextmanager
    def server(view: View, manager: Manager, options: dict[str, Any]) -> Iterator[int]:
        ports: list[int] = []
        up, down = threading.Event(), []

        async def serve() -> None:
            server = grpc.aio.server(interceptors=[AioSessionInterceptor(manager, **options)])
            server.add_generic_rpc_handlers((service(style(view)),))
            ports.append(server.add_insecure_port("127.0.0.1:0"))
            await server.start()
            stop = asyncio.Event()
            down.append((asyncio.get_running_loop(), stop))
            up.set()
            await stop.wait()
            await server.stop(0)

        thread = threading.Thread(target=asyncio.run, args=(serve(),))
        thread.start()
        assert up.wait(PATIENCE)
        try:
            yield ports[0]
        finally:
            loop, stop = down[0]
            loop.call_soon_threadsafe(stop.set)
            thread.join(PATIENCE)
            assert not thread.is_alive()

    return server


SERVERS: dict[str, Any] = {
    "threads": threaded,
    "aio": on_a_loop(awaiting),
    "aio, reading and writing": on_a_loop(reading_and_writing),
    "aio, plain functions": on_a_loop(blocking),
}


# -- the client -------------------------------------------------------------------------------------------


class Client:
    """Calls to one server, over one channel."""

    def __init__(self, port: int) -> None:
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}")

    def begin(self, shape: str, metadata: Any = (), requests: Any = (b"a", b"b")) -> Any:
        """The running call."""
        call = getattr(self.channel, shape)(f"/{SERVICE}/{shape}")
        argument = iter(requests) if shape.startswith("stream") else next(iter(requests))
        if shape.endswith("unary"):
            return call.future(argument, metadata=metadata, timeout=PATIENCE)
        return call(argument, metadata=metadata, timeout=PATIENCE)

    def call(self, shape: str = "unary_unary", session_id: str = "", *, metadata: Any = None) -> Reply:
        """One call to its end."""
        if metadata is None:
            metadata = [("x-session-id", session_id)] if session_id else []
        rpc = self.begin(shape, metadata)
        responses: list[bytes] = []
        with contextlib.suppress(grpc.RpcError):
            if shape.endswith("unary"):
                responses.append(rpc.result())
            else:
                responses.extend(rpc)
        trailing = [(pair[0], pair[1]) for pair in rpc.trailing_metadata() or ()]
        return Reply(responses, rpc.code(), rpc.details(), trailing)

    def close(self) -> None:
        self.channel.close()
