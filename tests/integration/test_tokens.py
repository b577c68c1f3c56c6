"""Tokens from the supervisor's book to the front end's door, on real parts (S5, S7, S9, S10)."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sirepo_jobs.frontend import auth
from sirepo_jobs.frontend.rates import Rates
from sirepo_jobs.store import Store
from sirepo_jobs.tokens import Role, Scope
from tests.frontend_stage import Wire
from tests.service_stage import Service, eventually, service_of

JOBS = "/api/v1/jobs"
TOKENS = "/api/v1/tokens"


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with service_of(tmp_path, proxy=auth.Proxy("p" * 43)) as it:
        yield it


async def status(service: Service, token: str, path: str = JOBS, method: str = "GET") -> int:
    return (await service.ask(method, path, token=token)).status


async def test_a_token_is_made_used_listed_and_revoked(service: Service, tmp_path: Path) -> None:
    reply = await service.ask("POST", TOKENS, {"user": "ann", "name": "laptop", "expires_in": "2h"})
    assert reply.status == 201
    made = reply.json
    assert reply.headers["location"] == f"{TOKENS}/{made['id']}"
    assert (made["user"], made["role"], made["created_by"], made["valid"]) == ("ann", "user", "root", True)
    token = made["token"]
    # it opens the door within the time that the news takes
    while (seen := await status(service, token)) != 200:
        assert seen == 401
    listed = (await service.ask("GET", TOKENS, token=token)).json["tokens"]
    assert [row["id"] for row in listed] == [made["id"]]
    assert token not in str(listed)
    await eventually(lambda: service.house.supervisor.tokens.listed("ann")[0].used_day is not None)
    reply = await service.ask("DELETE", f"{TOKENS}/{made['id']}", token=token)
    assert (reply.status, reply.json["valid"]) == (200, False)
    again = await service.ask("DELETE", f"{TOKENS}/{made['id']}")
    assert again.json == reply.json
    while await status(service, token) != 401:
        pass
    for name in ("jobs.db", "jobs.db-wal"):  # S7: not even in the log
        assert token.split("_", 2)[2].encode() not in (tmp_path / name).read_bytes()


async def test_the_book_outlives_the_supervisor(service: Service, tmp_path: Path) -> None:
    _, kept = await service.a_token("ann")
    _, ended = await service.a_token("ann")
    await service.ask("DELETE", f"{TOKENS}/{ended}")
    await service.house.store.flushed()
    rows = {row.token: row for row in await service.house.store.tokens()}
    assert rows[kept].revoked_at is None
    assert rows[ended].revoked_at is not None
    assert rows == {row.token: row for row in service.house.supervisor.tokens.listed(None)}
    assert isinstance(service.house.store, Store)


async def test_nobody_helps_himself_to_more(service: Service) -> None:
    user, own = await service.a_token("ann")
    reader, _ = await service.a_token("ann", role=Role.READ_ONLY)
    _, foreign = await service.a_token("bob")
    reply = await service.ask("POST", TOKENS, {"user": "ann", "role": "admin"}, token=user)
    assert (reply.status, reply.json["code"]) == (403, "missing_scope")
    # foreign is as missing as missing
    replies = [await service.ask("DELETE", f"{TOKENS}/{token}", token=user) for token in (foreign, "0" * 12)]
    said = [(r.status, r.json["code"], r.json["detail"].replace(foreign, "0" * 12)) for r in replies]
    assert said[0] == said[1]
    assert said[0][0] == 404
    assert (await service.ask("GET", f"{TOKENS}?user=bob", token=user)).status == 404
    # a weaker token does not end a stronger one
    assert await status(service, reader, f"{TOKENS}/{own}", "DELETE") == 403
    assert await status(service, user) == 200


async def test_an_admins_token_without_the_scope_sees_its_own_jobs_only(service: Service) -> None:
    await service.ask("POST", JOBS, {"command": ["true"]})
    weak, _ = await service.a_token("ann", role=Role.ADMIN, scopes=[Scope.JOBS_READ])
    strong, _ = await service.a_token("ann", role=Role.ADMIN)
    assert (await service.ask("GET", JOBS, token=weak)).json["jobs"] == []
    assert len((await service.ask("GET", JOBS, token=strong)).json["jobs"]) == 1


async def open_streams(service: Service, token: str) -> list[Wire]:
    """A followed log, the events, and a blocking query."""
    jid = (await service.ask("POST", JOBS, {"command": ["true"]}, token=token)).json["jid"]
    wires = []
    for path in (
        f"{JOBS}/{jid}/logs/stdout?follow=1",
        "/api/v1/events?after=0",
        f"{JOBS}/{jid}?wait=300s&version=999",
    ):
        wire = await service.wire()
        await wire.send(service.request("GET", path, token=token))
        wires.append(wire)
    await eventually(lambda: len([e for e in service.frontend.exchanges if e.lasting]) == 3)
    # The log and the query are with the supervisor, and the events have begun: those can only break off.
    job = await service.house.job(jid)
    await eventually(lambda: job.pins == 2)
    await asyncio.wait_for(wires[1].reader.readuntil(b"\r\n\r\n"), 60)
    return wires


async def ended(wires: list[Wire], secs: float) -> list[bytes]:
    async with asyncio.timeout(secs):
        return [
            await wire.reader.read() if wire is wires[1] else await wire.reader.readline() for wire in wires
        ]


async def test_open_streams_end_with_their_token(service: Service) -> None:
    token, token_id = await service.a_token("ann")
    other, _ = await service.a_token("bob")
    wires = await open_streams(service, token)
    staying = await service.wire()
    await staying.send(service.request("GET", "/api/v1/events", token=other))
    began = time.monotonic()
    assert (await service.ask("DELETE", f"{TOKENS}/{token_id}")).status == 200
    _log, events, query = await ended(wires, 5)
    assert time.monotonic() - began < 5
    assert not events.endswith(b"0\r\n\r\n")  # broken off, not ended
    assert query.startswith(b"HTTP/1.1 401 ")
    assert [e for e in service.frontend.exchanges if e.lasting]  # bob's


async def test_open_streams_end_when_their_token_expires(service: Service) -> None:
    token, _ = await service.a_token("ann", expires_in=600.0)
    wires = await open_streams(service, token)
    copy = service.frontend.tokens.copy
    copy._now = lambda: time.time() + 599.0  # as the front end's clock has it: one second is left
    assert (await ended(wires, 7))[2].startswith(b"HTTP/1.1 401 ")


async def test_a_silent_supervisor_is_believed_for_five_seconds(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sirepo_jobs.token_book.HEARTBEAT_SECS", 1000.0)
    token, _ = await service.a_token("ann")
    wires = await open_streams(service, token)
    began = time.monotonic()
    _, _, query = await ended(wires, 8)
    assert time.monotonic() - began < 6.5
    assert query.startswith(b"HTTP/1.1 503 ")  # nobody knows that it is not valid: ask again


async def test_without_a_supervisor_tokens_are_not_judged_for_long(service: Service) -> None:
    token, _ = await service.a_token("ann")
    await service.close_supervisor()
    copy = service.frontend.tokens.copy
    assert await status(service, token) == 503  # known, and nobody to ask
    assert copy.is_fresh
    copy._heard_at = time.monotonic() - auth.MAX_AGE_SECS - 1
    reply = await service.ask("GET", JOBS, token=token)
    assert (reply.status, reply.headers["retry-after"]) == (503, "1")
    assert (
        await status(service, token[:-1] + ("A" if token[-1] != "A" else "B")) == 503
    )  # not known to be false
    assert await status(service, "x" * 43) == 401
    service.listen_supervisor()
    await eventually(lambda: copy.is_fresh)
    assert await status(service, token) == 200


async def test_a_proxy_brings_its_users(service: Service) -> None:
    named = {"X-Proxy-Secret": "p" * 43, "X-Remote-User": "ann@lab.example"}
    reply = await service.ask("POST", JOBS, {"command": ["true"]}, token="", headers=named)
    assert reply.status == 201
    job = (await service.ask("GET", reply.headers["location"], token="", headers=named)).json
    assert job["user"] == "ann@lab.example"
    other = named | {"X-Remote-User": "bob"}
    assert (await service.ask("GET", reply.headers["location"], token="", headers=other)).status == 404
    assert (await service.ask("GET", TOKENS, token="", headers=named)).json == {"tokens": []}
    false = named | {"X-Proxy-Secret": "q" * 43}
    for headers in (false, {"X-Remote-User": "root"}):
        assert (await service.ask("GET", JOBS, headers=headers)).status == 401  # the token does not help
    assert (await service.ask("POST", TOKENS, {"user": "x"}, token="", headers=named)).status == 403


async def test_a_proxys_headers_mean_nothing_where_none_is_configured(tmp_path: Path) -> None:
    async with service_of(tmp_path) as plain:
        named = {"X-Proxy-Secret": "p" * 43, "X-Remote-User": "ann"}
        assert (await plain.ask("GET", JOBS, token="", headers=named)).status == 401


async def test_the_feed_is_not_for_clients(service: Service) -> None:
    assert await status(service, service.token, "/internal/tokens") == 404


async def test_who_asks_too_often_is_told_when_to_come_back(tmp_path: Path) -> None:
    now = 0.0
    async with service_of(tmp_path, rates=Rates(1, 3, lambda: now)) as limited:
        token, _ = await limited.a_token("ann")
        seen = [await limited.ask("GET", JOBS, token=token) for _ in range(4)]
        assert [reply.status for reply in seen] == [200, 200, 200, 429]
        assert (seen[3].headers["retry-after"], seen[3].json["code"]) == ("1", "too_many_requests")
        assert await status(limited, limited.token) == 200
        now = 1.0  # who has waited so long may ask once more
        assert [await status(limited, token) for _ in range(2)] == [200, 429]
