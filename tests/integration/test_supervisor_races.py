"""What can come between: races, lost words, broken parts; each as the story that showed it (C1, C4, I8)."""

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from sirepo_jobs import protocol as p
from sirepo_jobs.driver import Environment, Fate
from sirepo_jobs.errors import Unavailable
from sirepo_jobs.events import HoldAsked
from sirepo_jobs.job import State
from sirepo_jobs.reasons import Reason
from sirepo_jobs.resources import Resources
from sirepo_jobs.spec import JobSpec
from tests.integration.test_supervisor import TRUE, House, house_of
from tests.scripted import ScriptedAgent, ScriptedDriver

TWO = JobSpec(command=["true"], resources=Resources(cpus=2))


async def with_one_running(house: House) -> tuple[str, ScriptedAgent]:
    """A job that runs, and its agent."""
    (jid,) = await house.submit()
    agent = await house.agent()
    await agent.until(lambda: agent.heard(p.Run))
    agent.starts(jid)
    await house.until(jid, lambda job: job.record.state is State.RUNNING)
    return jid, agent


# -- between the intent and the message


async def test_canceled_between_the_intent_and_the_message_it_ends_without_the_agent(tmp_path: Path) -> None:
    """The run does not go out, so no agent can tell its end: it was `canceling` for ever."""
    async with house_of(tmp_path) as house:
        first, agent = await with_one_running(house)
        submitting = asyncio.create_task(house.submit())
        while len(house.supervisor.jobs) < 2:
            await asyncio.sleep(0)
        second = next(j for j in house.supervisor.jobs.active() if j.jid != first)
        assert second.record.state is State.STARTING
        house.cancel(second)
        await submitting
        assert (await house.over(second.jid)).record.state is State.CANCELED
        assert second.record.proof == "never_claimed"
        assert [run.jid for run in agent.heard(p.Run)] == [first]
        assert agent.heard(p.Cancel) == []
        agent.exits(first)
        await house.over(first)


async def test_canceled_while_the_run_is_said_again_after_a_broken_line(tmp_path: Path) -> None:
    """The first saying was lost with the line; the agent does not have it."""
    async with house_of(tmp_path) as house:
        (jid,) = await house.submit()
        agent = await house.agent()
        await agent.until(lambda: agent.heard(p.Run))
        agent.runs.clear()  # lost on its way
        agent.cut()
        agent.said.clear()
        agent.connect(house.talk)
        job = await house.job(jid)
        house.cancel(job)
        assert (await house.over(jid)).record.state is State.CANCELED
        assert agent.heard(p.Run) == []


async def test_held_between_the_intent_and_the_message_it_is_held(tmp_path: Path) -> None:
    async with house_of(tmp_path) as house:
        first, agent = await with_one_running(house)
        submitting = asyncio.create_task(house.submit())
        while len(house.supervisor.jobs) < 2:
            await asyncio.sleep(0)
        second = next(j for j in house.supervisor.jobs.active() if j.jid != first)
        house.supervisor.tell(second, HoldAsked(at=1, by="ann"))
        await submitting
        await house.until(second.jid, lambda job: job.record.state is State.HELD)
        agent.exits(first)
        await house.over(first)


# -- the queue


async def test_what_may_go_now_is_read_though_hundreds_wait_before_it(tmp_path: Path) -> None:
    """It was never read, and the supervisor read the others again and again, without a pause."""
    async with house_of(tmp_path, ScriptedDriver(cpus=2), job_cache=20) as house:
        first, agent = await with_one_running(house)
        await house.submit(*[TWO] * 300)
        (small,) = await house.submit()
        assert house.supervisor.jobs.get(small) is None
        await agent.until(lambda: small in agent.runs)
        for jid in (first, small):
            agent.exits(jid)
            await house.over(jid)


async def test_a_job_that_leaves_the_queue_lets_the_others_try(tmp_path: Path) -> None:
    """Others had passed the big one so often that its pool was kept for it; then it was canceled."""
    async with house_of(tmp_path, ScriptedDriver(cpus=2)) as house:
        first, agent = await with_one_running(house)
        (big,) = await house.submit(TWO)
        lane = house.supervisor.scheduler._lanes["ann"]
        ((shape, _),) = lane.heaps.items()
        lane.bypassed[shape] = 100
        (small,) = await house.submit()
        await house.supervisor.commits.durable()
        assert small not in agent.runs
        house.cancel(await house.job(big))
        await agent.until(lambda: small in agent.runs)
        for jid in (first, small):
            agent.exits(jid)
            await house.over(jid)


# -- agents that do not go, or do not come


async def ending(house: House) -> ScriptedAgent:
    """An agent that was idle and is told to end."""
    jid, agent = await with_one_running(house)
    agent.exits(jid)
    await house.over(jid)
    house.supervisor.agents.sweep(0.0)
    house.supervisor.agents.sweep(0.0)
    assert agent.heard(p.Stop)
    return agent


