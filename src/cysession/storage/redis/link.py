"""Link: one connection of the sync side, a raw socket with hiredis as its parser; and how sockets are opened.

A link is used by one thread at a time, which writes commands and reads exactly their replies. Whatever goes wrong in
between (an error, a signal, a greenlet that is killed) leaves it unusable, and its owner must close it: only so can no
reply ever reach the wrong caller.

What is small goes the short way: written and answered in one call of the core, on a socket that blocks and whose time
the kernel keeps. The long way, with timeouts of Python, is for all else: TLS, sockets of gevent or eventlet, Windows,
large commands, less time than usual, and what a signal or an answer in pieces left undone.
"""

import _socket
import contextlib
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any

import hiredis

from cysession._core import limit_socket, trade
from cysession.errors import SessionError, StorageMisconfigured, StorageUnavailable

from .source import Address, Handshake, Settings
from .wire import ErrorReply, Reply, pack_many

__all__ = ["NOT_YET", "STALE", "Link", "Lost", "describe", "make_reader", "resolve"]

NOT_YET = object()  # what a reader answers while a reply is incomplete
READ = 65536  # bytes a read; a session's limit and a little more
SMALL = 16384  # bytes that the buffers of an idle socket take in any case, so that writing them cannot block
STALE = 1.0  # seconds after which an idle link is looked at before it is used


class Lost(Exception):
    """A connection broke or kept silent. reason: "timeout", "closed", "garbage", "crowded".

    sent: whether any of the command may have reached the server, so that it may have been executed.
    """

    def __init__(self, reason: str, sent: bool = True) -> None:
        super().__init__(reason)
        self.reason = reason
        self.sent = sent


def make_reader() -> Any:
    """A parser that returns error replies in their places, and raises on anything that is no reply."""
    return hiredis.Reader(replyError=ErrorReply, notEnoughData=NOT_YET)


def describe(address: Address, error: BaseException) -> SessionError:
    """What a failure to connect means."""
    if isinstance(error, SessionError):
        return error
    where = f"Redis at {address}"
    if isinstance(error, ssl.SSLCertVerificationError):
        return StorageMisconfigured(
            f"{where} shows a certificate that is not trusted for that name; look at ssl_ca_certs"
        )
    if isinstance(error, ssl.SSLError) and "WRONG_VERSION_NUMBER" in str(error):
        return StorageMisconfigured(f"{where} does not speak TLS on this port; use redis:// or its TLS port")
    if isinstance(error, TimeoutError):
        return StorageUnavailable(f"{where} does not answer in time; try again")
    if isinstance(error, socket.gaierror):
        return StorageUnavailable(f"the name of {where} cannot be resolved; try again")
    if isinstance(error, Lost):
        return StorageUnavailable(
            f"{where} closed the connection or talks nonsense while connecting; try again"
        )
    return StorageUnavailable(f"{where} cannot be reached ({type(error).__name__}); try again")


# --- names ------------------------------------------------------------------------------------------------------

Resolved = list[tuple[int, Any]]  # (family, socket address)


def numeric(address: Address) -> Resolved | None:
    """Of an address that needs no resolver."""
    if address.path:
        return [(int(socket.AF_UNIX), address.path)]
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):
            socket.inet_pton(family, address.host)
            return [(int(family), (address.host, address.port))]
    return None


def look_up(address: Address, done: Callable[[Resolved | OSError], None]) -> None:
    """Resolve in a thread of its own: the system's resolver knows no deadline, and nobody waits for it at exit."""

    def work() -> None:
        try:
            found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
            done([(int(family), where) for family, _, _, _, where in found])
        except OSError as error:
            done(error)

    threading.Thread(target=work, name="cysession-resolver", daemon=True).start()


def resolve(address: Address, deadline: float) -> Resolved:
    """Socket addresses of a server. Raises OSError, TimeoutError among them."""
    if (found := numeric(address)) is not None:
        return found
    ready = threading.Event()
    answer: list[Resolved | OSError] = []

    def done(result: Resolved | OSError) -> None:
        answer.append(result)
        ready.set()

    look_up(address, done)
    if not ready.wait(max(0.0, deadline - time.monotonic())):
        raise TimeoutError
    if isinstance(answer[0], OSError):
        raise answer[0]
    return answer[0]


# --- the link ---------------------------------------------------------------------------------------------------


