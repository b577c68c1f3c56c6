"""The verbs through the supervisor's own door, with an agent that does what the test says."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPResponse
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application

from sirepo_jobs import protocol as p
from sirepo_jobs.api import House as Door
from sirepo_jobs.api import routes
from sirepo_jobs.job import State
from sirepo_jobs.resources import Resources
from sirepo_jobs.spec import JobSpec
from tests.integration.test_supervisor import House, house_of
from tests.scripted import ScriptedDriver


class Asker:
    """Speaks to the door as the front end does."""

    def __init__(self, house: House, port: int) -> None:
        self.house = house
        self._port = port

    async def ask(self, method: str, path: str, body: Any = None, *, user: str = "ann") -> HTTPResponse:
        headers = {"Authorization": "Bearer s", "X-User": user.partition("/")[0]}
        if user.endswith("/admin"):
            headers["X-Role"] = "admin"
        data = msgspec.json.encode(body) if body is not None else b"" if method in ("POST", "PATCH") else None
        return await AsyncHTTPClient().fetch(
            f"http://127.0.0.1:{self._port}/api/v1{path}",
            method=method,
            headers=headers,
            body=data,
            raise_error=False,
        )

    async def json(self, method: str, path: str, body: Any = None, **more: Any) -> Any:
        """The answer of a request that succeeds."""
        response = await self.ask(method, path, body, **more)
        assert response.code < 300, response.body
        return msgspec.json.decode(response.body)

    async def code(self, method: str, path: str, body: Any = None, **more: Any) -> tuple[int, str]:
        """Status and code of one that does not."""
        response = await self.ask(method, path, body, **more)
        return response.code, msgspec.json.decode(response.body)["code"]


@contextlib.asynccontextmanager
async def door_of(root: Path, driver: ScriptedDriver | None = None) -> AsyncIterator[Asker]:
    """A supervisor with its door open."""
    async with house_of(root, driver) as house:
        door = Door(house.supervisor, "s")
        house.intake = door.intake
        socket, port = bind_unused_port()
        server = HTTPServer(Application(routes(door), log_function=lambda handler: None))
        server.add_socket(socket)
        try:
            yield Asker(house, port)
        finally:
            server.stop()
            await server.close_all_connections()


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Asker]:
    async with door_of(tmp_path) as asker:
        yield asker


async def test_suspend_and_resume_are_answered_when_the_agent_has_done_it(door: Asker) -> None:
    (jid,) = await door.house.submit()
    agent = await door.house.agent()
    await agent.until(lambda: agent.heard(p.Run))
    assert await door.code("POST", f"/jobs/{jid}/suspend") == (409, "conflict")  # it has not started
    agent.starts(jid)
    for verb, on, state in (("suspend", True, "suspended"), ("resume", False, "running")):
        asked = asyncio.create_task(door.json("POST", f"/jobs/{jid}/{verb}"))
        signal = await agent.until(lambda on=on: [s for s in agent.heard(p.Signal) if s.suspend is on])
        assert (signal[0].jid, signal[0].attempt) == (jid, 1)
        assert not asked.done()
        agent.suspends(jid, on=on)
        assert (await asked)["state"] == state
        assert (await door.json("POST", f"/jobs/{jid}/{verb}"))["state"] == state  # again: no change
    assert len(agent.heard(p.Signal)) == 2
    agent.exits(jid)
    await door.house.over(jid)


async def test_an_agent_that_is_away_or_silent_is_named(door: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sirepo_jobs.api.jobs.SIGNAL_SECS", 0.05)
    (jid,) = await door.house.submit()
    agent = await door.house.agent()
    await agent.until(lambda: agent.heard(p.Run))
    agent.starts(jid)
    await door.house.until(jid, lambda job: job.record.state is State.RUNNING)
    assert await door.code("POST", f"/jobs/{jid}/suspend") == (503, "agent_silent")
    agent.cut()
    assert await door.code("POST", f"/jobs/{jid}/suspend") == (503, "agent_unreachable")
    agent.connect(door.house.talk)
    agent.exits(jid)
    await door.house.over(jid)


async def test_hold_release_and_retry(door: Asker) -> None:
    launched = asyncio.Event()

    async def wait(spec: object) -> None:
        await launched.wait()

    door.house.driver.on_launch = wait
    (jid,) = await door.house.submit()
    assert (await door.json("POST", f"/jobs/{jid}/hold"))["state"] == "held"
    assert (await door.json("POST", f"/jobs/{jid}/hold"))["state"] == "held"
    assert (await door.json("POST", f"/jobs/{jid}/release"))["state"] == "pending"
    launched.set()
    agent = await door.house.agent()
    await agent.until(lambda: agent.heard(p.Run))
    assert await door.code("POST", f"/jobs/{jid}/retry") == (409, "conflict")
    agent.exits(jid, 1)
    await door.house.over(jid)
    assert (await door.json("POST", f"/jobs/{jid}/retry?serial=1"))["serial"] == 2
    assert (await door.json("POST", f"/jobs/{jid}/retry?serial=1"))["serial"] == 2
    await agent.until(lambda: len(agent.heard(p.Run)) == 2)
    agent.exits(jid)
    await door.house.over(jid)
    # the answer was lost, and the client asks once more: the second run is not done again
    assert (await door.json("POST", f"/jobs/{jid}/retry?serial=1"))["state"] == "completed"


@pytest.mark.parametrize("verb", ["cancel", "hold", "release", "retry", "suspend", "resume"])
async def test_a_strangers_job_is_missing(door: Asker, verb: str) -> None:
    (jid,) = await door.house.submit()
    assert await door.code("POST", f"/jobs/{jid}/{verb}", user="bob") == (404, "job_not_found")


async def test_explain_says_what_the_supervisor_knows(door: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sirepo_jobs.api.explain.STDERR_SECS", 0.05)
    door.house.driver.script = ["fail", "ok"]
    first, second, third = await door.house.submit(
        *[JobSpec(command=["true"], resources=Resources(cpus=2))] * 3
    )
    async with asyncio.timeout(20):
        while (said := await door.json("GET", f"/jobs/{first}/explain"))["agent"]["launch_failures"] == 0:
            await asyncio.sleep(0.01)
    assert "could not be started (once): no more processes; the next try" in said["summary"]
    assert (said["reason"], said["waiting"]["for"]) == ("LAUNCH_FAILED", "agent")
    said = await door.json("GET", f"/jobs/{third}/explain")
    assert (said["waiting"]["position"], said["waiting"]["position_is_exact"]) == (2, True)
    agent = await door.house.agent()
    await agent.until(lambda: agent.heard(p.Run))
    agent.starts(first)
    await door.house.until(first, lambda job: job.record.state is State.RUNNING)
    said = await door.json("GET", f"/jobs/{first}/explain")
    assert said["placement"]["host"] == "here"
    agent.exits(first, 3, stderr_bytes=5)
    await door.house.over(first)
    said = await door.json("GET", f"/jobs/{first}/explain")
    assert (said["ending"]["exit_code"], said["fault"]) == (3, "user")
    assert said["ending"]["stderr_error"] == "agent local-ann did not answer in 0.05 s"
    for jid in (second, third):
        await door.json("POST", f"/jobs/{jid}/cancel")
    said = await door.json("GET", f"/jobs/{third}/explain")
    assert (said["asked"]["what"], said["asked"]["by"]) == ("cancel", "ann")
    if second in agent.runs:
        agent.exits(second, None, signal=15, stopped=True)
    await door.house.over(second)
    assert await door.code("GET", f"/jobs/{first}/explain", user="bob") == (404, "job_not_found")
