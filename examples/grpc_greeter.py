"""A greeter that knows its visitors, over gRPC and without protoc: the messages are plain strings.

    python examples/grpc_greeter.py             # serves on 127.0.0.1:50051; PORT= overrides
    python examples/grpc_greeter.py anna        # visits it three times

The client gets its id with the trailing metadata of the first call and presents it from then on. Real channels use
TLS: here the id travels readable.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc

from cysession import Manager, MemoryStorage
from cysession.grpc import SessionInterceptor, current_session

ADDRESS = f"127.0.0.1:{os.environ.get('PORT') or 50051}"


# -- the server -------------------------------------------------------------------------------------------


def greet(name, context):
    session = current_session()
    session["visits"] = session.get("visits", 0) + 1
    return f"Hello {name}, this is visit {session['visits']}."


def count_down(name, context):
    """A stream of responses; the session is open until it ends."""
    session = current_session()
    for number in (3, 2, 1):
        session["last"] = number
        yield f"{number}, {name}"


def make_server(manager):
    service = {
        "Greet": grpc.unary_unary_rpc_method_handler(greet, bytes.decode, str.encode),
        "CountDown": grpc.unary_stream_rpc_method_handler(count_down, bytes.decode, str.encode),
    }
    server = grpc.server(ThreadPoolExecutor(8), interceptors=[SessionInterceptor(manager)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Greeter", service),))
    return server


# -- the client -------------------------------------------------------------------------------------------


class Visitor:
    """Keeps the id of its session between calls."""

    def __init__(self, channel):
        self.session_id = ""
        self._greet = channel.unary_unary("/Greeter/Greet", str.encode, bytes.decode)
        self._count_down = channel.unary_stream("/Greeter/CountDown", str.encode, bytes.decode)

    def greet(self, name):
        greeting, call = self._greet.with_call(name, metadata=self._presented(), timeout=5)
        self._note(call)
        return greeting

    def count_down(self, name):
        call = self._count_down(name, metadata=self._presented(), timeout=5)
        yield from call
        self._note(call)

    def _presented(self):
        return [("x-session-id", self.session_id)] if self.session_id else []

    def _note(self, call):
        """A fresh id replaces ours; an empty one means that the session has ended."""
        for key, value in call.trailing_metadata():
            if key == "x-session-id":
                self.session_id = value


def main():
    if len(sys.argv) > 1:
        with grpc.insecure_channel(ADDRESS) as channel:
            visitor = Visitor(channel)
            for _ in range(3):
                print(visitor.greet(sys.argv[1]))
            print("; ".join(visitor.count_down(sys.argv[1])))
        return
    with Manager(ttl=3600, storage=MemoryStorage()) as manager:
        server = make_server(manager)
        server.add_insecure_port(ADDRESS)
        server.start()
        print(f"greeter on {ADDRESS}; stop with Ctrl-C", flush=True)
        server.wait_for_termination()


if __name__ == "__main__":
    main()
