"""Lost jobs and their ends: evidence, leases, an operator's word; and what is not ended (C4, C9, I4, I5)."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sirepo_jobs import protocol as p
from sirepo_jobs.agent_claim import boot_secs
from sirepo_jobs.agent_pool import AgentPool
from sirepo_jobs.api.service import declare_dead
from sirepo_jobs.driver import Fate
from sirepo_jobs.health import ENOUGH
from sirepo_jobs.job import State
from sirepo_jobs.leases import Leases, ends_after_secs
from sirepo_jobs.lifecycle import MAX_CRASHES
from sirepo_jobs.reasons import Reason
from sirepo_jobs.spec import JobSpec
from tests.scripted import ScriptedAgent, ScriptedDriver
from tests.service_stage import eventually

from .test_supervisor import House, house_of


def job_spec(on_lost: str = "wait", **more: Any) -> JobSpec:
    lease = {} if on_lost == "wait" else {"lost_after": 60.0}
    return JobSpec(command=["true"], on_lost=on_lost, **{**lease, **more})


@pytest.fixture(autouse=True)
def lost_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is away is called lost without a wait."""
    monkeypatch.setattr("sirepo_jobs.agent_pool.AWAY_SECS", 0.0)
    monkeypatch.setattr("sirepo_jobs.agent_pool.LOOK_SECS", 0.01)
    monkeypatch.setattr("sirepo_jobs.lifecycle.FIRST_PAUSE_SECS", 0.01)


async def running(house: House, spec: JobSpec) -> tuple[str, ScriptedAgent]:
    (jid,) = await house.submit(spec)
    agent = await house.agent()
    await agent.until(lambda: jid in agent.runs)
    agent.starts(jid)
    await house.until(jid, lambda job: job.record.state is State.RUNNING)
    return jid, agent


async def lost(house: House, spec: JobSpec) -> tuple[str, ScriptedAgent]:
    """A job that runs on an agent that is out of reach; its driver cannot say what became of it."""
    jid, agent = await running(house, spec)
    house.driver.fate = Fate.UNKNOWN
    agent.cut()
    await house.until(jid, lambda job: job.record.state is State.LOST)
    return jid, agent


def free_cpus(house: House) -> int:
    return house.supervisor.agents.pools["local"].free.cpus


async def test_a_job_that_waits_ends_by_no_clock(tmp_path: Path) -> None:
    """F033, C4: the default; its slots stay its own, since it may well be running."""
    async with house_of(tmp_path) as house:
        jid, agent = await lost(house, job_spec())
        assert agent.runs[jid].lease_secs is None
        Leases(house.supervisor, house.talk).look(boot_secs() + 1e9)
        job = await house.job(jid)
        assert (job.record.state, free_cpus(house)) == (State.LOST, 1)
        agent.connect(house.talk)
        agent.exits(jid, 3)
        assert (await house.over(jid)).record.exit_code == 3


@pytest.mark.parametrize(("policy", "state"), [("requeue", State.PENDING), ("fail", State.ERROR)])
async def test_a_lease_ends_a_lost_job_but_never_before_its_agent_has(
    tmp_path: Path, policy: str, state: State
) -> None:
    """F033, C9: not a moment before lease, grace and margin are over since the last renewal."""
    async with house_of(tmp_path) as house:
        jid, agent = await lost(house, job_spec(policy))
        assert agent.runs[jid].lease_secs == 60.0
        claim = house.supervisor.agents.get("local-ann")
        assert claim is not None
        job = await house.job(jid)
        over_at = claim.renewed_at + ends_after_secs(60.0, job.spec.limits.grace)
        assert over_at > claim.renewed_at + 60.0 + job.spec.limits.grace
        leases = Leases(house.supervisor, house.talk)
        leases.look(over_at - 0.001)
        assert job.record.state is State.LOST
        leases.look(over_at + 0.001)
        assert (job.record.state, free_cpus(house)) == (state, 2)
        leases.look(over_at + 1.0)  # once is enough
        (attempt,) = await after_commit(house, lambda: house.store.attempts(jid))
        assert (attempt.proof, attempt.exit_code, attempt.signal) == ("lease_expired", None, None)
        house.supervisor.check()


async def after_commit(house: House, ask: Callable[[], Any]) -> Any:
    await house.supervisor.commits.durable()
    return await ask()


async def test_the_old_attempt_counts_no_more_and_is_ended_when_it_shows_up(tmp_path: Path) -> None:
    """I5, I6, F065: its agent comes back late with the old attempt; the new one is the only one."""
    async with house_of(tmp_path) as house:
        jid, agent = await lost(house, job_spec("requeue"))
        Leases(house.supervisor, house.talk).look(boot_secs() + 1e6)
        await house.until(jid, lambda job: job.record.state is State.PENDING)
        agent.connect(house.talk)
        await agent.until(lambda: agent.heard(p.Cancel))
        (cancel,) = agent.heard(p.Cancel)
        assert (cancel.jid, cancel.attempt) == (jid, 1)
        await agent.until(lambda: [run for run in agent.heard(p.Run) if run.attempt == 2])
        agent.exits(jid, 0)  # of attempt 1
        job = await house.job(jid)
        assert (job.record.state, job.record.attempt) == (State.STARTING, 2)