class Link:
    """One connection. Make it, `connect` it, `exchange` over it, `close` it at the first sign of trouble."""

    __slots__ = (
        "__weakref__",
        "_buffer",
        "_fd",
        "_feed",
        "_gets",
        "_has_data",
        "_shortened",
        "_timeout",
        "generation",
        "sock",
        "used",
    )

    def __init__(self, timeout: float) -> None:
        self.sock: Any = None  # first of all, for __del__
        self.generation = 0
        self.used = 0.0  # the deadline of its last use
        self._timeout = timeout
        self._fd = -1  # of a socket that knows the short way
        self._shortened = False
        self._buffer = bytearray(READ)
        reader = make_reader()
        self._feed, self._gets, self._has_data = reader.feed, reader.gets, reader.has_data

    # --- opening ------------------------------------------------------------------------------------------------

    def connect(self, address: Address, settings: Settings, handshake: Handshake, deadline: float) -> None:
        """Until the server lets us in. Raises SessionError; the link is then to be closed."""
        try:
            self._open(address, settings, deadline)
            replies = self.exchange(pack_many(handshake.commands), len(handshake.commands), deadline, False)
        except (OSError, Lost) as error:
            raise describe(address, _as_timeout(error)) from None
        handshake.judge(replies)

    def _open(self, address: Address, settings: Settings, deadline: float) -> None:
        failure: OSError = OSError("no address")
        for family, where in resolve(address, deadline):
            self.sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                self.sock.settimeout(left(deadline))
                self.sock.connect(where)
                if family != socket.AF_UNIX:
                    tune(self.sock, settings)
                if settings.tls is not None and not address.path:
                    self.sock = settings.tls.wrap_socket(
                        self.sock, server_hostname=address.host, do_handshake_on_connect=False
                    )
                    self.sock.settimeout(left(deadline))
                    self.sock.do_handshake()
                elif isinstance(self.sock, _socket.socket) and limit_socket(
                    self.sock.fileno(), self._timeout
                ):
                    self._fd = self.sock.fileno()
                return
            except OSError as error:
                self.sock.close()
                failure = error
        raise failure

    # --- use ----------------------------------------------------------------------------------------------------

    def exchange(self, data: bytes, count: int, deadline: float, fresh: bool) -> list[Reply]:
        """Write `data`, return its `count` replies. Raises Lost, or whatever interrupts; close the link then.

        fresh: the deadline is a whole timeout away, which is what the socket is set to between calls.
        """
        if not fresh or self._shortened:
            self._set_timeout(deadline, fresh)
        try:
            if self._fd >= 0 and not self._shortened and len(data) <= SMALL:
                size = trade(self._fd, data, self._buffer)
                if size > 0:
                    self._feed(self._buffer, 0, size)
                else:
                    self._go_on(data, -1 - size, deadline)
            else:
                self._send(data, deadline)
                self._receive()
            replies = [self._gets()]
            if count > 1 or replies[0] is NOT_YET:
                self._gather(replies, count, deadline)
        except TimeoutError:
            raise Lost("timeout") from None
        except OSError:
            raise Lost("closed") from None
        except (hiredis.HiredisError, MemoryError, ValueError):
            raise Lost("garbage") from None
        if self._has_data():
            raise Lost("garbage")  # a reply that nobody asked for: whose would the next one be?
        self.used = deadline
        return replies

    def _set_timeout(self, deadline: float, fresh: bool) -> None:
        if fresh:
            self.sock.settimeout(self._timeout if self._fd < 0 else None)
            self._shortened = False
            return
        try:
            self._shorten(deadline)
        except TimeoutError:
            raise Lost("timeout", sent=False) from None

    def _shorten(self, deadline: float) -> None:
        self.sock.settimeout(left(deadline))
        self._shortened = True

    def _go_on(self, data: bytes, sent: int, deadline: float) -> None:
        """After a signal, the long way; -1 is sent if the server has closed the connection."""
        if sent < 0:
            raise Lost("closed")
        self._shorten(deadline)
        self.sock.sendall(data[sent:])
        self._receive()

    def _send(self, data: bytes, deadline: float) -> None:
        if self._fd >= 0 and not self._shortened:
            self._shorten(deadline)
        self.sock.sendall(data)
        if len(data) > SMALL:
            self._shorten(deadline)

    def _gather(self, replies: list[Reply], count: int, deadline: float) -> None:
        """Until there are `count`, all of them whole."""
        while len(replies) < count or replies[-1] is NOT_YET:
            if replies[-1] is NOT_YET:
                self._shorten(deadline)  # what trickles in does not extend the time
                self._receive()
                replies[-1] = self._gets()
            else:
                replies.append(self._gets())

    def _receive(self) -> None:
        size = self.sock.recv_into(self._buffer)
        if not size:
            raise Lost("closed")
        self._feed(self._buffer, 0, size)

    def stale(self) -> bool:
        """After a longer rest: has the server closed it meanwhile, or said something unasked?"""
        try:
            return readable(self.sock)
        except (OSError, ValueError):
            return True

    # --- the end ------------------------------------------------------------------------------------------------

    def close(self) -> None:
        self._fd = -1  # the number will soon be another file's
        if self.sock is not None:
            with contextlib.suppress(OSError):
                self.sock.close()

    def __del__(self) -> None:
        """Links that rest when the process ends, and those whose thread was killed at an odd moment."""
        self.close()


def readable(sock: Any) -> bool:
    """Whether a socket has something to read, an end included; poll() knows no highest number of a file."""
    if not hasattr(select, "poll"):  # Windows, whose select() has no such limit
        return bool(select.select([sock], [], [], 0)[0])
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    return bool(poller.poll(0))


def left(deadline: float) -> float:
    """Seconds until the deadline. Raises TimeoutError if it is over: zero would mean "do not wait" to a socket."""
    seconds = deadline - time.monotonic()
    if seconds <= 0.0:
        raise TimeoutError
    return seconds


def tune(sock: socket.socket, settings: Settings) -> None:
    """Small packets at once; dead peers are noticed even while nothing is asked."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in settings.keepalive.items():
        sock.setsockopt(socket.IPPROTO_TCP, option, value)


def _as_timeout(error: OSError | Lost) -> OSError | Lost:
    return TimeoutError() if isinstance(error, Lost) and error.reason == "timeout" else error
