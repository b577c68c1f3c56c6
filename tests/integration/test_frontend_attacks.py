"""What an attacker would try on the front end: smuggling, floods, slowness, foreign pages.

S15, S16, S34, S36, S37, S65."""

import asyncio
import base64
import contextlib
import threading
from collections.abc import AsyncIterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sirepo_jobs.client import Client
from sirepo_jobs.errors import Error
from sirepo_jobs.frontend import limits
from sirepo_jobs.frontend.crowd import BODIES, BODIES_OF_ONE, Crowd
from sirepo_jobs.frontend.origins import Origins
from sirepo_jobs.frontend.public import Public
from tests.frontend_stage import READER, Stage, Wire, stage, until
from tests.service_stage import service_of

JOBS = "/api/v1/jobs"
FRIEND = "https://gateway.example"


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[Stage]:
    async with stage(tmp_path) as it:
        yield it


# --- smuggling ------------------------------------------------------------------------------------

SPEC = b'{"command":["true"]}'
INNER = b"GET /api/v1/jobs/SMUGGLED HTTP/1.1\r\nHost: x\r\n\r\n"


def head(*lines: bytes, first: bytes = b"POST /api/v1/jobs HTTP/1.1") -> bytes:
    return b"\r\n".join([first, b"Host: x", b"Authorization: Bearer %TOKEN%", *lines, b"", b""])


@pytest.mark.parametrize(
    "data",
    [
        head(b"Content-Length: 4", b"Transfer-Encoding: chunked") + b"0\r\n\r\n" + INNER,
        head(b"Transfer-Encoding: chunked", b"Content-Length: 4") + b"0\r\n\r\n" + INNER,
        head(b"Content-Length: 0", b"Content-Length: 60") + INNER,
        head(b"Content-Length: +20") + SPEC,
        head(b"Content-Length: 2_0") + SPEC,
        head(b"Content-Length: 20, 21") + SPEC,
        head(b"Content-Length : 20") + SPEC,
        head(b"Content-Length: 0x14") + SPEC,
        head(b"Transfer-Encoding: xchunked") + b"0\r\n\r\n" + INNER,
        head(b"Transfer-Encoding: chunked, identity") + b"0\r\n\r\n" + INNER,
        head(b"Transfer-Encoding:\x0bchunked") + b"0\r\n\r\n" + INNER,
        head(b"Transfer-Encoding : chunked") + b"0\r\n\r\n" + INNER,
        head(b"Transfer-Encoding: chunked") + b"-1\r\n\r\n" + INNER,
        head(b"Transfer-Encoding: chunked") + b"0x0\r\n\r\n" + INNER,
        head(b"Transfer-Encoding: chunked") + b"0" * 100 + b"\r\n\r\n" + INNER,
        head(b"X-Bad: a\x00b", b"Content-Length: 20") + SPEC,
        head(b"X-Bad: a\rX-User: root", b"Content-Length: 20") + SPEC,
        head(b"\x00X: y", b"Content-Length: 20") + SPEC,
        head(b"X Y: z", b"Content-Length: 20") + SPEC,
        head(b": z", b"Content-Length: 20") + SPEC,
        head(first=b"GET /api/v1/jobs/A HTTP/1.1\r\n X: folded-before-any"),
        head(first=b"GET /api/v1/jobs/A\x00 HTTP/1.1"),
        head(first=b"GET /api/v1/jobs/A\rB HTTP/1.1"),
        head(first=b"GET /api/v1/jobs/A HTTP/9.9"),
        head(first=b"GET  /api/v1/jobs/A HTTP/1.1"),
        head(first=b"PRI * HTTP/2.0"),
    ],
)
async def test_what_two_parsers_could_read_in_two_ways_is_not_forwarded(house: Stage, data: bytes) -> None:
    wire = await house.wire()
    await wire.send(data.replace(b"%TOKEN%", house.token.encode()))
    said = b""
    with contextlib.suppress(ConnectionResetError):
        said = await asyncio.wait_for(wire.reader.read(65536), 20)
    assert said.split()[1:2] in ([], [b"400"], [b"404"], [b"422"]), said
    assert house.fake.asked == []
    assert b"SMUGGLED" not in said


