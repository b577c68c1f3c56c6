"""The supervisor on a real store, with agents that do what the test says (SIR-12, SIR-35..37, SIR-L6..L9)."""

import asyncio
import contextlib
import gc
import tracemalloc
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sirepo_jobs import protocol as p
from sirepo_jobs.agent_pool import AgentPool
from sirepo_jobs.agent_talk import AgentTalk
from sirepo_jobs.compute_job import SPEC_BYTES, ComputeJob
from sirepo_jobs.driver import Fate, Handle
from sirepo_jobs.errors import BadInput, Conflict, Unavailable
from sirepo_jobs.events import CancelAsked
from sirepo_jobs.intake import Intake
from sirepo_jobs.job import FINAL, State
from sirepo_jobs.op import Need
from sirepo_jobs.reasons import Reason
from sirepo_jobs.resources import Resources
from sirepo_jobs.spec import JobSpec
from sirepo_jobs.store import JobQuery, KeyRow, Store
from sirepo_jobs.supervisor import Supervisor
from tests.scripted import ScriptedAgent, ScriptedDriver

TRUE = JobSpec(command=["true"])


class House:
    """A supervisor with its store, as the test sees it."""

    def __init__(self, root: Path, driver: ScriptedDriver, **sizes: int) -> None:
        self.driver = driver
        self.store = Store.open(f"sqlite:///{root}/jobs.db")
        self.errors: list[Any] = []
        self.store.start(asyncio.get_running_loop(), self.errors.append)

        def make_agents(supervisor: Supervisor) -> AgentPool:
            return AgentPool(
                root=root,
                url="unix:nowhere",
                drivers={"local": driver},
                commits=supervisor.commits,
                tasks=supervisor.tasks,
                secret=b"secret",
                wake=supervisor.wake_agent,
                is_wanted=lambda agent: supervisor.ops.waiting_for((Need.AGENT, agent.key)) > 0,
                out_of_reach=lambda agent: self.talk.out_of_reach(agent),
            )

        self.supervisor = Supervisor(self.store, make_agents, **sizes)
        self.talk = AgentTalk(self.supervisor, heartbeat_secs=15)
        driver.talk = self.talk
        self.intake = Intake(self.supervisor)

    async def submit(self, *specs: JobSpec, user: str = "ann", key: str | None = None) -> list[str]:
        records, _ = await self.intake.submit(user, list(specs) or [TRUE], key)
        return [record.jid for record in records]

    async def agent(self, name: str = "local-ann") -> ScriptedAgent:
        """The scripted agent of that name, when it is connected."""
        async with asyncio.timeout(60):
            while name not in self.driver.agents or self.driver.agents[name].line is None:
                await asyncio.sleep(0)
        return self.driver.agents[name]

    async def job(self, jid: str) -> ComputeJob:
        async with self.supervisor.jobs.hold(jid) as job:
            assert job is not None
            return job

    async def until(self, jid: str, what: Callable[[ComputeJob], Any]) -> ComputeJob:
        """The job as soon as `what` is true of what is durable."""
        async with asyncio.timeout(60), self.supervisor.jobs.hold(jid) as job:
            assert job is not None
            while job.seen < job.record.version or not what(job):
                await job.change(job.seen)
            return job

    async def over(self, jid: str) -> ComputeJob:
        return await self.until(jid, lambda job: job.record.state in FINAL)

    def cancel(self, job: ComputeJob) -> None:
        self.supervisor.tell(job, CancelAsked(at=1, by="ann"))

    async def close(self) -> None:
        await self.supervisor.tasks.close()
        self.supervisor.commits.flush()
        await self.store.close()
        assert self.errors == []


@contextlib.asynccontextmanager
async def house_of(root: Path, driver: ScriptedDriver | None = None, **sizes: int) -> AsyncIterator[House]:
    house = House(root, driver or ScriptedDriver(), **sizes)
    await house.supervisor.recover()
    try:
        yield house
        house.supervisor.check()
    finally:
        await house.close()


def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sirepo_jobs.agent_pool.LAUNCH_PAUSES_SECS", (0.0,))