async def test_heartbeats_renew_and_are_confirmed(tmp_path: Path) -> None:
    async with house_of(tmp_path) as house:
        await running(house, job_spec("requeue"))
        agent = await house.agent()
        claim = house.supervisor.agents.get("local-ann")
        assert claim is not None
        assert agent.line is not None
        claim.renewed_at = 0.0
        agent.line.hear(p.Heartbeat(at=1, held=1))  # of an older agent: no lease, no answer
        assert (claim.renewed_at, agent.heard(p.Heard)) == (0.0, [])
        before = boot_secs()
        agent.line.hear(p.Heartbeat(at=1, held=1, n=4))
        await agent.until(lambda: agent.heard(p.Heard))
        assert claim.renewed_at >= before
        assert agent.heard(p.Heard) == [p.Heard(n=4)]


async def test_an_agent_that_keeps_no_leases_is_never_concluded_by_one(tmp_path: Path) -> None:
    """F080, I33: one of an older version goes on for ever, so only evidence ends its jobs."""
    async with house_of(tmp_path) as house:
        old = ScriptedAgent("local-ann")
        old.leases = False
        house.driver.agents["local-ann"] = old
        jid, agent = await lost(house, job_spec("requeue"))
        assert agent.runs[jid].lease_secs is None
        Leases(house.supervisor, house.talk).look(boot_secs() + 1e9)
        assert (await house.job(jid)).record.state is State.LOST


async def test_a_lease_is_not_over_while_the_agent_is_connected(tmp_path: Path) -> None:
    async with house_of(tmp_path) as house:
        jid, _ = await running(house, job_spec("requeue"))
        Leases(house.supervisor, house.talk).look(boot_secs() + 1e9)
        assert (await house.job(jid)).record.state is State.RUNNING


async def test_another_install_renews_nothing_for_the_old_one(tmp_path: Path) -> None:
    """F025: the lease counts from when the new one was first seen to know nothing."""
    async with house_of(tmp_path) as house:
        jid, agent = await lost(house, job_spec("requeue"))
        agent.runs.clear()
        agent.install = "another"
        agent.connect(house.talk)
        job = await house.job(jid)
        assert (job.record.state, job.record.reason) == (State.LOST, Reason.AGENT_LOST)
        leases = Leases(house.supervisor, house.talk)
        now = boot_secs()
        leases.look(now)
        leases.look(now + 60.0)
        assert job.record.state is State.LOST
        leases.look(now + ends_after_secs(60.0, job.spec.limits.grace) + 0.01)
        assert job.record.state is State.PENDING


async def test_a_reboot_that_took_the_records_along_is_a_proof_of_death(tmp_path: Path) -> None:
    """F025, F026: other install, other boot: no process of before can live."""
    async with house_of(tmp_path) as house:
        jid, agent = await lost(house, job_spec())
        agent.runs.clear()
        agent.install, agent.boot_id = "another", "b2"
        agent.connect(house.talk)
        job = await house.over(jid)
        assert (job.record.state, job.record.reason, job.record.proof) == (
            State.ERROR,
            Reason.NODE_FAILED,
            "boot_changed",
        )
        assert free_cpus(house) == 2


async def test_where_gone_means_gone_the_drivers_word_ends_the_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F112: a container that is gone has no processes; its successor cannot be launched."""
    monkeypatch.setattr("sirepo_jobs.agent_pool.LAUNCH_PAUSES_SECS", (0.01,))
    driver = ScriptedDriver("ok", "fail")
    driver.jobs_outlive_agent = False
    async with house_of(tmp_path, driver) as house:
        jid, agent = await running(house, job_spec())
        driver.fate = Fate.GONE
        agent.cut()
        job = await house.over(jid)
        assert (job.record.reason, job.record.proof) == (Reason.AGENT_LOST, "agent_gone")


async def test_where_jobs_outlive_their_agent_gone_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C4, F039: the launcher is gone, the job may live: it is lost until the next launcher has looked."""
    monkeypatch.setattr("sirepo_jobs.agent_pool.LAUNCH_PAUSES_SECS", (0.01,))
    driver = ScriptedDriver("ok", "fail")
    async with house_of(tmp_path, driver) as house:
        jid, agent = await running(house, job_spec())
        driver.fate = Fate.GONE
        agent.cut()
        await house.until(jid, lambda job: job.record.state is State.LOST)
        await eventually(lambda: driver.launched.count("local-ann") > 3)
        assert (await house.job(jid)).record.state is State.LOST


