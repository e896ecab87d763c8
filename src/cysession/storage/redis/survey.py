"""What operators want to know of a Redis or Valkey server that keeps sessions.

Everything is read by INFO, SCAN, TIME and CONFIG GET, and by the commands that sessions use themselves; what an ACL
refuses is left out where it can be. No configuration is changed and no key is written.
"""

import re
import time
from collections.abc import Iterator
from typing import Final

from cysession.errors import StorageMisconfigured
from cysession.storage.operate import FAIL, OK, WARN, Finding

from .client import Client
from .link import Lost
from .node import Node
from .records import KEY_LENGTH
from .wire import ErrorReply, explain, pack

_is_name = re.compile(rf"[0-9a-f]{{{KEY_LENGTH}}}").fullmatch

__all__ = ["examine", "names", "vitals"]

OLDEST: Final = (6, 2)
BATCH: Final = 500
MIB: Final = 1 << 20
GROWING: Final = {  # INFO's name -> ours
    "total_commands_processed": "commands_total",
    "expired_keys": "expired_keys_total",
    "evicted_keys": "evicted_keys_total",
    "keyspace_hits": "hits_total",
    "keyspace_misses": "misses_total",
}
STANDING: Final = {
    "connected_clients": "clients",
    "used_memory": "memory_bytes",
    "maxmemory": "memory_limit_bytes",
}


# ---- sessions ---------------------------------------------------------------------------------------------


def names(client: Client, prefix: bytes) -> Iterator[list[str]]:
    """Storage keys of the sessions under the prefix on all nodes, some hundred at a time."""
    client.call(prefix, b"EXISTS", prefix, retry=True)  # so that the nodes of a cluster are known
    pattern = _literal(prefix) + b"?" * KEY_LENGTH
    seen = set[int]()  # SCAN may name a key twice; eight bytes of a hash tell keys apart
    for node in client.nodes:
        cursor = b"0"
        while True:
            cursor, keys = _scan(client, node, cursor, pattern)
            found = [key[len(prefix) :].decode("ascii", "replace") for key in keys]
            fresh = {int(name[:16], 16): name for name in found if _is_name(name)}
            batch = [fresh[digest] for digest in fresh.keys() - seen]
            seen.update(fresh)
            if batch:
                yield batch
            if cursor == b"0":
                break


def _scan(client: Client, node: Node, cursor: bytes, pattern: bytes) -> tuple[bytes, list[bytes]]:
    packed = pack(b"SCAN", cursor, b"MATCH", pattern, b"COUNT", BATCH)
    try:
        (reply,) = node.exchange(packed, 1, time.monotonic() + client.timeout)
    except Lost as lost:
        raise node.explain(lost) from None
    if isinstance(reply, ErrorReply):
        raise explain(reply)
    cursor, keys = reply
    return cursor, keys


def _literal(text: bytes) -> bytes:
    """A glob pattern that matches just this text."""
    return re.sub(rb"([\\*?\[\]^])", rb"\\\1", text)


# ---- the server -------------------------------------------------------------------------------------------


def vitals(client: Client, prefix: bytes) -> dict[str, float]:
    facts = _info(client, prefix)
    known = GROWING | STANDING
    return {known[name]: float(facts[name]) for name in known if name in facts}


def examine(client: Client, prefix: bytes) -> Iterator[Finding]:
    facts = _info(client, prefix)
    yield _version(facts)
    yield _role(facts)
    yield _memory(facts)
    yield _eviction(facts)
    yield _persistence(client, prefix, facts)
    yield _clock(client, prefix)
    if facts.get("loading") == "1":
        yield Finding(FAIL, "state", "the server is loading its data", "wait until it is done")


def _info(client: Client, prefix: bytes) -> dict[str, str]:
    reply = client.call(prefix, b"INFO", retry=True)
    text = reply.decode("utf-8", "replace") if isinstance(reply, bytes) else str(reply)
    pairs = (line.partition(":") for line in text.splitlines() if ":" in line and not line.startswith("#"))
    return {name: value for name, _, value in pairs}