async def test_a_job_goes_all_the_way(tmp_path: Path) -> None:
    async with house_of(tmp_path) as house:
        (jid,) = await house.submit()
        agent = await house.agent()
        run = (await agent.until(lambda: agent.heard(p.Run)))[0]
        assert (run.jid, run.attempt, run.standby, run.run_dir) == (jid, 1, False, f"{jid}/1")
        agent.starts(jid)
        await house.until(jid, lambda job: job.record.state is State.RUNNING)
        agent.exits(jid, 3)
        job = await house.over(jid)
        assert (job.record.state, job.record.exit_code, job.record.reason) == (
            State.ERROR,
            3,
            Reason.EXIT_NONZERO,
        )
        await agent.until(lambda: agent.acked == 2)
        kinds = [row.kind for row in await house.store.events(after=0, limit=10)]
        assert kinds == ["Submitted", "Assigned", "Started", "Exited"]
        assert [a.exit_code for a in await house.store.attempts(jid)] == [3]
        assert house.supervisor.agents.pools["local"].free.cpus == 2


async def test_nothing_is_acknowledged_before_it_is_durable(tmp_path: Path) -> None:
    """C7, C14: the agent's ack comes in the same turn as the reader's sight, after the commit."""
    async with house_of(tmp_path) as house:
        (jid,) = await house.submit()
        agent = await house.agent()
        await agent.until(lambda: agent.heard(p.Run))
        agent.exits(jid)
        job = await house.job(jid)
        assert job.record.state is State.COMPLETED
        assert (agent.acked, job.seen < job.record.version) == (0, True)
        await house.over(jid)
        (stored,) = await house.store.jobs([jid])
        assert stored.record.state is State.COMPLETED
        await agent.until(lambda: agent.acked == 1)


async def test_an_agent_that_never_starts_is_explained_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIR-L9: whoever waits hears the reason; C11: trouble of the house does not fail the job."""
    no_pauses(monkeypatch)
    driver = ScriptedDriver("fail", "fail", "ok")
    told: list[str] = []
    async with house_of(tmp_path, driver) as house:

        async def look(_spec: Any) -> None:
            told.append(house.supervisor.dispatch.why_pending(await house.job(jid))[1])

        driver.on_launch = look
        task = asyncio.create_task(house.submit())
        (jid,) = await task
        agent = await house.agent()
        await agent.until(lambda: agent.heard(p.Run))
        assert len(driver.launched) == 3
        assert (await house.job(jid)).record.state is State.STARTING
        agent.exits(jid)
        assert (await house.over(jid)).record.state is State.COMPLETED


async def test_an_agent_that_never_calls_is_stopped_and_launched_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIR-36: a half-started agent is killed."""
    no_pauses(monkeypatch)
    driver = ScriptedDriver("silent", "hang", "ok")
    driver.launch_secs = 0.05

    async def third_has_time(_spec: Any) -> None:
        if len(driver.launched) == 3:
            driver.launch_secs = 60

    driver.on_launch = third_has_time
    async with house_of(tmp_path, driver) as house:
        (jid,) = await house.submit()
        agent = await house.agent()
        await agent.until(lambda: agent.heard(p.Run))
        assert len(driver.launched) == 3
        assert "local-ann" in driver.stopped
        agent.exits(jid)
        await house.over(jid)


async def test_many_jobs_launch_one_agent(tmp_path: Path) -> None:
    """SIR-36: two ops, one launch."""
    async with house_of(tmp_path, ScriptedDriver(cpus=4)) as house:
        jids = await house.submit(*[TRUE] * 4)
        agent = await house.agent()
        await agent.until(lambda: len(agent.heard(p.Run)) == 4)
        assert house.driver.launched == ["local-ann"]
        for jid in jids:
            agent.exits(jid)
            await house.over(jid)


async def test_each_user_has_an_agent_of_their_own(tmp_path: Path) -> None:
    """SIR-35, I26: and it cannot speak of the other's jobs."""
    async with house_of(tmp_path) as house:
        (of_ann,) = await house.submit()
        (of_bob,) = await house.submit(user="bob")
        ann, bob = await house.agent(), await house.agent("local-bob")
        await ann.until(lambda: ann.heard(p.Run))
        await bob.until(lambda: bob.heard(p.Run))
        bob.runs[of_ann] = ann.runs[of_ann]
        bob.exits(of_ann, 0)
        assert (await house.job(of_ann)).record.state is State.STARTING
        del bob.runs[of_ann]
        ann.exits(of_ann, 5)
        bob.exits(of_bob, 6)
        assert (await house.over(of_ann)).record.exit_code == 5
        assert (await house.over(of_bob)).record.exit_code == 6


