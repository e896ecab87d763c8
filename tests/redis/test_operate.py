"""What operators see of a Redis server: listing, the doctor, the live view, and sessions taken over from others."""

import json
import time
from datetime import UTC, datetime
from typing import Any

import msgpack
import pytest

from cysession import Manager, RedisHashStorage, RedisStorage, cli
from cysession.storage import Storage
from tests.redis.servers import Cluster, RedisServer, eventually

pytestmark = pytest.mark.redis


def answer(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    assert cli.main([*arguments, "--json"]) == code, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


@pytest.fixture(params=[RedisStorage, RedisHashStorage], ids=["string", "hash"])
def storage(request: pytest.FixtureRequest, server: RedisServer) -> Storage:
    made: Storage = request.param(server.url, prefix="a*[b]:")
    return made


def fill(manager: Manager, number: int, user: str | None = None) -> list[str]:
    tokens = []
    for _ in range(number):
        session = manager.new()
        session["colour"] = "petrol"
        if user:
            session.bind(user)
        session.close()
        tokens.append(session.id)
    return tokens


def test_scan_sees_each_session_once_and_nothing_else(storage: Storage, server: RedisServer) -> None:
    server.ok("SET", "a*[b]:" + "0" * 63, "too short")
    server.ok("SET", "aXb:" + "0" * 64, "what a careless pattern matches")
    with Manager(3600, storage) as manager:
        tokens = fill(manager, 700) + fill(manager, 3, "anna")
        rotated = manager.new(tokens[0])
        rotated.regenerate_id(delete_old=False)
        rotated.close()
        found = list(storage.scan())
        assert len(found) == len({one.locator for one in found}) == 703
        assert sum(bool(one.bound) for one in found) == 3
        now = time.time()
        for one in found:
            assert one.idle == 3600 and one.size > 40
            assert one.used_at is not None and abs(now - one.used_at) < 60 and abs(now - one.created_at) < 60
            assert one.expires_at is not None and 3500 < one.expires_at - now < 3601
            assert not any(token in one.locator for token in tokens)


def test_summary_by_id_and_by_locator(storage: Storage) -> None:
    with Manager(3600, storage) as manager:
        (token,) = fill(manager, 1, "anna")
        by_id = storage.summary(token)
        assert by_id is not None and by_id.bound
        by_locator = storage.summary(by_id.locator)
        assert by_locator is not None and by_locator.created_at == by_id.created_at
        assert storage.delete_record(by_id.locator)
        assert storage.summary(token) is None


def test_a_session_of_its_own_ttl_says_so(storage: Storage) -> None:
    with Manager(3600, storage) as manager:
        session = manager.new()
        session["x"] = 1
        session.ttl = 100
        session.close()
        (one,) = storage.scan()
        assert one.idle == 100 and one.expires_at is not None and 90 < one.expires_at - time.time() <= 100.5


def test_a_cluster_is_listed_node_by_node(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    with Manager(3600, RedisStorage(cluster.url)) as manager:
        fill(manager, 30)
        assert len({one.locator for one in manager.storage.scan()}) == 30
        assert answer(capsys, "revoke", cluster.url, "--everyone", "--yes")["revoked"] == 30
        assert not list(manager.storage.scan())


def test_the_commands(server: RedisServer, capsys: pytest.CaptureFixture[str]) -> None:
    with Manager(30 * 86400, RedisStorage(server.url)) as manager:
        fill(manager, 5)
        fill(manager, 2, "anna")
        assert answer(capsys, "inspect", server.url)["sessions"] == 7
        (row, _) = answer(capsys, "inspect", server.url, "--user", "anna")["sessions"]
        assert 29 * 86400 < row["expires_in_seconds"] <= 30 * 86400
        look = answer(capsys, "top", server.url, "--count", "1")
        assert look["sessions"]["live"] == 7 and look["storage"]["memory_bytes"] > 0
        assert answer(capsys, "revoke", server.url, "--user", "anna")["revoked"] == 2
        assert answer(capsys, "revoke", server.url, "--everyone", "--yes")["revoked"] == 5
    assert cli.main(["sweep", server.url]) == cli.MISSING
    assert "nothing to sweep" in capsys.readouterr().err


# ---- the doctor -------------------------------------------------------------------------------------------


def findings(capsys: pytest.CaptureFixture[str], url: str, code: int = 0) -> dict[str, tuple[str, str]]:
    told = answer(capsys, "doctor", url, code=code)
    return {one["what"]: (one["level"], one["state"]) for one in told["findings"]}


def test_the_doctor_is_content_with_a_server_made_for_sessions(
    own_server: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    own_server.ok("CONFIG", "SET", "maxmemory", "100mb")
    own_server.ok("CONFIG", "SET", "maxmemory-policy", "noeviction")
    own_server.ok("CONFIG", "SET", "appendonly", "yes")
    found = findings(capsys, own_server.url)
    assert {level for level, _ in found.values()} == {"ok"}, found
    assert {"server", "role", "memory", "eviction", "persistence", "clock", "round trip", "cookie"} == set(
        found
    )
    assert own_server.command("DBSIZE") == 0


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
def test_the_doctor_warns_of_eviction(
    policy: str, own_server: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    own_server.ok("CONFIG", "SET", "maxmemory-policy", policy)
    assert findings(capsys, own_server.url)["eviction"] == ("warn", policy)


def test_the_doctor_warns_of_memory_and_persistence(
    own_server: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    own_server.ok("CONFIG", "SET", "save", "")
    own_server.ok("CONFIG", "SET", "maxmemory", "0")
    found = findings(capsys, own_server.url)
    assert found["memory"][0] == "warn" and "no limit" in found["memory"][1]
    assert found["persistence"] == ("warn", "none")
    own_server.ok("CONFIG", "SET", "save", "900 1")
    assert findings(capsys, own_server.url)["persistence"][0] == "ok"


def test_the_doctor_refuses_a_replica(
    server: RedisServer, own_server: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    port = server.url.rpartition(":")[2].partition("/")[0]
    own_server.ok("REPLICAOF", "127.0.0.1", port)
    eventually(lambda: own_server.info("replication")["master_link_status"] == "up", "the replica follows")
    found = findings(capsys, own_server.url, code=cli.BAD)
    assert found["role"] == ("fail", "slave") and found["round trip"][0] == "fail"


def test_the_doctor_of_a_server_that_is_away(capsys: pytest.CaptureFixture[str]) -> None:
    found = findings(capsys, "redis://:hunter2@127.0.0.1:1/0", code=cli.BAD)
    assert found["storage"][0] == "fail" and "hunter2" not in str(found)


# ---- sessions of others -----------------------------------------------------------------------------------

FLASK = "A" * 21 + "-_" + "b" * 20


def put(server: RedisServer, key: str, value: bytes, seconds: int = 600) -> None:
    server.ok("SET", key, value, "EX", seconds)


def moved(
    server: RedisServer, capsys: pytest.CaptureFixture[str], *more: str, code: int = 0
) -> dict[str, int]:
    target = server.url + "?prefix=new:"
    told: dict[str, int] = answer(capsys, "migrate", *more, "--to", target, code=code)
    return {
        name: number
        for name, number in told.items()
        if isinstance(number, int) and number and name != "dry_run"
    }


def test_flask_sessions_move_with_their_ids(server: RedisServer, capsys: pytest.CaptureFixture[str]) -> None:
    data = {"_permanent": True, "_user_id": "7", "cart": ["tea", 2], "rate": 1.5}
    put(server, f"session:{FLASK}", msgpack.packb(data))
    put(server, f"session:json{FLASK[4:]}", json.dumps(data).encode())
    arguments = ("--from", "flask-session", server.url, "--bind", "_user_id")
    assert moved(server, capsys, *arguments, "--dry-run") == {"moved": 2}
    assert moved(server, capsys, *arguments) == {"moved": 2}
    assert moved(server, capsys, *arguments) == {"already_there": 2}
    with Manager(86400, RedisStorage(server.url, prefix="new:")) as manager:
        session = manager.new(FLASK)
        assert {key: session[key] for key in data} == data
        assert session.id == FLASK and session.user == "7"
        assert len(manager.sessions_of("7")) == 2
        (one, _) = manager.storage.scan()
        assert one.expires_at is not None and 500 < one.expires_at - time.time() <= 601
        assert manager.revoke("7") == 2


def test_pickles_and_other_bytes_are_never_read(
    server: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """V6/Z1: a pickle in the source is counted and left where it is."""
    put(server, f"session:{FLASK}", b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00}\x94\x8c\x01a\x94K\x01s.")
    put(server, "session:torn", b"\x83\xa3")
    put(server, "session:list", b"[1]")
    server.ok("HSET", "session:hash", "a", "b")
    put(server, "session:not an id", b'{"a": 1}')
    put(server, "session:nothing", b"{}")
    put(server, "session:number", msgpack.packb({1: "key"}))
    told = moved(server, capsys, "--from", "flask-session", server.url, code=cli.BAD)
    assert told == {"unreadable": 4, "foreign": 1, "empty": 1, "unsuitable": 1}
    assert not server.command("KEYS", "new:*")


def test_starsessions_keep_the_time_they_began(
    server: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.time() - 500
    about = {"lifetime": 900, "created": began, "last_access": began}
    put(server, "starsessions.0123456789abcdef", json.dumps({"user": "anna", "__metadata__": about}).encode())
    assert moved(server, capsys, "--from", "starsessions", server.url) == {"moved": 1}
    with Manager(900, RedisStorage(server.url, prefix="new:")) as manager:
        session = manager.new("0123456789abcdef")
        assert session.get_map() == {"user": "anna"}
        assert session.created_at is not None and abs(session.created_at - began) < 5


def test_goframes_sessions_have_no_prefix_unless_it_is_named(
    server: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    put(server, "app:18qlatk1s0cwx8r1xp2100w5s5kqykyv", b'{"uid": 1, "name": "anna"}')
    put(server, "other", b"not a session")
    assert moved(server, capsys, "--from", "goframe", server.url, "--prefix", "app:") == {"moved": 1}
    with Manager(900, RedisStorage(server.url, prefix="new:")) as manager:
        assert manager.new("18qlatk1s0cwx8r1xp2100w5s5kqykyv")["name"] == "anna"


def test_a_source_that_is_away(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["migrate", "--from", "starsessions", "redis://:hunter2@127.0.0.1:1/0", "--to", "memory://"]
    assert cli.main(arguments) == cli.UNAVAILABLE
    assert "hunter2" not in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::cysession.cookies.InsecureCookieWarning")
def test_a_visitor_of_flask_session_keeps_cookie_and_session(
    server: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sessions that Flask-Session itself has stored, and the cookie that it gave out."""
    import flask
    import flask_session
    import redis

    from cysession.flask import CySession

    def visit() -> str:
        flask.session["visits"] = flask.session.get("visits", 0) + 1
        flask.session["when"] = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
        return str(flask.session["visits"])

    before = flask.Flask("before")
    before.config.update(SESSION_TYPE="redis", SESSION_REDIS=redis.Redis.from_url(server.url))
    flask_session.Session(before)
    before.add_url_rule("/", view_func=visit)
    browser = before.test_client()
    assert [browser.get("/").text, browser.get("/").text] == ["1", "2"]
    cookie = browser.get_cookie("session")
    assert cookie is not None
    before.config["SESSION_REDIS"].close()

    assert moved(server, capsys, "--from", "flask-session", server.url) == {"moved": 1}
    with Manager(3600, RedisStorage(server.url, prefix="new:")) as manager:
        after = flask.Flask("after")
        CySession(after, manager, cookie="session", insecure=True)
        after.add_url_rule("/", view_func=visit)
        browser = after.test_client()
        browser.set_cookie("session", cookie.value)
        assert browser.get("/").text == "3"
        assert manager.new(cookie.value)["when"] == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.filterwarnings("ignore::cysession.cookies.InsecureCookieWarning")
def test_a_visitor_of_starsessions_keeps_cookie_and_session(
    server: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same for starsessions."""
    import redis.asyncio
    import starsessions
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route
    from starlette.testclient import TestClient
    from starsessions.stores.redis import RedisStore

    from cysession.asgi import SessionMiddleware

    async def visit(request: Request) -> PlainTextResponse:
        request.session["visits"] = request.session.get("visits", 0) + 1
        return PlainTextResponse(str(request.session["visits"]))

    connection = redis.asyncio.Redis.from_url(server.url)
    store = RedisStore(connection=connection)
    layers = [
        Middleware(starsessions.SessionMiddleware, store=store, lifetime=3600, cookie_https_only=False),
        Middleware(starsessions.SessionAutoloadMiddleware),
    ]
    with TestClient(Starlette(routes=[Route("/", visit)], middleware=layers)) as browser:
        assert [browser.get("/").text, browser.get("/").text] == ["1", "2"]
        cookies = {"session": browser.cookies["session"]}
        assert browser.portal is not None
        browser.portal.call(connection.aclose)

    assert moved(server, capsys, "--from", "starsessions", server.url) == {"moved": 1}
    with Manager(3600, RedisStorage(server.url, prefix="new:")) as manager:
        layers = [Middleware(SessionMiddleware, manager=manager, cookie="session", insecure=True)]
        with TestClient(Starlette(routes=[Route("/", visit)], middleware=layers), cookies=cookies) as browser:
            assert browser.get("/").text == "3"


def test_the_doctor_leaves_out_what_it_may_not_ask(
    own_server: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    rights = (
        "+get +set +getrange +setrange +del +pexpire +pttl +evalsha +eval +exists +zadd +zrange +zrem +info"
    )
    own_server.ok("ACL", "SETUSER", "shop", "on", ">word", "~cysession:*", *rights.split())
    own_server.ok("CONFIG", "SET", "maxmemory", "100mb")
    found = findings(capsys, own_server.url.replace("redis://", "redis://shop:word@"))
    assert found["clock"] == ("ok", "not looked at: the user may not ask for TIME")
    assert found["persistence"][0] == "ok" and "may not ask" in found["persistence"][1]
