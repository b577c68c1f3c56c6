"""Stories that the simulation told first (`bin/sim`), each as short as it can be told."""

import asyncio
import contextlib
import sqlite3
from pathlib import Path

import pytest

from sirepo_jobs import protocol as p
from sirepo_jobs.errors import RemoteError
from sirepo_jobs.job import State
from sirepo_jobs.reasons import Reason
from sirepo_jobs.store.unit import Unit
from tests.integration.test_supervisor import TRUE, House, house_of
from tests.integration.test_supervisor_races import with_one_running
from tests.scripted import ScriptedAgent, ScriptedDriver


async def test_the_slots_of_one_that_never_began_pass_to_its_successor(
    tmp_path: Path,
) -> None:
    """They were given to a third one, too (I21)."""
    async with house_of(tmp_path, ScriptedDriver(cpus=1)) as house:
        (first,) = await house.submit()
        agent = await house.agent()
        await agent.until(lambda: agent.heard(p.Run))
        (second,) = await house.submit()
        await agent.until(lambda: second in agent.runs)
        assert agent.states[second] == "standby"
        op = (await house.job(second)).op
        agent.exits(
            first,
            None,
            began=False,
            proof="never_claimed",
            reason=Reason.START_FAILED,
            successor=f"{second}/1",
        )
        assert op is not None
        assert not op.standby, "it has the slots at once, and they were never free"
        assert house.supervisor.agents.pools["local"].free.cpus == 0
        agent.starts(second)
        agent.exits(second)
        await house.over(second)
        await agent.until(lambda: first in agent.runs and agent.runs[first].attempt == 2)
        agent.exits(first)
        await house.over(first)


async def test_a_hello_that_was_long_on_its_way_is_not_believed(tmp_path: Path) -> None:
    """It knew nothing of an attempt that came by a newer connection, and that was begun twice."""
    async with house_of(tmp_path) as house:
        jid, agent = await with_one_running(house)
        agent.cut()
        agent.made_at = 20.0
        newer = agent.connect(house.talk)
        agent.made_at, runs = 10.0, agent.runs
        agent.runs = {}
        older = agent.connect(house.talk)
        assert older.closed_because is not None
        assert newer.open
        claim = house.supervisor.agents.get(agent.name)
        assert claim is not None
        assert claim.line is newer
        assert (await house.job(jid)).record.state is State.RUNNING
        agent.line, agent.runs = newer, runs
        agent.exits(jid)
        await house.over(jid)


async def test_one_that_may_have_begun_before_the_power_failed_is_not_begun_again(tmp_path: Path) -> None:
    """The launcher's intent was not on disk yet, so the new launcher knew nothing of it (I4, F026)."""
    async with house_of(tmp_path) as house:
        (jid,) = await house.submit()
        agent = await house.agent()
        await agent.until(lambda: agent.heard(p.Run))
        agent.runs.clear()
        agent.said.clear()
        agent.cut()
        agent.boot_id = "another boot"
        agent.connect(house.talk)
        job = await house.over(jid)
        assert (job.record.state, job.record.reason, job.record.proof) == (
            State.ERROR,
            Reason.NODE_FAILED,
            "boot_changed",
        )
        assert agent.heard(p.Run) == []


async def test_an_agent_that_is_ending_costs_a_job_no_start(tmp_path: Path) -> None:
    """Ten of them within a tenth of a second, and the job had failed (C11)."""
    async with house_of(tmp_path) as house:
        (jid,) = await house.submit()
        agent = await house.agent()
        await agent.until(lambda: agent.heard(p.Run))
        agent.exits(jid, None, began=False, proof="never_claimed", reason=Reason.DRAINING)
        job = await house.until(jid, lambda job: job.record.state is State.PENDING)
        assert job.record.false_starts == 0
        await asyncio.sleep(0.05)
        assert job.record.attempt == 1, "it waits for a fresh agent"
        agent.cut()
        agent.said.clear()
        agent.connect(house.talk)
        await agent.until(lambda: agent.heard(p.Run))
        agent.exits(jid)
        await house.over(jid)