async def test_canceled_before_its_agent_came_nothing_is_sent(tmp_path: Path) -> None:
    async with house_of(tmp_path, ScriptedDriver("silent")) as house:
        (jid,) = await house.submit()
        job = await house.job(jid)
        house.cancel(job)
        assert (await house.over(jid)).record.state is State.CANCELED
        assert job.op is None
        agent = house.driver.agents.setdefault("local-ann", ScriptedAgent("local-ann"))
        agent.connect(house.talk)
        await house.supervisor.commits.durable()
        assert agent.heard(p.Run) == []


async def test_the_line_breaks_before_the_run_is_sent_and_the_run_goes_out_once(tmp_path: Path) -> None:
    async with house_of(tmp_path) as house:
        (first,) = await house.submit()
        agent = await house.agent()
        await agent.until(lambda: agent.heard(p.Run))
        submitting = asyncio.create_task(house.submit())
        while len(house.supervisor.jobs) < 2:
            await asyncio.sleep(0)
        agent.cut()
        (second,) = await submitting
        assert [run.jid for run in agent.heard(p.Run)] == [first]
        agent.connect(house.talk)
        await agent.until(lambda: len(agent.heard(p.Run)) == 2)
        assert [(run.jid, run.attempt) for run in agent.heard(p.Run)] == [(first, 1), (second, 1)]
        for jid in (first, second):
            agent.exits(jid)
            assert (await house.over(jid)).record.attempt == 1


async def test_a_broken_line_changes_nothing_and_unacknowledged_words_come_again(tmp_path: Path) -> None:
    async with house_of(tmp_path) as house:
        (jid,) = await house.submit()
        agent = await house.agent()
        await agent.until(lambda: agent.heard(p.Run))
        agent.starts(jid)
        await agent.until(lambda: agent.acked == 1)
        agent.cut()
        agent.exits(jid, 4)  # while nobody listens
        job = await house.job(jid)
        assert job.record.state is State.RUNNING
        agent.connect(house.talk)
        assert (await house.over(jid)).record.exit_code == 4
        await agent.until(lambda: agent.acked == 2)


async def test_a_second_socket_replaces_the_first_without_a_word_about_loss(tmp_path: Path) -> None:
    """SIR-37."""
    async with house_of(tmp_path) as house:
        (jid,) = await house.submit()
        agent = await house.agent()
        await agent.until(lambda: agent.heard(p.Run))
        first = agent.line
        agent.connect(house.talk)
        assert first is not None
        assert "replaced" in (first.closed_because or "")
        first.hear(p.Exited(jid=jid, serial=1, attempt=1, seq=9, at=1, exit_code=9))
        assert (await house.job(jid)).record.state is State.STARTING
        agent.exits(jid)
        assert (await house.over(jid)).record.exit_code == 0


