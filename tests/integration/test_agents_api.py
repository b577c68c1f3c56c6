"""Agents through the API: drained after their work, stopped with it, counted for Prometheus."""

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sirepo_jobs import protocol as p
from sirepo_jobs.driver import Fate
from sirepo_jobs.job import State
from sirepo_jobs.reasons import Reason
from tests.integration.test_supervisor import house_of
from tests.scripted import ScriptedDriver
from tests.service_stage import eventually, service_of

AGENTS = "/api/v1/agents"


async def test_a_drained_agent_finishes_its_work_and_a_fresh_one_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sirepo_jobs.agent_pool.LOOK_SECS", 0.01)
    async with service_of(tmp_path) as service:
        house = service.house
        (first,) = await house.submit()
        agent = await house.agent()
        await agent.until(lambda: first in agent.runs)
        agent.starts(first)
        for _ in range(2):  # again changes nothing
            answer = await service.ask("POST", f"{AGENTS}/local-ann/drain")
            assert (answer.status, answer.json["leaving"], answer.json["state"]) == (200, True, "online")
        assert agent.heard(p.Stop) == []
        (second,) = await house.submit()
        waiting = await house.until(second, lambda job: job.op is not None)
        reason, text = house.supervisor.dispatch.why_pending(waiting)
        assert (reason, "a fresh one follows" in text) == (Reason.DRAINING, True)
        assert second not in agent.runs
        agent.exits(first)
        assert (await house.over(first)).record.state is State.COMPLETED
        await agent.until(lambda: agent.heard(p.Stop))
        assert agent.heard(p.Stop) == [p.Stop()]
        house.driver.fate = Fate.GONE
        agent.cut()
        await agent.until(lambda: second in agent.runs)
        assert len(house.driver.launched) == 2
        (shown,) = (await service.ask("GET", AGENTS)).json["agents"]
        assert (shown["agent"], shown["leaving"]) == ("local-ann", False)
        agent.exits(second)
        await house.over(second)


async def test_a_restart_does_not_forget_that_an_agent_is_drained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator's word is durable when it is answered."""
    monkeypatch.setattr("sirepo_jobs.agent_pool.LOOK_SECS", 0.01)
    driver = ScriptedDriver()
    async with house_of(tmp_path, driver) as house:
        (first,) = await house.submit()
        agent = await house.agent()
        await agent.until(lambda: first in agent.runs)
        agent.starts(first)
        await house.until(first, lambda job: job.record.state is State.RUNNING)
        found = house.supervisor.agents.get("local-ann")
        assert found is not None
        house.supervisor.agents.drain(found)
        await house.supervisor.commits.durable()
    async with house_of(tmp_path, driver) as house:
        (second,) = await house.submit()
        agent.connect(house.talk)
        waiting = await house.until(second, lambda job: job.op is not None)
        await eventually(lambda: house.supervisor.dispatch.why_pending(waiting)[0] is Reason.DRAINING)
        assert agent.heard(p.Stop) == []
        agent.exits(first)
        assert (await house.over(first)).record.state is State.COMPLETED
        await agent.until(lambda: agent.heard(p.Stop))
        assert second not in agent.runs
        driver.fate = Fate.GONE
        agent.cut()
        await agent.until(lambda: second in agent.runs)
        assert len(driver.launched) == 2
        agent.exits(second)
        await house.over(second)
    # the fresh one was never told to end
    async with house_of(tmp_path, driver) as house:
        found = house.supervisor.agents.get("local-ann")
        assert found is not None
        assert not found.leaving


async def test_an_idle_agent_is_drained_at_once(tmp_path: Path) -> None:
    async with service_of(tmp_path) as service:
        house = service.house
        (jid,) = await house.submit()
        agent = await house.agent()
        await agent.until(lambda: jid in agent.runs)
        agent.exits(jid)
        await house.over(jid)
        answer = await service.ask("POST", f"{AGENTS}/local-ann/drain")
        assert answer.json["state"] == "draining"
        assert agent.heard(p.Stop) == [p.Stop()]


async def test_a_stopped_agent_is_told_to_end_its_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sirepo_jobs.agent_pool.STOP_SECS", 0.05)
    async with service_of(tmp_path) as service:
        (jid,) = await service.house.submit()
        agent = await service.house.agent()
        await agent.until(lambda: jid in agent.runs)
        answer = await service.ask("POST", f"{AGENTS}/local-ann/stop")
        assert (answer.status, answer.json["agent"]) == (200, "local-ann")
        assert agent.heard(p.Stop) == [p.Stop(kill_jobs=True)]


async def test_numbers_for_prometheus(tmp_path: Path) -> None:
    async with service_of(tmp_path) as service:
        (jid,) = await service.house.submit()
        agent = await service.house.agent()
        await agent.until(lambda: jid in agent.runs)
        agent.exits(jid)
        await service.house.over(jid)
        answer = await service.ask("GET", "/metrics")
        assert answer.headers["content-type"].startswith("text/plain")
        found = {
            (sample.name, *sorted(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(answer.body.decode())
            for sample in family.samples
        }
        assert found["sirepo_jobs_jobs", "completed"] == 1
        assert found["sirepo_jobs_jobs", "error"] == 0
        assert found["sirepo_jobs_agents", "local", "online"] == 1
        assert found["sirepo_jobs_slots", "cpus", "local", "size"] == 2
        assert found["sirepo_jobs_slots", "cpus", "free", "local"] == 2
        assert found["sirepo_jobs_events_total",] >= 3
        assert not {"ann", "local-ann", jid} & {word for key in found for word in key}
        assert jid.encode() not in answer.body