async def test_a_request_that_is_forwarded_is_one_request(house: Stage) -> None:
    """The rest of a body is the next request here, and never one of the line to the supervisor."""
    wire = await house.wire()
    inner = house.request("GET", f"{JOBS}/INNER")
    await wire.send(
        house.request("GET", f"{JOBS}/OUTER", headers={"Content-Length": str(len(inner))}) + inner
    )
    await wire.reply()
    assert [path for _, path, _, _ in house.fake.asked] == [f"{JOBS}/OUTER"]
    for target in (
        f"{JOBS}/A?wait=1s%0d%0aX:y",
        f"{JOBS}?name_prefix=a%0d%0aX-User:%20root%0d%0a%0d%0aGET%20/",
    ):
        await house.ask("GET", target)
    for _, path, headers, _ in house.fake.asked:
        assert headers["X-User"] == "ann"
        assert "\r" not in path
        assert " " not in path
    assert len(house.fake.asked) == 2  # `wait` was refused; the other is one request with an odd prefix


@pytest.mark.parametrize("value", ["bytes=0-1\x0bX", "a\x01", "x" * 2001])
async def test_odd_conditions_are_left_out(house: Stage, value: str) -> None:
    await house.ask("GET", f"{JOBS}/A/files/stdout", headers={"Range": value})
    assert all("Range" not in headers for _, _, headers, _ in house.fake.asked)


@pytest.mark.parametrize(
    "path",
    [
        "../../token",
        "%2e%2e/token",
        "a/%2e%2e/b",
        "a//b",
        "./a",
        "%00",
        "a%2fb",
        "/etc/passwd",
        "%",
        "%zz",
        "a\\..\\b%2f",
    ],
)
async def test_paths_stay_inside(house: Stage, path: str) -> None:
    reply = await house.ask("GET", f"{JOBS}/A/files/{path}")
    assert reply.status in (400, 404, 422), reply
    for _, asked, _, _ in house.fake.asked:
        assert ".." not in asked
        assert "//" not in asked


# --- floods and slowness --------------------------------------------------------------------------


