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
        self.port = port

    async def ask(self, method: str, path: str, body: Any = None, *, user: str = "ann") -> HTTPResponse:
        headers = {"Authorization": "Bearer s", "X-User": user.partition("/")[0]}
        if user.endswith("/admin"):
            headers["X-Role"] = "admin"
        data = msgspec.json.encode(body) if body is not None else b"" if method in ("POST", "PATCH") else None
        return await AsyncHTTPClient().fetch(
            f"http://127.0.0.1:{self.port}/api/v1{path}",
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
    # said again, too: an agent that had done otherwise since may not have been able to say so
    assert [signal.suspend for signal in agent.heard(p.Signal)] == [True, True, False, False]
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
    # it may be suspended by now, for all that we know (seed 118470)
    assert await door.code("POST", f"/jobs/{jid}/resume") == (503, "agent_unreachable")
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
    looked = asyncio.Event()

    async def second_waits(spec: object) -> None:
        if len(door.house.driver.launched) > 1:
            await looked.wait()

    door.house.driver.on_launch = second_waits
    monkeypatch.setattr(door.house.driver, "launch_secs", 60.0)
    first, second, third = await door.house.submit(
        *[JobSpec(command=["true"], resources=Resources(cpus=2))] * 3
    )
    async with asyncio.timeout(60):
        while (said := await door.json("GET", f"/jobs/{first}/explain"))["agent"]["launch_failures"] == 0:
            await asyncio.sleep(0.01)
    assert "could not be started (once): no more processes; the next try" in said["summary"]
    assert (said["reason"], said["waiting"]["for"]) == ("LAUNCH_FAILED", "agent")
    said = await door.json("GET", f"/jobs/{third}/explain")
    assert (said["waiting"]["position"], said["waiting"]["position_is_exact"]) == (2, True)
    looked.set()
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


async def until_launch(door: Asker) -> asyncio.Event:
    """No agent comes before the event is set."""
    launched = asyncio.Event()

    async def wait(spec: object) -> None:
        await launched.wait()

    door.house.driver.on_launch = wait
    return launched


async def test_a_priority_moves_a_job_up_and_down(door: Asker) -> None:
    """Also one that is held meanwhile, and one that was let out of the queue and waits for its agent."""
    launched = await until_launch(door)
    jids = await door.house.submit(*[JobSpec(command=["true"], resources=Resources(cpus=2))] * 4)
    first, _, third, fourth = jids
    await door.json("PATCH", f"/jobs/{third}", {"priority": 9})
    await door.json("POST", f"/jobs/{fourth}/hold")
    await door.json("PATCH", f"/jobs/{fourth}", {"priority": 7})
    await door.json("POST", f"/jobs/{fourth}/release")
    changed = await door.json("PATCH", f"/jobs/{first}", {"priority": 0, "name": "late"})
    assert (changed["priority"], changed["name"], changed["spec"]["priority"]) == (0, "late", 0)
    launched.set()
    agent = await door.house.agent()
    order = []
    for _ in jids:
        runs = await agent.until(lambda: [r for r in agent.heard(p.Run) if r.jid not in order])
        order.append(runs[0].jid)
        agent.exits(order[-1])
        await door.house.over(order[-1])
    # the first had its place with the agent already when the others moved, and gave it up
    assert order.index(third) < order.index(fourth) < order.index(first)
    assert sorted(order) == sorted(jids)
    kinds = [row.kind for row in await door.house.store.events(after=0, limit=99, jid=first)]
    assert kinds.count("Changed") == 1


async def test_a_change_is_there_after_a_restart(tmp_path: Path) -> None:
    async with door_of(tmp_path) as door:
        launched = await until_launch(door)
        (jid,) = await door.house.submit(JobSpec(command=["true"], tags={"a": "1", "b": "2"}))
        await door.json(
            "PATCH", f"/jobs/{jid}", {"priority": 7, "tags": {"a": None, "c": "3"}, "limits": {"soft": 5.0}}
        )
        (stored,) = await door.house.store.jobs([jid])
        assert (stored.fixed.priority, stored.record.version) == (7, 2)
        (row,) = await door.house.store.pending(user="ann", after=None, limit=9)
        assert row.priority == 7
        job = await door.json("GET", f"/jobs/{jid}")
        assert (job["tags"], job["spec"]["limits"]["soft"]) == ({"b": "2", "c": "3"}, 5.0)
        # nothing new is no news
        assert (await door.json("PATCH", f"/jobs/{jid}", {"priority": 7}))["version"] == 2
        await door.json("POST", f"/jobs/{jid}/cancel")
        launched.set()
    async with door_of(tmp_path) as door:
        job = await door.json("GET", f"/jobs/{jid}")
        assert (job["priority"], job["tags"]) == (7, {"b": "2", "c": "3"})


async def test_many_changes_have_their_own_results(door: Asker) -> None:
    launched = await until_launch(door)
    one, two = await door.house.submit(JobSpec(command=["true"]), JobSpec(command=["true"]))
    (foreign,) = await door.house.submit(user="bob")
    before = door.house.supervisor.events.last
    said = await door.json(
        "PATCH",
        "/jobs",
        [
            {"jid": one, "priority": 9},
            {"jid": foreign, "priority": 9},
            {"jid": two, "limits": {"soft": 9.0, "hard": 2.0}},
        ],
    )
    assert [result["status"] for result in said["results"]] == [200, 404, 422]
    assert [result["jid"] for result in said["results"]] == [one, foreign, two]
    assert said["results"][0]["priority"] == 9
    assert said["results"][2]["error"]["code"] == "bad_input"
    assert door.house.supervisor.events.last == before + 1
    launched.set()
    agent = await door.house.agent()
    await agent.until(lambda: agent.heard(p.Run))
    said = await door.json(
        "PATCH", "/jobs", [{"jid": one, "limits": {"soft": 9.0}}, {"jid": one, "tags": {"x": "y"}}]
    )
    assert [result["status"] for result in said["results"]] == [409, 200]
    assert await door.code("PATCH", f"/jobs/{one}", {"limits": {"soft": 9.0}}) == (409, "conflict")


async def test_who_follows_a_job_that_does_not_begin_and_leaves_is_forgotten(tmp_path: Path) -> None:
    """Its request waited on, and held the job in memory, for as long as the job did not begin."""
    async with door_of(tmp_path, ScriptedDriver("silent")) as door:
        (jid,) = await door.house.submit()
        job = await door.house.job(jid)
        _, writer = await asyncio.open_connection("127.0.0.1", door.port)
        path = f"/api/v1/jobs/{jid}/logs/stdout?follow=1"
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer s\r\nX-User: ann\r\n\r\n".encode()
        )
        async with asyncio.timeout(60):
            while not job.pins:
                await asyncio.sleep(0.01)
            writer.close()
            while job.pins:
                await asyncio.sleep(0.01)