async def test_the_word_to_end_is_lost_with_its_connection(tmp_path: Path) -> None:
    """The agent calls again before we notice that the old line is dead: it is there, and gets work."""
    async with house_of(tmp_path) as house:
        agent = await ending(house)
        agent.connect(house.talk)
        (jid,) = await house.submit()
        await agent.until(lambda: jid in agent.runs)
        agent.exits(jid)
        await house.over(jid)


async def test_an_agent_that_does_not_end_is_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It refuses while it holds what we know nothing of; who waits for its successor waited for ever."""
    monkeypatch.setattr("sirepo_jobs.agent_pool.LOOK_SECS", 0.01)
    monkeypatch.setattr("sirepo_jobs.agent_pool.STOP_SECS", 0.02)
    async with house_of(tmp_path) as house:
        agent = await ending(house)
        (jid,) = await house.submit()
        await agent.until(lambda: jid in agent.runs)
        agent.exits(jid)
        await house.over(jid)


async def test_an_agent_is_gone_and_its_connection_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever brings its successor must not loop without a pause: nobody would read the line's end."""
    monkeypatch.setattr("sirepo_jobs.agent_pool.LOOK_SECS", 0.01)
    async with house_of(tmp_path) as house:
        agent = await ending(house)
        house.driver.fate = Fate.GONE
        (jid,) = await house.submit()
        await agent.until(lambda: jid in agent.runs)
        assert len(house.driver.launched) == 2
        agent.exits(jid)
        await house.over(jid)


async def test_an_agent_that_is_gone_and_cannot_be_launched_makes_its_jobs_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were shown as running, without a reason, for as long as no launch succeeded."""
    monkeypatch.setattr("sirepo_jobs.agent_pool.LAUNCH_PAUSES_SECS", (0.01,))
    monkeypatch.setattr("sirepo_jobs.agent_pool.AWAY_SECS", 0.05)
    driver = ScriptedDriver("ok", "fail")
    async with house_of(tmp_path, driver) as house:
        jid, agent = await with_one_running(house)
        driver.fate = Fate.GONE
        agent.cut()
        job = await house.until(jid, lambda job: job.record.state is State.LOST)
        assert job.record.reason is Reason.AGENT_UNREACHABLE
        driver.script = ["ok"]
        await house.until(jid, lambda job: job.record.state is State.RUNNING)
        agent.exits(jid)
        await house.over(jid)


async def test_a_driver_that_does_not_answer_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sirepo_jobs.agent_pool.LOOK_SECS", 0.01)
    driver = ScriptedDriver()
    driver.launch_secs = 0.1
    async with house_of(tmp_path, driver) as house:
        jid, agent = await with_one_running(house)
        look, driver.look = driver.look, lambda _handle: asyncio.Event().wait()  # type: ignore[method-assign]
        agent.cut()
        await asyncio.sleep(0)
        driver.look, driver.fate = look, Fate.GONE  # type: ignore[method-assign]
        await house.agent()
        assert len(driver.launched) == 2
        agent.exits(jid)
        await house.over(jid)


# -- the store does not answer


async def test_a_read_that_fails_says_nothing_about_the_job(tmp_path: Path) -> None:
    """I1: who had waited for somebody else's read was told that there is no such job."""
    async with house_of(tmp_path, ScriptedDriver("silent"), job_cache=4) as house:
        jid = (await house.submit(*[TRUE] * 50))[-1]
        assert house.supervisor.jobs.get(jid) is None
        read, go = house.store.jobs, asyncio.Event()

        async def fail(_jids: Any) -> Any:
            await go.wait()
            house.store.jobs = read  # type: ignore[method-assign]
            raise Unavailable("the disk is slow")

        house.store.jobs = fail  # type: ignore[method-assign]
        asking = [asyncio.create_task(house.job(jid)) for _ in range(3)]
        await asyncio.sleep(0)
        go.set()
        first, *others = await asyncio.gather(*asking, return_exceptions=True)
        assert isinstance(first, Unavailable)
        assert [job.jid for job in others if not isinstance(job, BaseException)] == [jid, jid]


async def test_a_read_that_fails_takes_no_job_out_of_the_queue(tmp_path: Path) -> None:
    """Read ahead while somebody else's read of it was under way, and failed."""
    async with house_of(tmp_path, ScriptedDriver("silent"), job_cache=4) as house:
        jid = (await house.submit(*[TRUE] * 50))[-1]
        read, go = house.store.jobs, asyncio.Event()

        async def fail(_jids: Any) -> Any:
            await go.wait()
            raise Unavailable("the disk is slow")

        house.store.jobs = fail  # type: ignore[method-assign]
        asking = asyncio.create_task(house.job(jid))
        await asyncio.sleep(0)
        house.store.jobs = read  # type: ignore[method-assign]
        ahead = asyncio.create_task(house.supervisor.jobs.load_next([jid, "nobody"]))
        await asyncio.sleep(0)
        go.set()
        with pytest.raises(Unavailable):
            await asking
        assert await ahead == {"nobody"}