async def test_an_agent_away_for_long_makes_its_jobs_lost_not_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C4: its driver says alive, it does not call; then it does."""
    monkeypatch.setattr("sirepo_jobs.agent_pool.AWAY_SECS", 0.0)
    monkeypatch.setattr("sirepo_jobs.agent_pool.LOOK_SECS", 0.01)
    async with house_of(tmp_path) as house:
        (jid,) = await house.submit()
        agent = await house.agent()
        await agent.until(lambda: agent.heard(p.Run))
        agent.starts(jid)
        house.driver.fate = Fate.UNKNOWN
        agent.cut()
        job = await house.until(jid, lambda job: job.record.state is State.LOST)
        assert job.record.reason is Reason.AGENT_UNREACHABLE
        assert house.supervisor.agents.pools["local"].free.cpus == 1, "its place is kept (I21)"
        agent.connect(house.talk)
        await house.until(jid, lambda job: job.record.state is State.RUNNING)
        agent.exits(jid)
        await house.over(jid)


async def test_a_supervisor_that_comes_back_adopts_what_runs(tmp_path: Path) -> None:
    """SIR-L1: nothing is run again, nothing is lost, the queue goes on."""
    driver = ScriptedDriver(cpus=1)
    async with house_of(tmp_path, driver) as house:
        jids = await house.submit(*[TRUE] * 30)
        agent = await house.agent()
        await agent.until(lambda: agent.heard(p.Run))
        agent.starts(jids[0])
        await house.until(jids[0], lambda job: job.record.state is State.RUNNING)
        await agent.until(lambda: agent.acked == 1)
        epoch = house.store.epoch
    agent.exits(jids[0], 7)
    async with house_of(tmp_path, driver) as house:
        assert house.store.epoch == epoch + 1
        agent.connect(house.talk)
        assert (await house.over(jids[0])).record.exit_code == 7
        for jid in jids[1:]:
            await agent.until(lambda jid=jid: jid in agent.runs)
            agent.exits(jid)
            await house.over(jid)
        counts: dict[str, int] = {}
        for run in agent.heard(p.Run):
            counts[run.jid] = max(counts.get(run.jid, 0), run.attempt)
        assert counts == dict.fromkeys(jids, 1)
        assert house.supervisor.agents.pools["local"].free.cpus == 1
        assert len(driver.launched) == 1


async def test_an_unknown_message_is_answered_and_an_impossible_one_dropped(tmp_path: Path) -> None:
    async with house_of(tmp_path) as house:
        (jid,) = await house.submit()
        agent = await house.agent()
        await agent.until(lambda: agent.heard(p.Run))
        assert agent.line is not None
        agent.line.hear(p.Unknown(kind="dream", why="?"))
        assert agent.heard(p.Unsupported) == [p.Unsupported(kind="dream")]
        agent.line.hear(p.Suspended(jid=jid, serial=1, attempt=1, seq=1, at=1, on=True))
        assert (await house.job(jid)).record.state is State.STARTING
        agent.exits(jid)
        await house.over(jid)


async def test_the_same_key_makes_one_job(tmp_path: Path) -> None:
    """I2, F144: fifty at once; another spec under the same key is a conflict."""
    async with house_of(tmp_path, ScriptedDriver("silent")) as house:
        made = await asyncio.gather(*(house.submit(TRUE, key="k") for _ in range(50)))
        assert len({jids[0] for jids in made}) == 1
        assert await house.submit(TRUE, key="k") == made[0]
        assert await house.submit(TRUE, key="k", user="bob") != made[0]
        with pytest.raises(Conflict, match="another request"):
            await house.submit(JobSpec(command=["false"]), key="k")


async def test_a_new_key_costs_no_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 7: once the keys are known, the store is asked for those only that may be there."""
    async with house_of(tmp_path, ScriptedDriver("silent")) as house:
        asked: list[str] = []
        key = house.store.key

        async def counted(user: str, name: str) -> KeyRow | None:
            asked.append(name)
            return await key(user, name)

        monkeypatch.setattr(house.store, "key", counted)
        made = await house.submit(TRUE, key="first")
        await house.intake._known.learn()
        asked.clear()
        later = [await house.submit(TRUE, key=f"new {number}") for number in range(20)]
        assert asked == []
        assert await house.submit(TRUE, key="first") == made
        assert await house.submit(TRUE, key="new 7") == later[7]
        assert asked == ["first", "new 7"]


async def test_a_key_is_not_let_go_before_the_commit_of_what_it_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I2: something breaks behind the making; whoever sends the key again gets the job that was made."""
    async with house_of(tmp_path, ScriptedDriver("silent")) as house:
        dispatch = house.supervisor.dispatch
        at_once = dispatch.at_once

        def broken() -> None:
            if not house.supervisor.commits.unit.keys:
                return at_once()
            monkeypatch.setattr(dispatch, "at_once", at_once)
            raise RuntimeError("a bug")

        monkeypatch.setattr(dispatch, "at_once", broken)
        spec = JobSpec(command=["true"], jid="mine")
        with pytest.raises(RuntimeError):
            await house.submit(spec, key="k")
        assert await house.submit(spec, key="k") == ["mine"]
        assert house.errors == []


async def test_a_chosen_jid_is_free_again_when_the_store_could_not_be_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C1: who sends it again makes the job, and does not hear that it is taken."""
    async with house_of(tmp_path, ScriptedDriver("silent")) as house:
        spec = JobSpec(command=["true"], jid="mine")
        asked = house.supervisor.store.jobs

        async def away(_jids: list[str]) -> list[Any]:
            raise Unavailable("the store is away")

        monkeypatch.setattr(house.supervisor.store, "jobs", away)
        with pytest.raises(Unavailable):
            await house.submit(spec)
        monkeypatch.setattr(house.supervisor.store, "jobs", asked)
        assert await house.submit(spec) == ["mine"]