async def test_records_with_a_gap_end_the_connection_and_old_ones_are_no_news(tmp_path: Path) -> None:
    """C7: a suspension that came a second time, late, stopped a job that had gone on."""
    async with house_of(tmp_path) as house:
        jid, agent = await with_one_running(house)
        agent.suspends(jid, on=True)
        (suspension,) = [m for m in agent.unacked if isinstance(m, p.Suspended)]
        agent.suspends(jid, on=False)
        await house.until(jid, lambda job: job.record.version >= 5 and job.record.state is State.RUNNING)
        line = agent.line
        assert line is not None
        line.hear(suspension)
        assert (await house.job(jid)).record.state is State.RUNNING
        agent.seq += 1  # one is missing
        gap = p.Suspended(jid=jid, serial=1, attempt=1, seq=agent.seq + 1, at=1, on=True)
        with pytest.raises(RemoteError, match="missing"):
            line.hear(gap)
        assert (await house.job(jid)).record.state is State.RUNNING
        agent.seq -= 1
        agent.exits(jid)
        await house.over(jid)


async def test_a_job_that_is_looked_at_does_not_leave_memory(tmp_path: Path) -> None:
    """It stood among those that may go, and went; then there were two of it."""
    async with house_of(tmp_path, ScriptedDriver("hang"), job_cache=4) as house:
        jids = await house.submit(*[TRUE] * 8)
        for jid in jids:
            async with house.supervisor.jobs.hold(jid) as job:
                assert job is not None
                house.cancel(job)
                await house.supervisor.commits.durable()
        await house.supervisor.jobs.load_next([])  # nobody waits any more
        async with house.supervisor.jobs.hold(jids[0]):
            pass
        # it is in memory, and the first that may go as soon as the others have been looked at
        assert house.supervisor.jobs.get(jids[0]) is not None
        async with house.supervisor.jobs.hold(jids[0]) as job:
            for other in jids[1:]:
                async with house.supervisor.jobs.hold(other):
                    pass
            async with house.supervisor.jobs.hold(jids[0]) as again:
                assert again is job


async def test_a_cancel_that_went_with_the_connection_is_said_again(tmp_path: Path) -> None:
    """F077. The connection is back before anybody calls the job lost."""
    async with house_of(tmp_path) as house:
        jid, agent = await with_one_running(house)
        agent.cut()
        house.cancel(await house.job(jid))
        await house.supervisor.commits.durable()
        agent.said.clear()
        agent.connect(house.talk)
        (word,) = await agent.until(lambda: agent.heard(p.Cancel))
        assert (word.jid, word.attempt) == (jid, 1)
        agent.exits(jid, None, signal=15, stopped=True)
        assert (await house.over(jid)).record.state is State.CANCELED