# -- agents that say what is not theirs to say


async def test_an_agent_cannot_give_its_slots_to_somebody_elses_job(tmp_path: Path) -> None:
    """I26: the job counted as one that runs, got no grant, and never ran."""
    async with house_of(tmp_path) as house:
        of_ann, ann = await with_one_running(house)
        of_bob = await house.submit(*[TRUE] * 3, user="bob")
        bob = await house.agent("local-bob")
        await bob.until(lambda: any(run.standby for run in bob.heard(p.Run)))
        (waits, *_) = [run.jid for run in bob.heard(p.Run) if run.standby]
        ann.exits(of_ann, successor=f"{waits}/1")
        await house.over(of_ann)
        await bob.until(lambda: [grant.jid for grant in bob.heard(p.Grant)] == [waits])
        for jid in of_bob:
            await bob.until(lambda jid=jid: jid in bob.runs)
            bob.exits(jid)
            await house.over(jid)


async def test_a_standby_job_that_runs_has_its_slots_booked_whoever_started_it(tmp_path: Path) -> None:
    async with house_of(tmp_path, ScriptedDriver(cpus=1)) as house:
        first, agent = await with_one_running(house)
        (second,) = await house.submit()
        await agent.until(lambda: second in agent.runs)
        assert agent.runs[second].standby
        agent.starts(second)
        assert house.supervisor.agents.pools["local"].free.cpus == -1
        for jid in (first, second):
            agent.exits(jid)
            await house.over(jid)
        assert house.supervisor.agents.pools["local"].free.cpus == 1


@pytest.mark.parametrize("at", [-1, 1 << 53, 1 << 63, 1 << 70])
async def test_a_number_that_no_store_can_hold_ends_no_supervisor(tmp_path: Path, at: int) -> None:
    """It failed the store, so the supervisor ended; and again at its next start, when it was repeated."""
    async with house_of(tmp_path) as house:
        jid, agent = await with_one_running(house)
        exited = {"op": "exited", "jid": jid, "serial": 1, "attempt": 1, "seq": 2, "exit_code": 0, "at": at}
        said = p.decode_from_agent(json.dumps({"agent": "local-ann", "msgs": [exited]})).msgs
        assert isinstance(said[0], p.Unknown)
        assert agent.line is not None
        agent.line.hear(*said)
        await house.supervisor.commits.durable()
        agent.exits(jid)
        await house.over(jid)


async def test_no_user_is_called_like_somebody_elses_environment() -> None:
    """SIR-35: the agent of one was the agent of the other."""
    of_ann = Environment(driver="local", user="ann", image="x").key
    assert Environment(driver="local", user=of_ann.removeprefix("local-")).key != of_ann
    digest = hashlib.sha256(b"x").hexdigest()[:16]
    assert Environment(driver="local", user=f"ann-{digest}").key != of_ann
    assert Environment(driver="local", user=f"{digest}-ann").key != of_ann


async def test_a_driver_that_is_not_configured_any_more_stops_no_start(tmp_path: Path) -> None:
    """The supervisor did not come up, or lost the job whose turn it was."""
    async with house_of(tmp_path) as house:
        jid, agent = await with_one_running(house)
        queued = await house.submit(*[TRUE] * 10)
        await house.supervisor.commits.durable()
    house = House(tmp_path, ScriptedDriver())
    house.supervisor.agents.drivers = {}
    house.supervisor.agents.pools = {}
    await house.supervisor.recover()
    try:
        job = await house.until(jid, lambda job: job.record.state is State.LOST)
        assert "'local' is not configured" in job.record.situation
        waits = await house.until(queued[-1], lambda job: job.record.state is State.PENDING)
        await house.supervisor.commits.durable()
        assert "is not configured" in house.supervisor.dispatch.why_pending(waits)[1]
        with pytest.raises(Unavailable, match="not configured"):
            house.supervisor.agents.at(house.supervisor.dispatch.environment(waits))
    finally:
        await house.close()
    async with house_of(tmp_path) as house:
        agent.connect(house.talk)
        await house.until(jid, lambda job: job.record.state is State.RUNNING)
        agent.exits(jid)
        await house.over(jid)


async def test_records_that_are_lost_stay_lost_when_the_line_blinks(tmp_path: Path) -> None:
    """F025, C9: nothing proves that the attempt was not begun; it was run again on the next connection."""
    async with house_of(tmp_path) as house:
        (jid,) = await house.submit()
        agent = await house.agent()
        await agent.until(lambda: agent.heard(p.Run))
        agent.cut()
        agent.runs.clear()
        agent.install = "a new one"
        agent.said.clear()
        for _ in range(2):
            agent.connect(house.talk)
            await house.supervisor.commits.durable()
            assert (await house.job(jid)).record.state is State.LOST
            agent.cut()
        assert agent.heard(p.Run) == []