def _version(facts: dict[str, str]) -> Finding:
    product = "Valkey" if "valkey_version" in facts else "Redis"
    version = facts.get("valkey_version") or facts.get("redis_version", "")
    known = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if not known:
        return Finding(
            WARN, "server", f"{product} of an unknown version", "cysession is tested with 7.0 and newer"
        )
    if product == "Redis" and known < OLDEST:
        return Finding(
            FAIL, "server", f"{product} {version}", "6.2 is the oldest that sessions can use; upgrade it"
        )
    return Finding(OK, "server", f"{product} {version}")


def _role(facts: dict[str, str]) -> Finding:
    if facts.get("role") != "master":
        advice = "name the primary, or redis+sentinel:// that finds it: a replica takes no commit and may be behind"
        return Finding(FAIL, "role", facts.get("role", "unknown"), advice)
    replicas = int(facts.get("connected_slaves", 0))
    return Finding(
        OK, "role", f"primary with {replicas} replicas" if replicas else "primary without a replica"
    )


def _memory(facts: dict[str, str]) -> Finding:
    used, limit = int(facts.get("used_memory", 0)), int(facts.get("maxmemory", 0))
    if not limit:
        advice = "set maxmemory, so that a flood of sessions is answered with an error and not by the system's killer"
        return Finding(WARN, "memory", f"{used / MIB:,.0f} MiB used, no limit", advice)
    state = f"{used / MIB:,.0f} of {limit / MIB:,.0f} MiB used ({used / limit:.0%})"
    if used > 0.9 * limit:
        return Finding(WARN, "memory", state, "make room soon: raise maxmemory or shorten ttl")
    return Finding(OK, "memory", state)


def _eviction(facts: dict[str, str]) -> Finding:
    policy, evicted = facts.get("maxmemory_policy", "unknown"), int(facts.get("evicted_keys", 0))
    so_far = f", {evicted:,} keys evicted so far" if evicted else ""
    if policy == "noeviction":
        return Finding(OK, "eviction", policy + so_far)
    advice = "maxmemory-policy noeviction: any other one logs users out when memory runs low, without a word"
    return Finding(WARN, "eviction", policy + so_far, advice)


def _persistence(client: Client, prefix: bytes, facts: dict[str, str]) -> Finding:
    aof, bad = facts.get("aof_enabled") == "1", []
    if facts.get("rdb_last_bgsave_status", "ok") != "ok":
        bad.append("the last snapshot failed")
    if aof and facts.get("aof_last_write_status", "ok") != "ok":
        bad.append("the last write of the append-only file failed")
    if bad:
        return Finding(
            FAIL, "persistence", " and ".join(bad), "look into the server's log; it may refuse commits"
        )
    if aof:
        return Finding(OK, "persistence", "append-only file")
    try:
        _, snapshots = client.call(prefix, b"CONFIG", b"GET", b"save", retry=True)
    except (StorageMisconfigured, ValueError):
        return Finding(
            OK, "persistence", "no append-only file; the user may not ask whether there are snapshots"
        )
    if snapshots:
        return Finding(OK, "persistence", "snapshots only: a crash loses the commits since the last one")
    advice = "turn on the append-only file if users should stay logged in when the server is started anew"
    return Finding(WARN, "persistence", "none", advice)


def _clock(client: Client, prefix: bytes) -> Finding:
    before = time.time()
    try:
        seconds, micros = client.call(prefix, b"TIME", retry=True)
    except StorageMisconfigured:  # an ACL without it
        return Finding(OK, "clock", "not looked at: the user may not ask for TIME")
    skew = int(seconds) + int(micros) / 1e6 - (before + time.time()) / 2
    if abs(skew) > 2:
        advice = (
            "set both clocks by NTP: max_age is counted on this machine's clock, idle time on the server's"
        )
        return Finding(WARN, "clock", f"the server's clock is {skew:+.1f} s off this machine's", advice)
    return Finding(OK, "clock", f"within {abs(skew) * 1000:.0f} ms of the server's")
