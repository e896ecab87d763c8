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
import itertools
import threading
import time
from binascii import crc_hqx
from collections.abc import Generator, Sequence
from typing import Any, TypeAlias

from cysession.errors import SessionError, StorageUnavailable

from .link import Lost
from .near import Bounds
from .node import Node
from .source import Address, open_source
from .wire import Argument, ErrorReply, Reply, explain, pack, pack_many, split, strict, whole

__all__ = ["Client"]

Outcome: TypeAlias = list[Reply] | Lost | SessionError
# A step of a plan: an exchange (node, bytes, count, deadline) whose outcome is sent back, or seconds to sleep.
Step: TypeAlias = tuple[Node, bytes, int, float] | float
Plan: TypeAlias = Generator[Step, Any, list[Reply]]

SLOTS = 16384  # of a cluster
HOPS = 3  # redirections that one command follows without a pause
PAUSE = 0.01  # seconds between two tries while a cluster moves a key, or the keys of one command
REFRESH = 0.1  # seconds between two looks at the slots of a cluster that may have changed
ASKING = pack(b"ASKING")
# Errors of commands that were certainly not executed, and may be sent again: elsewhere or later, or a script whole.
MOVED = frozenset({"MOVED", "ASK", "TRYAGAIN", "READONLY"})
REFUSED = MOVED | {"NOSCRIPT"}