async def test_what_a_client_pumps_in_while_it_is_answered_is_not_kept(
    house: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream that is open, and a client that goes on sending, and then leaves: nobody noticed."""
    monkeypatch.setattr(limits, "LOOK_SECS", 0.1)
    house.frontend._look()
    wire = await house.wire()
    await wire.send(house.request("GET", "/api/v1/events"))
    await wire.reader.readuntil(b"\r\n\r\n")
    sent = 0
    with contextlib.suppress(ConnectionError, TimeoutError):
        while sent < 32 << 20:
            wire.writer.write(b"x" * (1 << 16))
            await asyncio.wait_for(wire.writer.drain(), 1)
            sent += 1 << 16
    assert sent < 16 << 20  # sockets buffer some
    wire.close()
    await until(lambda: not house.frontend.exchanges)


async def test_who_asks_for_more_and_leaves_is_noticed(house: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A next request that nobody reads yet hid that its client had gone."""
    house.fake.add("J1")
    wire = await house.wire()
    await wire.send(
        house.request("GET", f"{JOBS}/J1/logs/stdout?follow=1") + house.request("GET", "/healthz")
    )
    await wire.reader.readuntil(b"\r\n\r\n")
    monkeypatch.setattr(limits, "LOOK_SECS", 0.1)
    house.frontend._look()
    assert len(house.frontend.exchanges) == 1
    wire.close()
    await until(lambda: not house.frontend.exchanges and not house.fake.streams)


async def test_bodies_in_memory_are_bounded(house: Stage) -> None:
    """Many large bodies at once, each below the limit of one."""
    size = house.frontend.max_body_bytes
    crowd = house.frontend.crowd
    wires = []
    for _ in range(BODIES_OF_ONE):
        wire = await house.wire()
        await wire.send(house.request("POST", JOBS, headers={"Content-Length": str(size)}))
        await wire.send(b" " * (size - 1))
        wires.append(wire)
    await until(lambda: crowd._bytes["ann"] == BODIES_OF_ONE * (size - 1))
    late = await house.wire()
    await late.send(house.request("POST", JOBS, SPEC + b" " * 1000))
    reply = await late.reply()
    assert (reply.status, reply.json["code"], reply.headers["retry-after"]) == (503, "busy", "1")
    for wire in wires:
        wire.close()
    await until(lambda: not crowd._bytes)
    assert crowd._all_bytes == 0
    assert (await house.ask("POST", JOBS, SPEC)).status == 201
    assert not crowd._bytes


def test_bodies_of_many_users_are_bounded_too() -> None:
    from sirepo_jobs.errors import Unavailable

    crowd = Crowd(10, 100)
    for number in range(BODIES):
        crowd.hold(f"user{number}", 100)
    with pytest.raises(Unavailable):
        crowd.hold("late", 1)
    crowd.let_go("user0", 100)
    crowd.hold("late", 1)


async def test_nobody_takes_every_place(house: Stage) -> None:
    house.frontend.crowd = Crowd(3, 1 << 20)
    wires = []
    for _ in range(3):
        wire = await house.wire()
        await wire.send(house.request("GET", "/api/v1/events", token=READER))
        await wire.reader.readuntil(b"\r\n\r\n")
        wires.append(wire)
    # as the front end of a book's token, not of the starter
    tokens = house.frontend.tokens
    for known in tokens._by_prefix.values():
        known[:] = [(digest, p if p.user == "ann" else _by_book(p)) for digest, p in known]
    reply = await house.ask("GET", JOBS, token=READER)
    assert (reply.status, reply.json["code"]) == (429, "too_many_requests")
    assert (await house.ask("GET", JOBS)).status == 200  # somebody else
    wires.pop().close()
    await until(lambda: house.frontend.crowd._requests["bob"] == 2)
    assert (await house.ask("GET", JOBS, token=READER)).status == 200


def _by_book(principal: Any) -> Any:
    import msgspec

    return msgspec.structs.replace(principal, via="token")


async def test_connections_are_counted(house: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_CONNECTIONS", 2)
    kept: list[Wire] = []
    for _ in range(2):
        wire = await house.wire()
        await wire.send(house.request("GET", "/healthz"))
        await wire.reply()
        kept.append(wire)
    assert await (await house.wire()).is_closed()
    kept[0].close()
    await until(lambda: len(house.frontend._server._connections) < 2)
    assert (await house.ask("GET", "/healthz")).status == 200


async def test_a_connection_that_is_closed_leaves_nothing(house: Stage) -> None:
    """F094: thousands that come and go within one look must not add up."""
    for begin in (b"", b"GET / HTTP/1.1\r\nX: ", house.request("GET", "/healthz")):
        wire = await house.wire()
        await wire.send(begin)
        await until(lambda: len(house.frontend._coming) == 1)
        wire.close()
        await until(lambda: not house.frontend._coming)
    assert not house.frontend._newest


async def test_who_dawdles_is_put_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "IDLE_SECS", 0.3)
    monkeypatch.setattr(limits, "BODY_SECS", 0.3)
    monkeypatch.setattr(limits, "LOOK_SECS", 0.1)
    async with stage(tmp_path) as house:
        left = await house.wire()
        left.close()
        for begin in (
            b"",
            b"GET / HTTP/1.1\r\nX: ",
            house.request("POST", JOBS, headers={"Content-Length": "9"}),
        ):
            wire = await house.wire()
            await wire.send(begin)
            assert await wire.is_closed()
        await until(lambda: not house.frontend.exchanges)
        await until(lambda: not house.frontend._coming)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br"])
async def test_a_body_is_never_unpacked(house: Stage, encoding: str) -> None:
    import gzip

    bomb = gzip.compress(b" " * 10_000_000)
    reply = await house.ask("POST", JOBS, bomb, headers={"Content-Encoding": encoding})
    assert (reply.status, reply.json["code"]) == (422, "bad_json")


# --- foreign pages --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "null",
        "",
        "http://here.evil.example",
        "http://evilhere",
        "http://here:81",
        "here",
        "http://here/",
        "http://here@evil.example",
        "https://gateway.example.evil.example",
        "https://evilgateway.example",
        "http://gateway.example",
        "https://gateway.example:444",
        "https://gateway.example, https://evil.example",
        "*",
    ],
)
async def test_a_foreign_page_gets_nothing(house: Stage, origin: str) -> None:
    house.frontend.origins = Origins([FRIEND])
    for method, path, body in (
        ("GET", "/api/v1/events", None),
        ("GET", f"{JOBS}/J/logs/stdout?follow=1", None),
        ("GET", JOBS, None),
        ("POST", JOBS, {"command": ["true"]}),
        ("DELETE", "/api/v1/tokens/" + "0" * 12, None),
        ("PATCH", JOBS, []),
        ("OPTIONS", JOBS, None),
    ):
        for token in (None, ""):  # with and without credentials it hears the same
            reply = await house.ask(method, path, body, token=token, headers={"Origin": origin})
            assert (reply.status, reply.json["code"]) == (403, "origin_refused"), (method, path)
            assert "access-control-allow-origin" not in reply.headers
    assert house.fake.asked == []


