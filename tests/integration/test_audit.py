"""What the front end writes into its audit log (S48, I28)."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sirepo_jobs.frontend.audit import verify
from tests.service_stage import Service, eventually, service_of

JOBS = "/api/v1/jobs"


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with service_of(tmp_path) as it:
        yield it


def lines(service: Service) -> list[dict[str, Any]]:
    verify(service.root / "audit.jsonl")
    return [json.loads(line) for line in (service.root / "audit.jsonl").read_bytes().splitlines()]


async def test_each_request_that_would_change_something_has_one_line(service: Service) -> None:
    ann, ann_id = await service.a_token("ann")
    bob, _ = await service.a_token("bob")
    jid = (await service.ask("POST", JOBS, {"command": ["true"]}, token=ann)).json["jid"]
    await service.ask("GET", f"{JOBS}/{jid}", token=ann)  # changes nothing
    await service.ask("POST", f"{JOBS}/{jid}/cancel", token=bob)
    await service.ask("POST", f"{JOBS}/{jid}/cancel", token=ann, headers={"X-Request-Id": "mine"})
    await service.ask("POST", JOBS, {"command": ["true"]}, token="")
    await service.ask("POST", "/api/v1/nothing", token=ann)
    await service.ask("POST", JOBS, {"command": []}, token=ann)
    made = (await service.ask("POST", "/api/v1/tokens", {"user": "eve"})).json
    await service.ask("DELETE", f"/api/v1/tokens/{made['id']}")
    found = lines(service)
    assert [(x["user"], x["method"], x["object"], x["decision"], x["status"]) for x in found] == [
        ("ann", "POST", jid, "accepted", 201),
        ("bob", "POST", jid, "denied", 404),
        ("ann", "POST", jid, "accepted", 200),
        (None, "POST", "", "denied", 401),
        ("ann", "POST", "", "denied", 404),
        ("ann", "POST", "", "denied", 422),
        ("root", "POST", made["id"], "accepted", 201),
        ("root", "DELETE", made["id"], "accepted", 200),
    ]
    assert (found[0]["token"], found[0]["via"], found[0]["role"]) == (ann_id, "token", "user")
    assert found[2]["request_id"] == "mine"
    text = (service.root / "audit.jsonl").read_text()
    for secret in (ann, bob, made["token"], f"sj_0_{service.token}"):
        assert secret.removeprefix("sj_").partition("_")[2] not in text


async def test_who_leaves_before_the_answer_leaves_a_line(service: Service) -> None:
    wire = await service.wire()
    await wire.send(service.request("POST", JOBS, b"x" * 100, token="x" * 43)[:-50])
    wire.close()  # denied, and never heard to its end
    await eventually(lambda: [x["status"] for x in lines(service)] == [401])


async def test_while_nothing_can_be_written_nothing_is_changed(service: Service) -> None:
    service.frontend.audit.trouble = "No space left on device"
    reply = await service.ask("POST", JOBS, {"command": ["true"]})
    assert (reply.status, reply.json["code"]) == (503, "audit_failed")
    assert (await service.ask("GET", JOBS)).json["jobs"] == []
    assert (await service.ask("POST", JOBS, {"command": ["true"]})).status == 201  # that line went through
