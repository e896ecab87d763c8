"""Packing, and what error replies mean."""

import hashlib

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cysession.errors import StorageFull, StorageMisconfigured, StorageUnavailable
from cysession.storage.redis.wire import (
    ErrorReply,
    Script,
    Template,
    explain,
    pack,
    pack_many,
    split,
    strict,
    whole,
)

pytestmark = pytest.mark.redis

SECRET = "s3cr3t-0f-anna"


@given(key=st.binary(max_size=50), value=st.binary(max_size=3000), number=st.integers(-(2**63), 2**64))
def test_a_template_packs_what_pack_packs(key: bytes, value: bytes, number: int) -> None:
    get = Template(b"GETEX", Template.HOLE, b"EX", 60)
    assert get(key) == pack(b"GETEX", key, b"EX", 60)
    put = Template(b"SET", Template.HOLE, Template.HOLE, b"100%", b"NX")
    assert put(key, value) == pack(b"SET", key, value, b"100%", b"NX")
    last = Template(b"PEXPIRE", "k", Template.HOLE)
    assert last(number) == pack(b"PEXPIRE", b"k", number)


def test_a_template_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError):
        Template(b"PING")
    with pytest.raises(ValueError):
        Template(b"SET", Template.HOLE, b"NX", Template.HOLE)
    with pytest.raises(ValueError):
        Template(b"GET", Template.HOLE)(b"k", b"v")


def test_packed_commands_are_what_a_server_reads() -> None:
    reader = hiredis.Reader()
    reader.feed(pack_many([(b"SET", "k", b"\r\n\0", 5), (b"PING",)]))
    assert reader.gets() == [b"SET", b"k", b"\r\n\0", b"5"]
    assert reader.gets() == [b"PING"]


def test_packed_commands_can_be_told_apart() -> None:
    commands = [pack(b"SET", "k", b"\r\n\0", 5), pack(b"PING"), pack(b"SET", b"", b"")]
    assert split(b"".join(commands)) == commands
    assert split(b"") == []


def test_a_script_is_called_by_its_digest() -> None:
    script = Script("return ARGV[1]")
    digest = hashlib.sha1(b"return ARGV[1]", usedforsecurity=False).hexdigest()
    packed = script(b"k", b"\r\n", 1)
    assert packed == pack(b"EVALSHA", digest, 1, b"k", b"\r\n", 1)
    assert whole(packed) == pack(b"EVAL", b"return ARGV[1]", 1, b"k", b"\r\n", 1)


def test_only_our_own_scripts_can_be_sent_whole() -> None:
    assert whole(pack(b"EVALSHA", "0" * 40, 1, b"k")) is None
    assert whole(pack(b"EVAL", b"return 1", 1, b"k")) is None
    assert whole(pack(b"GET", b"k")) is None
    assert whole(pack(b"PING")) is None


@pytest.mark.parametrize(
    ("text", "code", "kind"),
    [
        ("OOM command not allowed when used memory > 'maxmemory'.", "OOM", StorageFull),
        (
            f"ERR Error running script (call to f_ab): @user_script:1: -OOM command not allowed {SECRET}",
            "OOM",
            StorageFull,
        ),
        ("NOAUTH Authentication required.", "NOAUTH", StorageMisconfigured),
        ("WRONGPASS invalid username-password pair or user is disabled.", "WRONGPASS", StorageMisconfigured),
        ("ERR invalid password", "WRONGPASS", StorageMisconfigured),
        ("ERR AUTH <password> called without any password configured", "WRONGPASS", StorageMisconfigured),
        (
            f"NOPERM this user has no permissions to access the '{SECRET}' key",
            "NOPERM",
            StorageMisconfigured,
        ),
        (
            "WRONGTYPE Operation against a key holding the wrong kind of value",
            "WRONGTYPE",
            StorageMisconfigured,
        ),
        ("ERR DB index is out of range", "NODB", StorageMisconfigured),
        (
            f"ERR unknown command 'GETEX', with args beginning with: '{SECRET}'",
            "NOCOMMAND",
            StorageMisconfigured,
        ),
        ("LOADING Redis is loading the dataset in memory", "LOADING", StorageUnavailable),
        ("MASTERDOWN Link with MASTER is down", "MASTERDOWN", StorageUnavailable),
        ("READONLY You can't write against a read only replica.", "READONLY", StorageUnavailable),
        ("CLUSTERDOWN Hash slot not served", "CLUSTERDOWN", StorageUnavailable),
        ("NOREPLICAS Not enough good replicas to write.", "NOREPLICAS", StorageUnavailable),
        ("MISCONF Redis is configured to save RDB snapshots", "MISCONF", StorageUnavailable),
        ("ERR max number of clients reached", "MAXCLIENTS", StorageUnavailable),
        (f"ERR something {SECRET}", "ERR", StorageUnavailable),
        (f"{SECRET} OOM", "ERR", StorageUnavailable),
        ("", "ERR", StorageUnavailable),
    ],
)
def test_what_an_error_reply_means(text: str, code: str, kind: type[Exception]) -> None:
    """R20, R24, R25, R26; the text of the server, which quotes commands, is never repeated."""
    reply = ErrorReply(text)
    assert reply.code == code
    error = explain(reply)
    assert isinstance(error, kind)
    assert (kind is StorageFull) == isinstance(error, StorageFull)
    assert SECRET not in str(error)
    assert SECRET not in repr(reply)
    assert SECRET not in str(reply)


def test_the_first_error_of_several_replies_is_raised() -> None:
    assert strict([b"x", None, [1]]) == [b"x", None, [1]]
    with pytest.raises(StorageFull):
        strict([b"x", ErrorReply("OOM no"), ErrorReply("LOADING")])