async def test_an_operators_word_ends_a_lost_job_and_its_slots_return_once(tmp_path: Path) -> None:
    """C9, I21."""
    async with house_of(tmp_path) as house:
        jid, agent = await lost(house, job_spec())
        job = await house.job(jid)
        declare_dead(house.supervisor, job, "root")
        assert (job.record.state, job.record.proof, free_cpus(house)) == (State.ERROR, "operator", 2)
        assert "root" in job.record.situation
        house.supervisor.check()
        agent.connect(house.talk)  # it was not gone after all: what it holds is ended, and counts no more
        await agent.until(lambda: agent.heard(p.Cancel))
        agent.exits(jid, 0)
        assert (job.record.state, free_cpus(house)) == (State.ERROR, 2)


async def test_after_an_agent_was_declared_gone_a_fresh_one_is_launched(tmp_path: Path) -> None:
    async with house_of(tmp_path) as house:
        jid, agent = await lost(house, job_spec())
        pool: AgentPool = house.supervisor.agents
        claim = pool.get("local-ann")
        assert claim is not None
        declare_dead(house.supervisor, await house.job(jid), "root")
        pool.declare_gone(claim)
        agent.runs.clear()
        (other,) = await house.submit()
        await agent.until(lambda: other in agent.runs)
        assert house.driver.launched == ["local-ann", "local-ann"]


async def test_two_agents_with_one_identity_are_never_both_served(tmp_path: Path) -> None:
    """F024, I26: a copied token; the one that is connected stays, its jobs go on."""
    async with house_of(tmp_path) as house:
        jid, agent = await running(house, job_spec())
        twin = ScriptedAgent("local-ann")
        twin.install = "elsewhere"
        line = twin.connect(house.talk)
        assert not line.open
        assert "one must end" in str(line.closed_because)
        claim = house.supervisor.agents.get("local-ann")
        assert claim is not None
        assert claim.line is agent.line
        assert (await house.job(jid)).record.state is State.RUNNING
        agent.exits(jid, 0)
        assert (await house.over(jid)).record.state is State.COMPLETED


async def test_attempts_of_which_a_restored_backup_knows_nothing_are_kept_and_shown(tmp_path: Path) -> None:
    """F079, F097: nothing is killed blindly."""
    async with house_of(tmp_path) as house:
        jid, agent = await running(house, job_spec())
        agent.cut()
        later = p.Run(jid="of-later", serial=1, attempt=1, op_id=9, command=["true"], run_dir="of-later/1")
        agent.runs["of-later"], agent.states["of-later"] = later, "running"
        agent.connect(house.talk)
        claim = house.supervisor.agents.get("local-ann")
        assert claim is not None
        await eventually(lambda: claim.foreign == {"of-later/1"})
        assert agent.heard(p.Cancel) == []
        agent.exits("of-later", 0)  # its record is taken off the agent's hands, and changes nothing
        await agent.until(lambda: agent.acked == agent.seq)
        assert (await house.job(jid)).record.state is State.RUNNING


def killed(agent: ScriptedAgent, jid: str) -> None:
    """What the next launcher says of the job of one that was killed."""
    agent.exits(jid, None, reason=Reason.AGENT_LOST, proof="launcher_lost", message="the launcher was killed")


async def test_a_job_that_kills_each_of_its_agents_is_stopped(tmp_path: Path) -> None:
    """F034, C12: even when it is to be queued again for ever; another user's jobs go on."""
    async with house_of(tmp_path) as house:
        jid, agent = await running(house, job_spec("requeue"))
        for attempt in range(1, MAX_CRASHES + 1):
            await agent.until(lambda n=attempt: jid in agent.runs and agent.runs[jid].attempt == n)
            killed(agent, jid)
            await agent.until(lambda: jid not in agent.runs)
        job = await house.over(jid)
        assert (job.record.state, job.record.reason, job.record.attempt) == (
            State.ERROR,
            Reason.POISONED,
            MAX_CRASHES,
        )
        assert f"died {MAX_CRASHES} times" in job.record.situation
        (other,) = await house.submit(user="bob")
        bob = await house.agent("local-bob")
        await bob.until(lambda: other in bob.runs)
        bob.exits(other, 0)
        assert (await house.over(other)).record.state is State.COMPLETED