async def test_our_own_pages_and_friends_get_what_they_ask(house: Stage) -> None:
    house.frontend.origins = Origins([FRIEND])
    own = await house.ask("POST", JOBS, {"command": ["true"]}, headers={"Origin": "http://here"})
    assert own.status == 201
    assert "access-control-allow-origin" not in own.headers
    assert (await house.ask("GET", JOBS, headers={"Origin": "https://here"})).status == 200  # TLS by a proxy
    friend = await house.ask("GET", JOBS, headers={"Origin": FRIEND})
    assert (friend.status, friend.headers["access-control-allow-origin"]) == (200, FRIEND)
    assert "access-control-allow-credentials" not in friend.headers
    assert friend.headers["vary"] == "Origin"
    asks = {"Origin": FRIEND, "Access-Control-Request-Method": "POST"}
    for path in (JOBS, "/nothing"):
        reply = await house.ask("OPTIONS", path, token="", headers=asks)
        assert (reply.status, reply.body) == (200, b"")
        assert "Authorization" in reply.headers["access-control-allow-headers"]
    assert (await house.ask("OPTIONS", JOBS, headers={"Origin": FRIEND})).status == 405  # no such question


async def test_behind_tls_of_ours_a_page_in_the_clear_is_foreign(house: Stage) -> None:
    house.frontend.origins = Origins(tls=True)
    assert (await house.ask("GET", JOBS, headers={"Origin": "http://here"})).status == 403
    assert (await house.ask("GET", JOBS, headers={"Origin": "https://here"})).status == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
async def test_a_browser_that_says_so_is_believed(house: Stage, site: str) -> None:
    said = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors"}
    assert (await house.ask("POST", JOBS, {"command": ["true"]}, headers=said)).status == 403
    assert (await house.ask("GET", JOBS, headers=said)).status == 200  # somebody followed a link


# --- another name ---------------------------------------------------------------------------------


async def test_under_another_name_clients_are_told_that_name(house: Stage) -> None:
    house.frontend.public = Public("https://lab.example/compute/jobs/")
    prefix = "/compute/jobs"
    made = await house.ask("POST", prefix + JOBS, {"command": ["true"]})
    assert made.headers["location"] == f"{prefix}{JOBS}/J0"
    assert (await house.ask("GET", made.headers["location"])).status == 200
    assert (await house.ask("GET", f"{prefix}/openapi.json")).json["servers"] == [
        {"url": "https://lab.example/compute/jobs"}
    ]
    assert (await house.ask("GET", f"{prefix}/healthz", token="")).status == 200
    assert (await house.ask("GET", f"{JOBS}/J0")).status == 200  # past the proxy
    for path in (f"{prefix}{prefix}/healthz", "/compute/jobsx/healthz", f"{prefix}healthz", prefix):
        assert (await house.ask("GET", path, token="")).status == 401
        assert (await house.ask("GET", path)).status == 404
    lines = (house.root / "audit.jsonl").read_text().splitlines()
    assert '"object":"J0"' in lines[0]
    assert f'"path":"{JOBS}"' in lines[0]


# --- cursors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "inside", [b"9" * 700, b"9" * 19, b"-1", b"1_0", b" 1", b"\xd9\xa1", b"1e3", b"\0", b"x"]
)
async def test_a_cursor_that_was_made_up_is_refused(tmp_path: Path, inside: bytes) -> None:
    """`-1`, `1_0` and numbers that no database holds passed for places in the list."""
    async with service_of(tmp_path) as service:
        await service.ask("POST", JOBS, {"command": ["true"]})
        cursor = base64.urlsafe_b64encode(inside).decode().rstrip("=")
        reply = await service.ask("GET", f"{JOBS}?cursor={cursor}")
        assert reply.status == 422, reply.json
        assert "next_cursor" in reply.json["detail"]
        assert (await service.ask("GET", f"{JOBS}?cursor={'A' * 1001}")).status == 422


# --- our own client -------------------------------------------------------------------------------


def test_a_token_follows_no_redirect() -> None:
    """S32: a server that sends clients elsewhere does not send their tokens there."""
    asked: list[tuple[str, str | None]] = []

    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, self.headers.get("Authorization")))
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{self.server.server_address[1]}/stolen")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with (
            Client(f"http://127.0.0.1:{server.server_address[1]}", "t" * 43, patience_secs=0) as client,
            pytest.raises(Error),
        ):
            client.get("J1")
        server.shutdown()
    assert [path for path, _ in asked] == ["/api/v1/jobs/J1"]
