"""Agents that are connected and do not say what became of their jobs."""

from pathlib import Path

from sirepo_jobs import protocol as p
from sirepo_jobs.job import State, Stopping
from sirepo_jobs.reasons import Reason
from sirepo_jobs.silence import Silence
from sirepo_jobs.spec import JobSpec, Limits
from tests.scripted import ScriptedDriver

from .test_supervisor import house_of

TRUE = JobSpec(command=["true"])


async def test_an_agent_that_takes_a_job_and_says_nothing_is_asked_again_and_then_not_counted_on(
    tmp_path: Path,
) -> None:
    """C4: that nothing is heard is no end; the late word counts, and an operator may speak."""
    async with house_of(tmp_path) as house:
        (jid,) = await house.submit()
        agent = await house.agent()
        await agent.until(lambda: jid in agent.runs)
        job = await house.until(jid, lambda job: job.record.state is State.STARTING)
        silence = Silence(house.supervisor, house.talk, patience_secs=10)
        now, first = 1000.0, agent.line
        silence.look(now)
        silence.look(now + 9)
        assert first is not None
        assert first.open
        silence.look(now + 10)
        assert "not a word of" in (first.closed_because or "")
        assert (job.record.state, job.record.reason) == (State.STARTING, Reason.AGENT_UNREACHABLE)
        assert "asked again" in job.record.situation
        silence.look(now + 500)  # nobody is there who could say anything
        agent.connect(house.talk)
        assert job.record.state is State.STARTING
        silence.look(now + 501)
        silence.look(now + 509)
        assert job.record.state is State.STARTING
        silence.look(now + 510)
        assert (job.record.state, job.record.reason) == (State.LOST, Reason.AGENT_UNREACHABLE)
        assert "may well be running" in job.record.situation
        silence.look(now + 9999)
        assert job.record.state is State.LOST
        agent.starts(jid)
        assert job.record.state is State.RUNNING
        agent.exits(jid, 0)
        assert (await house.over(jid)).record.state is State.COMPLETED
        assert len({run.attempt for run in agent.heard(p.Run) if run.jid == jid}) == 1


async def test_an_agent_that_forgot_what_it_was_given_is_told_again(tmp_path: Path) -> None:
    """The word was lost inside of it: the question alone mends that."""
    async with house_of(tmp_path) as house:
        (jid,) = await house.submit()
        agent = await house.agent()
        await agent.until(lambda: jid in agent.runs)
        await house.until(jid, lambda job: job.record.state is State.STARTING)
        agent.runs.clear()
        silence = Silence(house.supervisor, house.talk, patience_secs=10)
        silence.look(1000.0)
        silence.look(1010.0)
        agent.connect(house.talk)
        await agent.until(lambda: jid in agent.runs)
        agent.starts(jid)
        agent.exits(jid, 0)
        assert (await house.over(jid)).record.state is State.COMPLETED


async def test_a_job_that_nobody_can_end_is_lost_and_keeps_its_wish_to_end(tmp_path: Path) -> None:
    """F045: a process that no KILL ends. Its slots stay taken; it is canceled as soon as it is gone."""
    async with house_of(tmp_path) as house:
        (jid,) = await house.submit(JobSpec(command=["true"], limits=Limits(grace=5.0)))
        agent = await house.agent()
        await agent.until(lambda: jid in agent.runs)
        agent.starts(jid)
        job = await house.until(jid, lambda job: job.record.state is State.RUNNING)
        house.cancel(job)
        await agent.until(lambda: agent.heard(p.Cancel))
        silence = Silence(house.supervisor, house.talk, patience_secs=10)
        silence.look(1000.0)
        silence.look(1014.0)
        assert agent.line is not None
        assert agent.line.open
        silence.look(1015.0)
        agent.connect(house.talk)
        await agent.until(lambda: len(agent.heard(p.Cancel)) > 1)
        silence.look(1030.0)
        assert (job.record.state, job.record.stopping) == (State.LOST, Stopping.CANCEL)
        assert house.supervisor.agents.pools["local"].free.cpus == 1
        agent.exits(jid, None, signal=9, stopped=True)
        assert (await house.over(jid)).record.state is State.CANCELED


async def test_three_silent_jobs_pause_their_agent_and_others_go_on(tmp_path: Path) -> None:
    """F035, I24: ann's agent swallows everything; bob's jobs run."""
    async with house_of(tmp_path, ScriptedDriver(cpus=4)) as house:
        anns = await house.submit(*[TRUE] * 3)
        hole = await house.agent()
        await hole.until(lambda: len(hole.runs) == 3)
        silence = Silence(house.supervisor, house.talk, patience_secs=10)
        now = house.supervisor.loop.time()
        silence.look(now)
        silence.look(now + 10)
        hole.connect(house.talk)
        silence.look(now + 20)
        states = {(await house.job(jid)).record.state for jid in anns}
        assert states == {State.LOST}
        claim = house.supervisor.agents.get("local-ann")
        assert claim is not None
        assert "not a word" in claim.health.why_not(now + 20)
        (other,) = await house.submit(user="bob")
        bob = await house.agent("local-bob")
        await bob.until(lambda: other in bob.runs)
        bob.starts(other)
        bob.exits(other, 0)
        assert (await house.over(other)).record.state is State.COMPLETED