async def test_a_job_that_never_began_waits_longer_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F059, C11: a sick host does not use up its tries in one breath."""
    monkeypatch.setattr("sirepo_jobs.lifecycle.FIRST_PAUSE_SECS", 0.05)
    clock = asyncio.get_running_loop().time
    async with house_of(tmp_path) as house:
        (jid,) = await house.submit()
        agent = await house.agent()
        refused: list[float] = []
        for attempt in (1, 2, 3):
            await agent.until(lambda n=attempt: jid in agent.runs and agent.runs[jid].attempt == n)
            job = await house.job(jid)
            # Nobody else has a turn until it was asked: the first pause is short.
            refused.append(clock())
            agent.exits(jid, None, began=False, proof="never_claimed", reason=Reason.START_FAILED)
            assert job.record.state is State.PENDING
            reason, text = house.supervisor.dispatch.why_pending(job)
            assert reason is Reason.RETRYING
            assert "tried again in" in text
        assert refused[1] - refused[0] >= 0.05
        assert refused[2] - refused[1] >= 0.1
        house.cancel(await house.job(jid))
        job = await house.over(jid)
        assert job.record.state is State.CANCELED
        assert house.supervisor.dispatch._pauses == {}


async def test_a_black_hole_gets_no_more_work_for_a_while_and_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F035, I24: ann's agent refuses everything at once; bob's jobs all succeed, ann's wait and say why."""
    monkeypatch.setattr("sirepo_jobs.health.FIRST_PAUSE_SECS", 0.5)
    monkeypatch.setattr("sirepo_jobs.lifecycle.FIRST_PAUSE_SECS", 1000.0)
    monkeypatch.setattr("sirepo_jobs.lifecycle.LAST_PAUSE_SECS", 1000.0)
    async with house_of(tmp_path) as house:
        anns = await house.submit(*[job_spec()] * 12)
        hole = await house.agent()
        jobs = {jid: await house.job(jid) for jid in anns}
        refused: set[str] = set()
        while len(refused) < ENOUGH:
            jid = await hole.until(lambda: next(iter(hole.runs.keys() - refused), None))
            refused.add(jid)
            hole.exits(
                jid, None, began=False, proof="never_claimed", reason=Reason.START_FAILED, message="no"
            )
        # what was sent ahead is there already; nothing of the rest follows
        waiting = [jid for jid in anns if jid not in hole.runs and jid not in refused]
        assert waiting
        # at once: the pause is short
        reason, text = house.supervisor.dispatch.why_pending(jobs[waiting[-1]])
        assert "is paused: 3 jobs in a row failed there, the last: no" in text, (reason, text)
        for _ in range(5):
            (jid,) = await house.submit(user="bob")
            bob = await house.agent("local-bob")
            await bob.until(lambda jid=jid, bob=bob: jid in bob.runs)
            bob.exits(jid, 0)
            assert (await house.over(jid)).record.state is State.COMPLETED
        # mended: one gets through, and all is well
        await hole.until(lambda: [jid for jid in waiting if jid in hole.runs])
        ended: set[str] = set()
        while not set(waiting) <= ended:
            jid = await hole.until(lambda: next(iter(hole.runs.keys() - ended - refused), None))
            ended.add(jid)
            hole.exits(jid, 0)
        for jid in waiting:
            assert (await house.over(jid)).record.state is State.COMPLETED


async def test_recovery_changes_nothing_however_often_it_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F007, I30: the supervisor is started again and again while its agent is away; then the agent calls."""
    monkeypatch.setattr("sirepo_jobs.agent_pool.AWAY_SECS", 1000.0)  # that it is away is not the story
    driver = ScriptedDriver("ok", "silent")
    async with house_of(tmp_path, driver) as house:
        jid, agent = await running(house, job_spec("requeue"))
        queued = await house.submit(*[job_spec()] * 5, user="bob")
        before = (await house.job(jid)).record
        driver.fate = Fate.UNKNOWN
        agent.line = None
    for _ in range(5):
        async with house_of(tmp_path, driver) as house:
            job = await house.job(jid)
            assert (job.record, free_cpus(house)) == (before, 1)
    async with house_of(tmp_path, driver) as house:
        agent.connect(house.talk)
        agent.exits(jid, 4)
        job = await house.over(jid)
        assert (job.record.exit_code, job.record.attempt) == (4, 1)
        for one in queued:
            assert (await house.job(one)).record.attempt == 0


async def test_an_agent_that_came_back_without_its_records_is_not_told_to_run_again(tmp_path: Path) -> None:
    """F025, I4: it may have begun what it does not know any more; nothing is sent twice on a guess."""
    async with house_of(tmp_path) as house:
        (jid,) = await house.submit(job_spec())
        agent = await house.agent()
        await agent.until(lambda: jid in agent.runs)
        job = await house.until(jid, lambda job: job.record.state is State.STARTING)
        agent.cut()
        agent.runs.clear()
        agent.said.clear()
        agent.install = "another"
        agent.connect(house.talk)
        await house.supervisor.commits.durable()
        assert (job.record.state, job.record.reason) == (State.LOST, Reason.AGENT_LOST)
        assert agent.heard(p.Run) == []
