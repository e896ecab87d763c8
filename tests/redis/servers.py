"""Real Redis servers for the tests: one, a cluster, a master with replica and sentinel; and a proxy that misbehaves.

Every server listens on a free port of the loopback, keeps its files in a directory of its own, and dies with the
test process, however that ends (util-linux' setpriv sees to it). Start servers from the main thread: the kernel
counts the thread that started them as their parent.
"""

import contextlib
import datetime
import ipaddress
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hiredis

__all__ = [
    "Cluster",
    "Proxy",
    "RedisServer",
    "SentinelSetup",
    "eventually",
    "free_port",
    "make_certificate",
    "slot_of",
]

# The server to test with; another path tries another one: Valkey's speaks the same.
PROGRAM = os.environ.get("CYSESSION_REDIS_SERVER", "redis-server")
# Nodes of a cluster and sentinels wait for the disk at every change of their state: not what is tested here.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
STARTUP = 15.0  # seconds; far more than any start takes, so that only a server that never comes up fails


def free_port() -> int:
    """A port that nobody listens on, and the cluster's bus port (10,000 higher) too.

    Drawn from below the range that the kernel takes the local ports of connections from, which come and go.
    """
    while True:
        port = random.SystemRandom().randrange(10_000, 22_000)
        with contextlib.suppress(OSError), socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", port))
            second.bind(("127.0.0.1", port + 10_000))
            return port


def eventually(condition: Callable[[], Any], what: str, within: float = STARTUP) -> Any:
    """Wait until `condition()` is true and return its value; it may raise OSError meanwhile."""
    end = time.monotonic() + within
    while True:
        with contextlib.suppress(OSError, hiredis.HiredisError):
            if value := condition():
                return value
        if time.monotonic() > end:
            raise TimeoutError(f"waited {within} s in vain: {what}")
        time.sleep(0.01)


def slot_of(key: bytes) -> int:
    """The cluster slot of a key, written down once more, from the specification, without our client."""
    start = key.find(b"{")
    end = key.find(b"}", start + 1)
    if start >= 0 and end > start + 1:
        key = key[start + 1 : end]
    crc = 0
    for byte in key:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1 ^ 0x1021) & 0xFFFF if crc & 0x8000 else crc << 1 & 0xFFFF
    return crc % 16384