async def test_a_chosen_jid_is_taken_once(tmp_path: Path) -> None:
    async with house_of(tmp_path, ScriptedDriver("silent")) as house:
        spec = JobSpec(command=["true"], jid="ann-s1-animation")
        answers = await asyncio.gather(*(house.submit(spec) for _ in range(5)), return_exceptions=True)
        assert answers.count(["ann-s1-animation"]) == 1
        assert sum(isinstance(answer, Conflict) for answer in answers) == 4
        with pytest.raises(BadInput, match="twice"):
            await house.submit(JobSpec(command=["a"], jid="x"), JobSpec(command=["b"], jid="x"))


async def test_what_can_never_run_is_refused_with_the_numbers(tmp_path: Path) -> None:
    async with house_of(tmp_path) as house:
        with pytest.raises(BadInput, match="needs 64, 2 free"):
            await house.submit(JobSpec(command=["a"], resources=Resources(cpus=64)))
        with pytest.raises(BadInput, match="not configured; there are: local"):
            await house.submit(JobSpec(command=["a"], driver="locla"))


async def test_users_share_the_machine(tmp_path: Path) -> None:
    """I23: who comes second does not wait for the whole queue of the first."""
    async with house_of(tmp_path) as house:
        await house.submit(*[TRUE] * 200)
        ann = await house.agent()
        await ann.until(lambda: len(ann.heard(p.Run)) >= 2)
        (of_bob,) = await house.submit(user="bob")
        done = 0
        while of_bob not in (
            house.driver.agents["local-bob"].runs if "local-bob" in house.driver.agents else {}
        ):
            ready = [jid for jid, state in ann.states.items() if state != "ended" and jid in ann.runs]
            if ready:
                ann.exits(ready[0], started_at=0, at=60_000_000)
                done += 1
                assert done < 20, "bob waits too long"
            await asyncio.sleep(0.001)


async def test_ten_thousand_queued_jobs_are_rows(tmp_path: Path) -> None:
    """Memory grows by less than 20 MB, and the last one can be found, explained and canceled."""
    async with house_of(tmp_path, ScriptedDriver("silent")) as house:
        await house.submit(*[TRUE] * 10)
        gc.collect()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        jids = await house.submit(*[TRUE] * 10_000)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        assert grown < 20e6, f"{grown / 1e6:.1f} MB"
        assert len(house.supervisor.jobs) <= 2000
        last = await house.job(jids[-1])
        reason, text = house.supervisor.dispatch.why_pending(last)
        assert reason is Reason.PRIORITY
        assert "10000 or more of your jobs" in text
        house.cancel(last)
        assert (await house.over(jids[-1])).record.state is State.CANCELED
        page = await house.store.find_jobs(JobQuery(user="ann", states=[State.PENDING], limit=5))
        assert len(page.jobs) == 5


async def test_big_jobs_leave_room_for_fewer_in_memory(tmp_path: Path) -> None:
    """C16: what is in memory is bounded in bytes, too; all run."""
    big = msgspec.structs.replace(TRUE, env={"BIG": "x" * 100_000})
    async with house_of(tmp_path, ScriptedDriver(cpus=4), job_cache=200) as house:
        jids = await house.submit(*[big] * 60)
        assert len(house.supervisor.jobs) <= 200 * SPEC_BYTES // 100_000 + 1
        agent = await house.agent()
        for _ in jids:
            run = await agent.until(lambda: next((r for r in agent.runs if agent.states[r] != "ended"), None))
            agent.exits(run, at=1001)
        for jid in jids:
            assert (await house.over(jid)).record.state is State.COMPLETED


