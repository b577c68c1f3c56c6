"""The front end before a fake supervisor: what it forwards, what it refuses, what it does in trouble."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sirepo_jobs.frontend import limits
from sirepo_jobs.frontend.routes import ROUTES
from tests.frontend_stage import READER, Reply, Stage, stage, until

JOBS = "/api/v1/jobs"


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[Stage]:
    async with stage(tmp_path) as it:
        yield it


def problem(reply: Reply, status: int, code: str) -> str:
    """The detail of a problem of this kind."""
    assert reply.headers["content-type"] == "application/problem+json"
    said = reply.json
    assert (reply.status, said["status"], said["code"]) == (status, status, code)
    assert said["request_id"] == reply.headers["x-request-id"]
    return str(said["detail"])


# --- forwarding -----------------------------------------------------------------------------------


async def test_one_request_in_is_one_request_out(house: Stage) -> None:
    reply = await house.ask("POST", JOBS, {"command": ["true"], "resources": {"memory": "1 GiB"}})
    assert (reply.status, reply.json) == (201, {"jid": "J0", "serial": 1, "state": "pending"})
    assert reply.headers["location"] == f"{JOBS}/J0"
    ((method, path, headers, body),) = house.fake.asked
    assert (method, path) == ("POST", JOBS)
    assert (headers["X-User"], headers["X-Role"]) == ("ann", "admin")
    assert headers["X-Request-Id"] == reply.headers["x-request-id"]
    assert house.token not in str(headers)
    assert body == b'{"jobs":[{"command":["true"],"resources":{"memory":1073741824}}],"batch":false}'


async def test_a_batch_stays_one(house: Stage) -> None:
    reply = await house.ask("POST", JOBS, {"jobs": [{"command": ["a"]}, {"command": ["b"]}]})
    assert [job["jid"] for job in reply.json["jobs"]] == ["J0", "J1"]
    assert len(house.fake.asked) == 1


async def test_words_are_made_canonical_on_the_way(house: Stage) -> None:
    await house.ask("GET", f"{JOBS}?state=cancelled&limit=010&cursor=")
    await house.ask("GET", f"{JOBS}/J9?wait=0.5s&version=3", token=READER)
    assert [(path, headers["X-User"], headers["X-Role"]) for _, path, headers, _ in house.fake.asked] == [
        (f"{JOBS}?state=canceled&limit=10", "ann", "admin"),
        (f"{JOBS}/J9?wait=0.5s&version=3", "bob", "user"),
    ]


async def test_the_supervisors_problems_are_passed_on(house: Stage) -> None:
    reply = await house.ask("GET", f"{JOBS}/J9")
    assert problem(reply, 404, "not_found") == "no job J9"


async def test_what_clients_send_beside_it_is_not_passed_on(house: Stage) -> None:
    house.fake.add("J1")
    sent = {"X-User": "root", "X-Role": "admin", "Cookie": "a=b", "X-Request-Id": "mine-1"}
    reply = await house.ask("GET", f"{JOBS}/J1", token=READER, headers=sent)
    assert reply.headers["x-request-id"] == "mine-1"
    headers = house.fake.asked[0][2]
    assert (headers["X-User"], headers["X-Role"], headers["X-Request-Id"]) == ("bob", "user", "mine-1")
    assert "Cookie" not in headers


async def test_a_connection_carries_many_requests_also_pipelined(house: Stage) -> None:
    house.fake.add("J1")
    wire = await house.wire()
    await wire.send(house.request("GET", f"{JOBS}/J1") + house.request("GET", "/healthz", token=""))
    assert (await wire.reply()).json["jid"] == "J1"
    assert (await wire.reply()).json == {"status": "ok"}
    await wire.send(house.request("POST", f"{JOBS}/J1/cancel"))
    assert (await wire.reply()).json["state"] == "canceling"


async def test_every_answer_wears_the_security_headers(house: Stage) -> None:
    for reply in (
        await house.ask("GET", "/healthz", token=""),
        await house.ask("GET", "/x"),
        await house.ask("GET", JOBS),
    ):
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["cache-control"] == "no-store"
        assert reply.headers["referrer-policy"] == "no-referrer"
        assert "default-src 'none'" in reply.headers["content-security-policy"]
        assert "server" not in reply.headers


async def test_readiness_tells_no_more_than_that(house: Stage) -> None:
    assert (await house.ask("GET", "/readyz", token="")).json == {"status": "ready"}


# --- who may --------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
async def test_routes_by_methods_by_principals(house: Stage, route: Any) -> None:
    house.fake.add("J1", state="completed")
    path = route.path.replace("{jid}", "J1").replace("{stream}", "stdout").replace("{token}", "0" * 12)
    path = path.replace("{cluster}", "dev").replace("{login}", "L").replace("{agent}", "local-ann")
    body = {"command": ["true"]} if route.path == JOBS and route.method == "POST" else None
    seen = {}
    for name, token in (("nobody", ""), ("stranger", "x" * 43), ("reader", READER), ("admin", None)):
        wire = await house.wire()
        await wire.send(house.request(route.method, path, body, token=token))
        status = int((await wire.reader.readline()).split()[1])
        wire.close()
        seen[name] = status if status in (401, 403) else "served"
    if route.scope is None:
        assert set(seen.values()) == {"served"}
        return
    assert seen == {
        "nobody": 401,
        "stranger": 401,
        "reader": "served" if route.scope in ("jobs:read", "self") else 403,
        "admin": "served",
    }


async def test_without_a_token_nobody_learns_what_there_is(house: Stage) -> None:
    for path in (JOBS, "/api/v1/nothing", "/", "/healthz/"):
        reply = await house.ask("GET", path, token="")
        problem(reply, 401, "no_token")
        assert reply.headers["www-authenticate"] == "Bearer"
    assert house.fake.asked == []


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "code", "pointer", "says"),
    [
        (b'{"command":["a"],"nmae":"x"}', "unknown_key", "/nmae", "did you mean 'name'"),
        (b'{"jobs":[{"command":["a"]},{"command":[]}]}', "bad_input", "/jobs/1/command", "is empty"),
        (b"", "bad_json", "", "not JSON"),
        (b"[" * 100_000, "bad_json", "", "not JSON"),
        (b'{"command":["a"],"env":' + b'{"a":' * 40 + b"1" + b"}" * 41, "bad_input", "/env", ""),
        (b'{"command":["a"],"after":[{"jid":"x"}]}', "not_supported", "/after", "dependencies is not served"),
        (b'{"command":["\xff"]}', "bad_json", "", "not JSON"),
        (b'{"command":["a"],"priority":NaN}', "bad_json", "", "not JSON"),
    ],
)
async def test_bad_specs_name_the_place(
    house: Stage, body: bytes, code: str, pointer: str, says: str
) -> None:
    reply = await house.ask("POST", JOBS, body)
    assert says in problem(reply, 422, code)
    assert reply.json.get("pointer", "") == pointer
    assert house.fake.asked == []


async def test_unknown_parameters_and_paths_and_methods(house: Stage) -> None:
    assert "did you mean 'state'" in problem(
        await house.ask("GET", f"{JOBS}?sate=x"), 422, "unknown_parameter"
    )
    problem(await house.ask("GET", "/api/v1/jobs/../../secret"), 404, "no_such_route")
    problem(await house.ask("GET", f"{JOBS}/%2e%2e/logs/stdout"), 404, "no_such_route")
    reply = await house.ask("PUT", f"{JOBS}/J1")
    problem(reply, 405, "method_not_allowed")
    assert reply.headers["allow"] == "GET, PATCH"
    assert house.fake.asked == []


async def test_headers_that_could_break_out_are_refused_or_replaced(house: Stage) -> None:
    body = {"command": ["true"]}
    reply = await house.ask("POST", JOBS, body, headers={"Idempotency-Key": "a b"})
    problem(reply, 422, "bad_header")
    reply = await house.ask("GET", JOBS, headers={"X-Request-Id": "a<script>"})
    assert "<" not in reply.headers["x-request-id"]
    assert reply.status == 200


async def test_a_body_that_is_too_large_is_answered_not_cut(house: Stage) -> None:
    big = b" " * (2 << 20)
    wire = await house.wire()
    await wire.send(house.request("POST", JOBS, big))  # all of it is taken, and the answer heard
    problem(await wire.reply(), 413, "body_too_large")
    await wire.send(house.request("GET", "/healthz"))
    assert (await wire.reply()).status == 200
    chunk = b"80000\r\n" + b" " * 0x80000 + b"\r\n"
    await wire.send(
        house.request("POST", JOBS, headers={"Transfer-Encoding": "chunked"}).replace(
            b"Content-Length: 0\r\n", b""
        )
        + chunk * 4
        + b"0\r\n\r\n"
    )
    problem(await wire.reply(), 413, "body_too_large")
    assert house.fake.asked == []


async def test_a_body_at_the_limit_is_read(house: Stage) -> None:
    body = b'{"command":["true"]}'
    reply = await house.ask("POST", JOBS, body + b" " * ((1 << 20) - len(body)))
    assert reply.status == 201


@pytest.mark.parametrize(
    "headers", [{"Content-Length": str(1 << 40)}, {"Content-Length": "2000000", "Expect": "100-continue"}]
)
async def test_an_absurd_body_is_answered_before_it_is_sent(house: Stage, headers: dict[str, str]) -> None:
    wire = await house.wire()
    await wire.send(house.request("POST", JOBS, headers=headers))
    reply = await wire.reply()
    problem(reply, 413, "body_too_large")
    assert await wire.is_closed()


async def test_somebody_unknown_cannot_make_us_read(house: Stage) -> None:
    wire = await house.wire()
    await wire.send(house.request("POST", JOBS, token="", headers={"Content-Length": "1000000"}))
    problem(await wire.reply(), 401, "no_token")
    assert await wire.is_closed()


async def test_headers_beyond_the_limit(house: Stage) -> None:
    reply = await house.ask("GET", JOBS, headers={"X-Long": "x" * (33 << 10)})
    problem(reply, 431, "headers_too_large")
    reply = await house.ask("GET", JOBS, headers={"X-Long": "x" * (30 << 10)})
    assert reply.status == 200


async def test_what_we_did_not_foresee_says_nothing_to_clients(
    house: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(answer: Any) -> Any:
        raise ZeroDivisionError("the inside")

    monkeypatch.setattr(house.frontend.upstream, "ask", broken)
    with caplog.at_level(logging.ERROR):
        reply = await house.ask("GET", JOBS)
    problem(reply, 500, "internal")
    assert b"inside" not in reply.body
    assert b"Traceback" not in reply.body
    assert "the inside" in caplog.text


# --- the supervisor comes and goes ----------------------------------------------------------------


async def test_while_the_supervisor_is_away_clients_are_told_when_to_come_back(house: Stage) -> None:
    assert (await house.ask("GET", JOBS)).status == 200
    await house.fake.stop()
    for path in (JOBS, "/readyz"):
        reply = await house.ask("GET", path)
        problem(reply, 503, "unavailable")
        assert reply.headers["retry-after"] == "1"
    assert (await house.ask("GET", "/healthz")).status == 200
    house.fake.secret = "z" * 43  # the new one has another secret
    house.fake.start()
    assert (await house.ask("GET", JOBS)).status == 200


async def test_before_its_first_start_there_is_no_secret(house: Stage) -> None:
    (house.root / "secret").unlink()
    assert "not started yet" in problem(await house.ask("GET", JOBS), 503, "unavailable")


async def test_a_wrong_secret_is_our_trouble_not_the_clients(house: Stage) -> None:
    (house.root / "secret").write_text("other")
    problem(await house.ask("GET", JOBS), 503, "unavailable")


async def test_a_kept_connection_that_died_is_replaced_for_reading_only(house: Stage) -> None:
    assert (await house.ask("GET", JOBS)).status == 200
    house.fake.drop = 1
    assert (await house.ask("GET", JOBS)).status == 200
    house.fake.drop = 1
    reply = await house.ask("POST", JOBS, {"command": ["true"]})
    assert "may have been carried out" in problem(reply, 503, "unavailable")
    assert [method for method, *_ in house.fake.asked] == ["GET", "GET", "GET", "POST"]


async def test_an_answer_that_breaks_off_is_not_passed_off_as_whole(house: Stage) -> None:
    house.fake.add("J1")
    house.fake.cut_after = 3
    await house.fake.write("J1", b"abcdef")
    reply = await house.ask("GET", f"{JOBS}/J1/logs/stdout?follow=1")
    assert (reply.status, reply.body, reply.whole) == (200, b"abc", False)


# --- streams --------------------------------------------------------------------------------------


async def test_a_follower_hears_each_piece_as_it_comes(house: Stage) -> None:
    house.fake.add("J1")
    wire = await house.wire()
    await wire.send(house.request("GET", f"{JOBS}/J1/logs/stdout?follow=1"))
    head = await wire.reader.readuntil(b"\r\n\r\n")  # before there is anything to follow
    assert b"X-Attempt: 1\r\n" in head
    for piece in (b"one\n", b"\x00\xfftwo"):
        await house.fake.write("J1", piece)
        assert await wire.reader.readexactly(len(piece) + 5) == b"%x\r\n%s\r\n" % (len(piece), piece)
    await house.fake.change("J1", state="completed")
    assert await wire.reader.readexactly(5) == b"0\r\n\r\n"
    await wire.send(house.request("GET", "/healthz"))
    assert (await wire.reply()).status == 200


async def test_a_client_that_leaves_takes_its_stream_along(house: Stage) -> None:
    house.fake.add("J1")
    wire = await house.wire()
    await wire.send(house.request("GET", f"{JOBS}/J1/logs/stdout?follow=1"))
    await wire.reader.readuntil(b"\r\n\r\n")
    assert house.fake.streams == 1
    wire.close()
    await until(lambda: house.fake.streams == 0)
    assert (await house.ask("GET", f"{JOBS}/J1")).json["state"] == "running"


async def test_a_slow_reader_slows_only_itself(house: Stage) -> None:
    house.fake.add("big")
    house.fake.big_bytes = 50_000_000
    wire = await house.wire()
    await wire.send(house.request("GET", f"{JOBS}/big/logs/stdout?follow=1"))
    await wire.reader.readuntil(b"\r\n\r\n")
    written = -1
    while written != house.fake.written:  # until nothing moves any more
        written = house.fake.written
        await asyncio.sleep(0.1)
    assert written < 10_000_000  # socket buffers, and nothing else
    house.fake.add("J1")
    assert (await house.ask("GET", f"{JOBS}/J1")).status == 200
    wire.close()
    await until(lambda: house.fake.streams == 0)


async def test_a_large_stream_arrives_whole(house: Stage) -> None:
    import hashlib

    from tests.fake_supervisor import big_digest

    house.fake.add("big")
    reply = await house.ask("GET", f"{JOBS}/big/logs/stdout?offset=5")
    assert reply.whole
    assert len(reply.body) == house.fake.big_bytes - 5
    whole = hashlib.sha256(bytes(range(5)) + reply.body).hexdigest()
    assert whole == big_digest(house.fake.big_bytes)


async def test_events_go_on_after_the_last_id(house: Stage) -> None:
    for _ in range(3):
        await house.ask("GET", JOBS)
    wire = await house.wire()
    await wire.send(house.request("GET", "/api/v1/events", headers={"Last-Event-ID": "2"}))
    head = await wire.reader.readuntil(b"\r\n\r\n")
    assert b"Content-Type: text/event-stream" in head
    assert b"id: 3\n" in await wire.reader.readuntil(b"\n\n")


# --- the end --------------------------------------------------------------------------------------


async def test_ending_cuts_streams_tells_waiters_and_lets_short_requests_finish(
    house: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "DRAIN_SECS", 1000.0)  # nobody here is waited for
    house.fake.add("J1")
    follower, waiter = await house.wire(), await house.wire()
    await follower.send(house.request("GET", f"{JOBS}/J1/logs/stdout?follow=1"))
    await follower.reader.readuntil(b"\r\n\r\n")
    await waiter.send(house.request("GET", f"{JOBS}/J1?wait=60s&version=1"))
    await until(lambda: len(house.frontend.exchanges) == 2)
    await asyncio.wait_for(house.frontend.stop(), 60)
    assert await follower.is_closed()  # without the last chunk: the client knows that it is not the end
    reply = await waiter.reply()
    problem(reply, 503, "unavailable")
    with pytest.raises(OSError):
        await house.wire()
    await house.frontend.stop()


async def test_more_than_we_can_serve_is_told_to_come_back(
    house: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_EXCHANGES", 0)
    reply = await house.ask("GET", JOBS)
    problem(reply, 503, "busy")
    assert reply.headers["retry-after"] == "1"