class RedisServer:
    """One redis-server. `options` are those of redis.conf, with _ for - and tuples for several words."""

    def __init__(self, *, password: str = "", unix: bool = False, sentinel: bool = False, **options: Any):
        self.directory = Path(tempfile.mkdtemp(prefix="redis-", dir=MEMORY))
        self.port = free_port()
        self.host = "127.0.0.1"
        self.password = password
        self.sentinel = sentinel
        self.options: dict[str, Any] = {
            "save": "",
            "appendonly": "no",
            "bind": self.host,
            "dir": self.directory,
            "enable_debug_command": "yes",
        } | options
        if "port" not in options:
            self.options["port"] = self.port
        if password:
            self.options["requirepass"] = password
            self.options["masterauth"] = password
        self.socket_path = self.directory / "redis.sock"
        if unix:
            self.options["unixsocket"] = self.socket_path
        self.process: subprocess.Popen[bytes] | None = None

    # --- life ---------------------------------------------------------------------------------------------------

    def start(self, wait: bool = True) -> "RedisServer":
        config = self.directory / "redis.conf"
        if not self.sentinel:  # theirs is their memory: they write it themselves
            lines = [f"{k.replace('_', '-')} {self._words(v)}" for k, v in self.options.items()]
            config.write_text("\n".join(lines) + "\n")
        log = (self.directory / "log").open("ab")
        self.process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", PROGRAM, str(config), *["--sentinel"] * self.sentinel],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        log.close()
        if wait:
            eventually(self._answers, f"the server comes up; its log: {self.log()[-500:]}")
        return self

    @staticmethod
    def _words(value: object) -> str:
        words = value if isinstance(value, tuple) else (value,)
        return " ".join(f'"{word}"' for word in words)

    def _answers(self) -> bool:
        if self.process is None or self.process.poll() is not None:
            raise RuntimeError(f"the server ended: {self.log()[-500:]}")
        reply = self.command("PING")
        return reply == b"PONG"

    def stop(self) -> None:
        """End it, however it is; its data are lost unless it saves."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    kill = stop

    def restart(self, wait: bool = True) -> None:
        self.stop()
        self.start(wait)

    def freeze(self) -> None:
        """SIGSTOP: connections stay open, nothing is answered."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        stat = Path(f"/proc/{self.process.pid}/stat")
        eventually(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "the server is stopped")

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        self.freeze()
        try:
            yield
        finally:
            self.thaw()

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> "RedisServer":
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.remove()

    # --- what tests ask of it -----------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        return self.url_to(self.port)

    def url_to(self, port: int) -> str:
        """The URL by way of another port: of a proxy."""
        secret = f":{self.password}@" if self.password else ""
        return f"redis://{secret}{self.host}:{port}/0"

    def log(self) -> str:
        path = self.directory / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def commands(self, *commands: tuple[Any, ...], timeout: float = 10.0) -> list[Any]:
        """The replies, error replies as hiredis.ReplyError objects; over a connection of its own."""
        if self.password:
            commands = (("AUTH", self.password), *commands)
        with socket.create_connection((self.host, self.port), timeout) as s:
            s.sendall(b"".join(hiredis.pack_command(c) for c in commands))
            reader = hiredis.Reader()
            replies: list[Any] = []
            while len(replies) < len(commands):
                data = s.recv(65536)
                if not data:
                    raise ConnectionError("the server closed the connection")
                reader.feed(data)
                while (reply := reader.gets()) is not False:
                    replies.append(reply)
        return replies[1:] if self.password else replies

    def command(self, *command: Any) -> Any:
        return self.commands(command)[0]

    def ok(self, *command: Any) -> Any:
        """command(), and an error reply is an error."""
        reply = self.command(*command)
        if isinstance(reply, Exception):
            raise reply
        return reply

    def flush(self) -> None:
        self.ok("FLUSHALL")

    def clients(self) -> int:
        """Connections of others than this question."""
        lines = self.ok("CLIENT", "LIST", "TYPE", "normal").split(b"\n")
        return len([line for line in lines if line and b"cmd=client" not in line])

    def info(self, section: str) -> dict[str, str]:
        text = self.ok("INFO", section).decode()
        return dict(line.split(":", 1) for line in text.split("\r\n") if ":" in line)

    def cpu_seconds(self) -> float:
        """CPU time of the process so far, user and system."""
        assert self.process is not None
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Cluster:
    """A cluster of masters without replicas; slots in equal parts."""

    def __init__(self, size: int = 3, **options: Any) -> None:
        self.nodes = [
            RedisServer(
                cluster_enabled="yes",
                cluster_config_file="nodes.conf",
                cluster_node_timeout="2000",
                cluster_require_full_coverage="no",
                **options,
            )
            for _ in range(size)
        ]

    def __enter__(self) -> "Cluster":
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        for node in self.nodes:
            node.start()
        size = len(self.nodes)
        for number, node in enumerate(self.nodes):
            first, last = 16384 * number // size, 16384 * (number + 1) // size - 1
            node.ok("CLUSTER", "ADDSLOTSRANGE", first, last)
            node.ok("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for node in self.nodes[1:]:
            self.nodes[0].ok("CLUSTER", "MEET", node.host, node.port)
        for node in self.nodes:
            eventually(lambda n=node: self._complete(n), "the cluster is complete", 30)

    def _complete(self, node: RedisServer) -> bool:
        info = node.ok("CLUSTER", "INFO")
        slots = node.ok("CLUSTER", "SLOTS")
        return b"cluster_state:ok" in info and len({s[2][1] for s in slots}) == len(self.nodes)

    def __exit__(self, *exc: object) -> None:
        for node in self.nodes:
            node.remove()

    @property
    def url(self) -> str:
        return f"redis+cluster://{self.nodes[0].host}:{self.nodes[0].port}"

    def flush(self) -> None:
        for node in self.nodes:
            node.flush()

    def owner(self, slot: int) -> RedisServer:
        for first, last, master, *_ in self.nodes[0].ok("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(n for n in self.nodes if n.port == master[1])
        raise LookupError(slot)

    def begin_move(self, slot: int) -> tuple[RedisServer, RedisServer]:
        """Begin to move a slot to the next node: existing keys stay, asking for others answers ASK."""
        source = self.owner(slot)
        target = self.nodes[(self.nodes.index(source) + 1) % len(self.nodes)]
        target.ok("CLUSTER", "SETSLOT", slot, "IMPORTING", source.ok("CLUSTER", "MYID"))
        source.ok("CLUSTER", "SETSLOT", slot, "MIGRATING", target.ok("CLUSTER", "MYID"))
        return source, target

    def move_keys(self, slot: int, source: RedisServer, target: RedisServer) -> None:
        while keys := source.ok("CLUSTER", "GETKEYSINSLOT", slot, 100):
            secret = ["AUTH", target.password] if target.password else []
            source.ok("MIGRATE", target.host, target.port, "", 0, 5000, *secret, "KEYS", *keys)

    def end_move(self, slot: int, source: RedisServer, target: RedisServer) -> None:
        """From now on the old owner answers MOVED."""
        me = target.ok("CLUSTER", "MYID")
        for node in (target, source, *self.nodes):
            node.ok("CLUSTER", "SETSLOT", slot, "NODE", me)
        # A move that begins before all have heard of this one's epoch may be undone by a late message.
        eventually(lambda: self._settled(slot, target, me), "all nodes agree on the slot's owner")

    def _settled(self, slot: int, target: RedisServer, me: bytes) -> bool:
        info = dict(line.split(b":") for line in target.ok("CLUSTER", "INFO").splitlines() if b":" in line)
        for node in self.nodes:
            lines = [line.split() for line in node.ok("CLUSTER", "NODES").splitlines()]
            epochs = {line[0]: line[6] for line in lines}
            if epochs[me] != info[b"cluster_my_epoch"]:
                return False
            owners = [m[1] for first, last, m, *_ in node.ok("CLUSTER", "SLOTS") if first <= slot <= last]
            if owners != [target.port]:
                return False
        return True

    def move(self, slot: int) -> RedisServer:
        """Move a slot with all its keys; returns its new owner."""
        source, target = self.begin_move(slot)
        self.move_keys(slot, source, target)
        self.end_move(slot, source, target)
        return target


class SentinelSetup:
    """A master, a replica and three sentinels that fail over quickly."""

    name = "mymaster"

    def __init__(self, password: str = "") -> None:
        self.password = password
        self.master = RedisServer(password=password)
        self.replica = RedisServer(
            password=password, replicaof=(self.master.host, self.master.port), repl_diskless_sync_delay=0
        )
        self.sentinels: list[RedisServer] = []

    def __enter__(self) -> "SentinelSetup":
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        self.master.options["repl_diskless_sync_delay"] = 0
        self.master.start()
        self.replica.start()
        eventually(
            lambda: self.replica.info("replication")["master_link_status"] == "up", "the replica follows"
        )
        for _ in range(3):
            sentinel = RedisServer(sentinel=True)
            sentinel.options = {"port": sentinel.port, "bind": sentinel.host, "dir": sentinel.directory}
            lines = [f"{k} {v}" for k, v in sentinel.options.items()]
            lines.append(f"sentinel monitor {self.name} {self.master.host} {self.master.port} 2")
            lines.append(f"sentinel down-after-milliseconds {self.name} 300")
            lines.append(f"sentinel failover-timeout {self.name} 2000")
            if self.password:
                lines.append(f"sentinel auth-pass {self.name} {self.password}")
            (sentinel.directory / "redis.conf").write_text("\n".join(lines) + "\n")
            self.sentinels.append(sentinel.start())
        for sentinel in self.sentinels:
            eventually(lambda s=sentinel: self._ready(s), "the sentinels know each other", 30)

    def _ready(self, sentinel: RedisServer) -> bool:
        raw = sentinel.ok("SENTINEL", "MASTER", self.name)
        state = dict(zip(raw[::2], raw[1::2], strict=True))
        return state[b"num-other-sentinels"] == b"2" and state[b"num-slaves"] == b"1"

    def __exit__(self, *exc: object) -> None:
        for server in (*self.sentinels, self.replica, self.master):
            server.remove()

    @property
    def url(self) -> str:
        hosts = ",".join(f"{s.host}:{s.port}" for s in self.sentinels)
        secret = f":{self.password}@" if self.password else ""
        return f"redis+sentinel://{secret}{hosts}/{self.name}/0"

    def current(self) -> int:
        """The port of the master, as the sentinels see it."""
        return int(self.sentinels[0].ok("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.name)[1])


class Proxy:
    """Forwards one port to a server's, and misbehaves on demand.

    Set at any time, for what arrives afterwards: `delay` (seconds for every piece of the server's answers),
    `corrupt` (a function over those pieces), `swallow` (answers vanish), `refuse` (no new connections);
    `cut()` resets all connections, `cut_after` does so once that many bytes of answers went through.
    """

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self.port = free_port()
        self.delay = 0.0
        self.corrupt: Callable[[bytes], bytes] | None = None
        self.swallow = False
        self.refuse = False
        self.cut_after: int | None = None
        self.accepted = 0
        self.refused = 0
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server((server.host, self.port), backlog=512)

    @property
    def url(self) -> str:
        return self.server.url_to(self.port)

    def __enter__(self) -> "Proxy":
        self._run(self._accept)
        return self

    def _run(self, function: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=function, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.refuse:
                self.refused += 1
                self._reset(client)
                continue
            try:
                upstream = socket.create_connection((self.server.host, self.server.port), 5)
            except OSError:
                self._reset(client)
                continue
            upstream.settimeout(None)
            for s in (client, upstream):
                s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._pairs.append((client, upstream))
                self.accepted += 1
            self._run(self._forward, client, upstream, False)
            self._run(self._forward, upstream, client, True)

    def _forward(self, source: socket.socket, target: socket.socket, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if answers:
                    if self.delay:
                        time.sleep(self.delay)
                    if self.swallow:
                        continue
                    if self.corrupt is not None:
                        data = self.corrupt(data)
                    if self.cut_after is not None:
                        data, self.cut_after = data[: self.cut_after], self.cut_after - len(data)
                        if self.cut_after < 0:
                            target.sendall(data)
                            self.cut_after = None
                            break
                target.sendall(data)
        with self._lock:
            if not any(source in pair for pair in self._pairs):
                return  # cut(): the other side shall see a reset, not an end
            for s in (source, target):
                with contextlib.suppress(OSError):
                    s.shutdown(socket.SHUT_RDWR)

    @staticmethod
    def _reset(s: socket.socket) -> None:
        with contextlib.suppress(OSError):
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # RST instead of FIN
            s.shutdown(socket.SHUT_RD)
        s.close()

    def cut(self) -> None:
        """Reset all connections."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
            for pair in pairs:
                for s in pair:
                    self._reset(s)

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(10)


def make_certificate(directory: Path) -> tuple[Path, Path]:
    """A self-signed certificate for localhost and 127.0.0.1, and its key, in PEM files."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, secret = directory / "redis.crt", directory / "redis.key"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return pem, secret