async def test_a_queue_longer_than_memory_runs_to_its_end(tmp_path: Path) -> None:
    async with house_of(tmp_path, ScriptedDriver(cpus=4), job_cache=20, queue_window=15) as house:
        jids = await house.submit(*[TRUE] * 300)
        agent = await house.agent()
        ran: list[str] = []
        while len(ran) < 300:
            run = await agent.until(lambda: next((r for r in agent.runs if agent.states[r] != "ended"), None))
            ran.append(run)
            agent.exits(run, at=1001)
        assert sorted(ran) == sorted(jids)
        for jid in jids:
            assert (await house.over(jid)).record.state is State.COMPLETED
        assert len(house.supervisor.jobs) <= 30
        assert len(house.supervisor.scheduler) == 0


async def test_an_idle_agent_is_let_go_and_a_new_op_makes_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIR-39, SIR-L3: it is marked before it is told, so nothing is sent to an agent that is ending."""
    monkeypatch.setattr("sirepo_jobs.agent_pool.LOOK_SECS", 0.01)
    async with house_of(tmp_path) as house:
        (jid,) = await house.submit()
        agent = await house.agent()
        await agent.until(lambda: agent.heard(p.Run))
        house.supervisor.agents.sweep(0.0)
        house.supervisor.agents.sweep(0.0)
        assert agent.heard(p.Stop) == [], "it has work"
        agent.exits(jid)
        await house.over(jid)
        house.supervisor.agents.sweep(0.0)
        house.supervisor.agents.sweep(0.0)
        assert agent.heard(p.Stop) == [p.Stop()]
        (second,) = await house.submit()
        for _ in range(100):
            await asyncio.sleep(0)  # whoever brings the new one waits, and does not spin
        assert "ending" in house.supervisor.dispatch.why_pending(await house.job(second))[1]
        house.driver.fate = Fate.GONE
        agent.cut()
        await agent.until(lambda: second in agent.runs)
        assert len(house.driver.launched) == 2
        agent.exits(second)
        await house.over(second)


class TwoHosts(ScriptedDriver):
    """Its agents of before are at `old`; what is launched from now on, at `new`; without `new`, nowhere."""

    jobs_outlive_agent = False

    def __init__(self, *script: str, new: str = "new") -> None:
        super().__init__(*script)
        self.hosts = {"old": Resources(cpus=1, memory=1 << 30), "new": Resources(cpus=2, memory=1 << 30)}
        self.new = new

    def host_of(self, user: str) -> str:
        return self.new

    def remember(self, user: str, handle: Handle) -> str:
        return "old"


async def test_an_agent_has_the_slots_of_its_host_and_moves_when_it_is_gone(tmp_path: Path) -> None:
    """After a restart with another pool: what runs stays; what waits goes along to the new host (SIR-42)."""
    async with house_of(tmp_path, TwoHosts()) as before:
        (ran,) = await before.submit()
        await (await before.agent()).until(lambda: before.driver.agents["local-ann"].heard(p.Run))
    driver = TwoHosts()
    driver.agents["local-ann"] = ScriptedAgent("local-ann")
    driver.agents["local-ann"].install = "another"
    async with house_of(tmp_path, driver) as after:
        pools, agent = after.supervisor.agents.pools, after.supervisor.agents.get("local-ann")
        assert agent is not None
        assert agent.pool is pools["local/old"]
        assert pools["local/old"].free.cpus == 0
        (waits,) = await after.submit()
        driver.fate = Fate.GONE
        await after.agent()
        job = await after.until(waits, lambda job: job.op is not None and job.op.sent)
        assert agent.pool is pools["local/new"]
        assert job.op is not None
        assert job.op.pool is pools["local/new"]
        assert pools["local/new"].holds(job.op)
        await after.until(ran, lambda job: job.record.state in FINAL)
        assert pools["local/old"].free == pools["local/old"].size


async def test_a_user_whom_no_host_may_have_takes_no_slots(tmp_path: Path) -> None:
    """The job waits with its driver's words, and nobody's slots are gone."""
    async with house_of(tmp_path, TwoHosts("fail", new="")) as place:
        (jid,) = await place.submit()
        async with asyncio.timeout(60):
            await place.driver.news.wait()
            while place.supervisor.dispatch.why_pending(await place.job(jid))[0] is not Reason.LAUNCH_FAILED:
                await asyncio.sleep(0)
        assert "no more processes" in place.supervisor.dispatch.why_pending(await place.job(jid))[1]
        for pool in place.supervisor.agents.pools.values():
            assert pool.free == pool.size