class Client:
    """Args:
    source: a URL (redis:// rediss:// unix:// redis+cluster:// redis+sentinel://) or a client or pool of
        redis-py, sync or asyncio, whose settings are taken over (its connections are not).
    timeout: seconds that a call may take in all: connecting, waiting, a retry.
    links: connections to one node that the sync side opens at most; more threads share them.
    near: what the async side keeps of what `acall_near` has read (near.py); None: nothing.

    Nothing is connected before the first call. Raises StorageMisconfigured for a source that cannot be read.
    """

    def __init__(
        self, source: Any, *, timeout: float = 0.25, links: int = 4, near: Bounds | None = None
    ) -> None:
        if timeout <= 0 or links < 1:
            raise ValueError("timeout is positive, links at least 1")
        self._source = open_source(source)
        self._timeout = timeout
        self._links = links
        self._near = near
        self._lock = threading.RLock()  # a finalizer may come in between
        self._nodes: dict[Address, Node] = {}
        self._only: Node | None = None
        self._slots: list[Node | None] = []  # of a cluster; empty: not known yet
        self._slots_doubtful = False
        self._slots_read = 0.0  # monotonic
        if self._source.kind == "sentinel":
            self._only = Node(self._source, None, timeout, links, near)
        elif self._source.kind == "single":
            self._only = self._node_at(self._source.addresses[0])

    @property
    def is_cluster(self) -> bool:
        """Whether keys live on different nodes, so that a command may only name keys of one slot."""
        return self._only is None

    @property
    def timeout(self) -> float:
        """Seconds that a call may take in all."""
        return self._timeout

    @property
    def nodes(self) -> list[Node]:
        """The nodes that are known so far."""
        return [self._only] if self._only is not None else list(self._nodes.values())

    # --- packed commands: what everything else is made of -------------------------------------------------------

    def call_packed(self, slot_key: bytes, packed: bytes, *, retry: bool = False) -> Reply:
        """One command that `wire.pack` or a `wire.Template` has packed."""
        deadline = time.monotonic() + self._timeout
        node = self._only or (self._slots[_slot(slot_key)] if self._slots else None)
        outcome: Outcome | None = None
        if node is not None and not self._slots_doubtful:
            try:
                outcome = node.exchange(packed, 1, deadline, True)
                if not isinstance(outcome[0], ErrorReply):
                    return outcome[0]
            except (Lost, SessionError) as error:
                outcome = error
        if not isinstance(outcome, list) or _refused(outcome):
            outcome = self._run(self._plan(slot_key, packed, 1, retry, deadline, node, outcome))
        return strict(outcome)[0]

    def call_packed_many(
        self, slot_key: bytes, packed: bytes, count: int, *, retry: bool = False, raise_errors: bool = True
    ) -> list[Reply]:
        """`count` commands packed one after the other: one write, one round trip, `count` replies."""
        deadline = time.monotonic() + self._timeout
        node = self._only or (self._slots[_slot(slot_key)] if self._slots else None)
        outcome: Outcome | None = None
        if node is not None and not self._slots_doubtful:
            try:
                outcome = node.exchange(packed, count, deadline, True)
            except (Lost, SessionError) as error:
                outcome = error
        if not isinstance(outcome, list) or _refused(outcome):
            outcome = self._run(self._plan(slot_key, packed, count, retry, deadline, node, outcome))
        return strict(outcome) if raise_errors else outcome

    def _run(self, plan: Plan) -> list[Reply]:
        """Carry out a plan, blocking."""
        outcome: Any = None
        while True:
            try:
                step = plan.send(outcome)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            if not isinstance(step, tuple):
                time.sleep(step)
                outcome = None
                continue
            node, data, count, deadline = step
            try:
                outcome = node.exchange(data, count, deadline)
            except (Lost, SessionError) as error:
                outcome = error

    async def acall_packed(self, slot_key: bytes, packed: bytes, *, retry: bool = False) -> Reply:
        """call_packed, awaited."""
        node = self._only or (self._slots[_slot(slot_key)] if self._slots else None)
        outcome: Outcome | None = None
        deadline = 0.0
        if node is not None:
            loop, mux = node.fast
            if loop is asyncio.get_running_loop() and mux.open and not node.breaker.failures:
                deadline = time.monotonic() + self._timeout
                try:
                    reply = await mux.send(packed)
                except Lost as crowded:
                    reply = crowded
                if not isinstance(reply, Exception):
                    return reply
                outcome = reply if isinstance(reply, Lost) else [reply]
        outcome = await self._afollow(slot_key, packed, 1, retry, deadline, node, outcome)
        return strict(outcome)[0]

    async def acall_packed_many(
        self, slot_key: bytes, packed: bytes, count: int, *, retry: bool = False, raise_errors: bool = True
    ) -> list[Reply]:
        """call_packed_many, awaited."""
        node = self._only or (self._slots[_slot(slot_key)] if self._slots else None)
        outcome: Outcome | None = None
        deadline = 0.0
        if node is not None:
            loop, mux = node.fast
            if loop is asyncio.get_running_loop() and mux.open and not node.breaker.failures:
                deadline = time.monotonic() + self._timeout
                try:
                    outcome = await mux.send_many(packed, count)
                except Lost as crowded:
                    outcome = crowded
        outcome = await self._afollow(slot_key, packed, count, retry, deadline, node, outcome)
        return strict(outcome) if raise_errors else outcome

    async def _afollow(
        self,
        slot_key: bytes,
        packed: bytes,
        count: int,
        retry: bool,
        deadline: float,
        node: Node | None,
        outcome: Outcome | None,
    ) -> list[Reply]:
        """What is left to do after the first try, or after none was made."""
        if isinstance(outcome, list) and not _refused(outcome):
            return outcome
        if not deadline:
            deadline = time.monotonic() + self._timeout
            node = None
        plan = self._plan(slot_key, packed, count, retry, deadline, node, outcome)
        outcome = None
        while True:
            try:
                step = plan.send(outcome)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            if not isinstance(step, tuple):
                await asyncio.sleep(step)
                outcome = None
                continue
            node, data, count, until = step
            try:
                outcome = await node.aexchange(data, count, until)
            except (Lost, SessionError) as error:
                outcome = error

    # --- the near-cache: what was read lately, awaited and without a round trip ---------------------------------

    def nearby(self, key: bytes) -> Reply | None:
        """What the near-cache of the running loop holds of a key; None: nothing that may be relied on."""
        node = self._only or (self._slots[_slot(key)] if self._slots else None)
        mux = None if node is None else node.reader()
        return None if mux is None or mux.near is None else mux.near.get(key)

    async def acall_near(self, key: bytes, packed: bytes) -> list[Reply]:
        """Read a key for the near-cache. `packed`: a command that reads it whole, and its PTTL; their replies."""
        node = self._only or (self._slots[_slot(key)] if self._slots else None)
        outcome: Outcome | None = None
        deadline = 0.0
        mux = None if node is None else node.reader()
        if mux is not None and mux.near is not None:
            deadline = time.monotonic() + self._timeout
            try:
                outcome = await mux.read(mux.near, key, packed)
            except Lost as crowded:
                outcome = crowded
        return strict(await self._afollow(key, packed, 2, True, deadline, node, outcome))

    def outdate(self, key: bytes) -> None:
        """This process has changed a key, or tried to: no near-cache of it relies on an earlier reading."""
        for node in self.nodes:
            for near in node.nears():
                near.outdate(key)

    # --- what is tried again, and where -------------------------------------------------------------------------

    def _plan(
        self,
        slot_key: bytes,
        packed: bytes,
        count: int,
        retry: bool,
        deadline: float,
        node: Node | None,
        outcome: Outcome | None,
    ) -> Plan:
        """From the outcome of a first try (None: not made yet) to replies. Raises SessionError.

        The same for both sides: it says what to do, `_run` and `_afollow` do it.
        """
        if node is None or outcome is None:
            node = yield from self._find(slot_key, deadline)
            outcome = yield node, packed, count, deadline
        if isinstance(outcome, SessionError) and self.is_cluster and isinstance(outcome, StorageUnavailable):
            # Nothing was sent. The slot may have a new owner, whom another node knows.
            self._slots_doubtful = True
            found = yield from self._find(slot_key, deadline)
            if found is not node and time.monotonic() < deadline:
                node = found
                outcome = yield node, packed, count, deadline
        if isinstance(outcome, Lost):
            if self.is_cluster:
                self._slots_doubtful = True
            may = retry or not outcome.sent
            # With less time left there is none for a connection and an answer.
            worth = deadline - time.monotonic() > self._timeout / 5
            if may and worth and outcome.reason != "crowded":
                node = yield from self._find(slot_key, deadline)
                outcome = yield node, packed, count, deadline
        replies = _answered(node, outcome)
        if _refused(replies):
            yield from self._redirect(node, packed, replies, deadline)
        return replies

    def _redirect(self, node: Node, packed: bytes, replies: list[Reply], deadline: float) -> Plan:
        """Send again what was refused, scripts whole; puts the replies in place."""
        commands = [whole(command) or command for command in split(packed)]
        unknown = [n for n, reply in enumerate(replies) if _code(reply) == "NOSCRIPT"]
        if unknown:
            outcome = yield node, b"".join([commands[n] for n in unknown]), len(unknown), deadline
            for n, reply in zip(unknown, _answered(node, outcome), strict=True):
                replies[n] = reply
        for index, command in enumerate(commands):
            for hop in itertools.count():
                refused = replies[index]
                if _code(refused) not in MOVED or time.monotonic() >= deadline:
                    break
                if hop and refused.code == "READONLY":
                    break  # connected anew already: there is no other master yet
                if hop >= HOPS:
                    yield min(PAUSE, max(0.0, deadline - time.monotonic()))
                node, asking = yield from self._after(node, refused, deadline)
                data = ASKING + command if asking else command
                outcome = yield node, data, 1 + asking, deadline
                replies[index] = _answered(node, outcome)[-1]
        return replies

    def _after(
        self, node: Node, refused: ErrorReply, deadline: float
    ) -> Generator[Step, Any, tuple[Node, bool]]:
        """Where to go with a refused command, and whether to say ASKING there."""
        if refused.code == "READONLY":
            node.reset()  # a failover; who is the master now is asked while connecting
            self._slots_doubtful = self.is_cluster
            return node, False
        if refused.code == "TRYAGAIN" or not self.is_cluster:
            yield min(PAUSE, max(0.0, deadline - time.monotonic()))
            return node, False
        target = self._target(node, refused)
        if target is None:
            return node, False
        if refused.code == "MOVED":
            if time.monotonic() - self._slots_read > REFRESH:
                yield from self._read_slots([target], deadline)
            slot = int(refused.text.split()[1])
            if self._slots:
                self._slots[slot] = target
        return target, refused.code == "ASK"

    def _target(self, node: Node, refused: ErrorReply) -> Node | None:
        """The node that "MOVED 1234 host:port" names; no host means the one that answered."""
        words = refused.text.split()
        if len(words) != 3 or not words[1].isdigit() or int(words[1]) >= SLOTS:
            return None
        host, _, port = words[2].rpartition(":")
        return self._announced(host.strip("[]"), port, node)

    # --- nodes --------------------------------------------------------------------------------------------------

    def _announced(self, host: str, port: Any, by: Node) -> Node | None:
        if not str(port).isdigit():
            return None
        own = by.address.host if by.address is not None else ""
        where = (host if host and host != "?" else own, int(port))
        if self._source.remap is not None:
            where = self._source.remap(where)
        return self._node_at(Address(*where))

    def _node_at(self, address: Address) -> Node:
        with self._lock:
            node = self._nodes.get(address)
            if node is None:
                node = self._nodes[address] = Node(
                    self._source, address, self._timeout, self._links, self._near
                )
            return node

    def _find(self, slot_key: bytes, deadline: float) -> Generator[Step, Any, Node]:
        """The node of a key; of a cluster after a look at its slots, if they are unknown or may have changed."""
        if self._only is not None:
            return self._only
        if not self._slots or (self._slots_doubtful and time.monotonic() - self._slots_read > REFRESH):
            known = [*self._nodes.values()] + [self._node_at(a) for a in self._source.addresses]
            unique = list(dict.fromkeys(known))
            yield from self._read_slots(sorted(unique, key=lambda n: n.breaker.failures), deadline)
        node = self._slots[_slot(slot_key)] if self._slots else None
        if node is None:
            raise StorageUnavailable(
                "no node of the Redis cluster can be reached that has this slot; try again"
            )
        return node

    def _read_slots(self, nodes: list[Node], deadline: float) -> Generator[Step, Any, None]:
        """Ask one node after the other which slots are where; a hung one leaves time for the rest, and for the
        command itself. Keeps what was known if nobody answers; raises StorageMisconfigured if somebody says why."""
        self._slots_read = time.monotonic()
        for left, node in zip(range(len(nodes), 0, -1), nodes, strict=True):
            now = time.monotonic()
            until = now + (deadline - now) / (left + 1)
            outcome = yield node, pack(b"CLUSTER", b"SLOTS"), 1, until
            if isinstance(outcome, list):
                if isinstance(outcome[0], ErrorReply):
                    error = explain(outcome[0])
                    if not isinstance(error, StorageUnavailable):
                        raise error from None
                elif self._take_slots(outcome[0], node):
                    self._slots_doubtful = False
                    return
            elif isinstance(outcome, SessionError) and not isinstance(outcome, StorageUnavailable):
                raise outcome from None

    def _take_slots(self, ranges: Reply, by: Node) -> bool:
        slots: list[Node | None] = [None] * SLOTS
        for first, last, master, *_ in ranges:
            host = master[0].decode() if master[0] else ""
            node = self._announced(host, master[1], by)
            slots[first : last + 1] = [node] * (last + 1 - first)
        if not any(slots):
            return False
        self._slots = slots
        return True

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

    # --- the end ------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close all connections; those of event loops that run in other threads are closed there, soon after."""
        for node in self.nodes:
            node.close()

    async def aclose(self) -> None:
        """Close all connections, those of the running event loop in good order."""
        for node in self.nodes:
            await node.aclose()


def _slot(key: bytes) -> int:
    """The cluster slot of a key: CRC-16 (XMODEM) of the part in braces, if there is one, else of the whole."""
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    return crc_hqx(key, 0) % SLOTS


def _code(reply: Reply) -> str:
    """Of an error; "" for anything else."""
    return reply.code if isinstance(reply, ErrorReply) else ""


def _refused(replies: list[Reply]) -> bool:
    """Is there one whose command has to be sent again?"""
    return any(_code(reply) in REFUSED for reply in replies)


def _answered(node: Node, outcome: Outcome | None) -> list[Reply]:
    """The replies. Raises SessionError if there are none."""
    if isinstance(outcome, Lost):
        raise node.explain(outcome) from None
    if isinstance(outcome, SessionError):
        raise outcome from None
    assert outcome is not None
    return outcome