async def test_a_cancel_that_is_not_durable_is_not_said_to_an_agent_that_calls_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk failed, the cancel was forgotten, and a signal "of its own" had killed the job (I10)."""
    async with house_of(tmp_path) as house:
        jid, agent = await with_one_running(house)
        held: list[Unit] = []
        with monkeypatch.context() as patch:
            patch.setattr(house.store, "submit", held.append)
            agent.cut()
            house.cancel(await house.job(jid))
            agent.connect(house.talk)
            while not held:
                await asyncio.sleep(0)
            assert not agent.heard(p.Cancel)
        for unit in held:
            house.store.submit(unit)
        await agent.until(lambda: agent.heard(p.Cancel))


async def with_two_standing_by(house: House) -> tuple[ScriptedAgent, str, list[str]]:
    """One job has the only cpu, two were sent ahead: the agent, the first job, the others in order."""
    jids = await house.submit(*[TRUE] * 3)
    agent = await house.agent()
    await agent.until(lambda: len(agent.runs) == 3)
    (first,) = [jid for jid in jids if agent.states[jid] == "starting"]
    return agent, first, sorted(set(jids) - {first})


async def test_after_a_restart_nobody_gets_the_slots_of_one_that_runs(tmp_path: Path) -> None:
    """I21. Who had slots is not written down; one that stood by was started in those of one that ran."""
    driver = ScriptedDriver(cpus=1)
    async with house_of(tmp_path, driver) as house:
        agent, first, (early, late) = await with_two_standing_by(house)
        agent.exits(first, successor=f"{late}/1")
        await house.over(first)
    agent.states[late] = "running"
    async with house_of(tmp_path, driver) as house:
        agent.said.clear()
        agent.connect(house.talk)
        pool = house.supervisor.agents.pools["local"]
        assert (agent.heard(p.Grant), pool.free.cpus) == ([], 0)
        agent.starts(late)
        agent.exits(late)
        await house.over(late)
        (grant,) = await agent.until(lambda: agent.heard(p.Grant))
        assert grant.jid == early
        agent.exits(early)
        await house.over(early)


async def test_after_a_restart_one_that_the_agent_never_got_waits_for_slots(tmp_path: Path) -> None:
    """I21. Its order went with the connection, and it was sent again to run at once beside the other."""
    driver = ScriptedDriver(cpus=1)
    async with house_of(tmp_path, driver) as house:
        agent, first, others = await with_two_standing_by(house)
        agent.exits(first)
        await house.over(first)
    async with house_of(tmp_path, driver) as house:
        # the agent runs the other one of them than is taken to run
        (lost,) = [job.jid for job in house.supervisor.jobs.active() if job.op and not job.op.standby]
        (late,) = set(others) - {lost}
        agent.states[late] = "running"
        del agent.runs[lost]
        agent.said.clear()
        agent.connect(house.talk)
        await agent.until(lambda: lost in agent.runs)
        assert agent.runs[lost].standby
        agent.starts(late)
        agent.exits(late)
        await house.over(late)
        (grant,) = await agent.until(lambda: agent.heard(p.Grant))
        assert grant.jid == lost
        agent.exits(lost)
        await house.over(lost)


async def test_after_a_restart_others_wait_until_the_agent_has_called(tmp_path: Path) -> None:
    """I21. What it was given may run, and only the agent knows."""
    driver = ScriptedDriver(cpus=1)
    async with house_of(tmp_path, driver) as house:
        (jid,) = await house.submit()
        agent = await house.agent()
        await agent.until(lambda: jid in agent.runs)
    agent.states[jid] = "running"
    async with house_of(tmp_path, driver) as house:
        assert house.supervisor.agents.pools["local"].free.cpus == 0
        (other,) = await house.submit(user="bob")
        agent.connect(house.talk)
        agent.starts(jid)
        await house.until(jid, lambda job: job.record.state is State.RUNNING)
        assert (await house.job(other)).record.state is State.PENDING
        agent.exits(jid)
        await house.over(jid)
        bob = await house.agent("local-bob")
        await bob.until(lambda: other in bob.runs)
        bob.exits(other)
        await house.over(other)


async def test_a_supervisor_that_was_replaced_renews_no_lease(tmp_path: Path) -> None:
    """C9, C15. It was frozen, knew nothing, and kept alive what its successor had called over (I17)."""
    async with house_of(tmp_path) as house:
        _, agent = await with_one_running(house)
        assert agent.line is not None
        agent.line.hear(p.Heartbeat(at=1, held=1, n=1))
        await agent.until(lambda: agent.heard(p.Heard) == [p.Heard(n=1)])
        # as another supervisor would do it
        with contextlib.closing(sqlite3.connect(tmp_path / "jobs.db", timeout=60)) as other:
            other.execute("UPDATE meta SET epoch = epoch + 1")
            other.commit()
        agent.line.hear(p.Heartbeat(at=2, held=1, n=2))
        async with asyncio.timeout(60):
            while not house.errors:
                await asyncio.sleep(0)
        assert "another supervisor" in str(house.errors.pop())
        assert agent.heard(p.Heard) == [p.Heard(n=1)]
