"""The supervisor alone: a real store and real frames, and an agent whose jobs take no time.

What it shows is what the supervisor itself does for a job, without front end, agent and processes: CPU time,
and work that can be counted (statements, commits, frames), which no busy neighbor can change. With many
jobs queued it shows whether the queue's length costs anything.

    .venv/bin/python -m benchmarks.brain [--jobs 5000] [--queued 1000000] [--group 16]
"""

import argparse
import asyncio
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from sirepo_jobs import protocol
from sirepo_jobs.agent_line import AgentLine
from sirepo_jobs.agent_pool import AgentPool
from sirepo_jobs.agent_talk import AgentTalk
from sirepo_jobs.driver import AgentSpec, Fate, Handle
from sirepo_jobs.intake import Intake
from sirepo_jobs.job import State, Usage
from sirepo_jobs.op import Need
from sirepo_jobs.resources import Resources
from sirepo_jobs.spec import JobSpec
from sirepo_jobs.store import Store
from sirepo_jobs.supervisor import Supervisor

#: As users' clients submit, and as much as one request may hold.
BATCH = 1000
CPUS = 2
#: What a job of the benchmark takes, as the agent tells it.
JOB_US = 1200

_decode = msgspec.json.Decoder(protocol.ToAgentFrame).decode


class Cost(NamedTuple):
    """What the supervisor did, per job."""

    jobs: int
    cpu_us: float
    statements: float
    commits: float
    frames_in: float
    frames_out: float


class QuickAgent:
    """Ends what it was given, `group` attempts in one frame, as fast as it is heard."""

    launch_secs = 5.0
    name = "local"
    remote = False
    jobs_outlive_agent = True
    capacity = Resources(cpus=CPUS, memory=1 << 34, disk=1 << 40)

    def __init__(self, group: int) -> None:
        self._group = group
        self._waiting: deque[protocol.Run] = deque()
        self._seq = 0
        self._busy = False
        #: It works while this is set.
        self.go = asyncio.Event()
        self.go.set()
        self.stopped = False
        self.frames_in = self.frames_out = self.ended = 0
        self.talk: AgentTalk
        self.supervisor: Supervisor
        self._line: AgentLine

    # -- a driver

    async def launch(self, spec: AgentSpec) -> Handle:
        await self.go.wait()
        asyncio.get_running_loop().call_soon(self._connect, spec.agent)
        return Handle(agent=spec.agent, driver=self.name, version=1, data={"pid": 1})

    async def look(self, handle: Handle) -> Fate:
        return Fate.ALIVE

    async def stop(self, handle: Handle, *, grace_secs: float) -> None:
        pass

    # -- a transport

    def send(self, data: bytes) -> None:
        self.frames_out += 1
        frame = _decode(data)
        self._waiting.extend(one for one in frame.msgs if isinstance(one, protocol.Run))
        if not self._busy:
            self._busy = True
            asyncio.get_running_loop().call_soon(self._work)

    def hang_up(self, code: int, why: str) -> None:
        raise AssertionError(f"the supervisor hung up: {code} {why}")

    # -- an agent

    def _connect(self, name: str) -> None:
        agent = self.supervisor.agents.get(name)
        assert agent is not None
        self._line = AgentLine(self.supervisor, self.talk, agent, self)
        hello = protocol.Hello(
            agent=name, version="1", host="h", pid=1, boot_id="b", install="i", last_seq=0, inventory=[]
        )
        self._say([hello], epoch=0, session=0)

    def _say(self, messages: list[Any], epoch: int, session: int) -> None:
        self.frames_in += 1
        name = self._line._agent.name
        frame = protocol.FromAgentFrame(agent=name, epoch=epoch, session=session, msgs=messages)
        self._line.receive(protocol.encode(frame).decode())

    def _work(self) -> None:
        self._busy = False
        if self.stopped:
            return
        ended: list[protocol.Exited] = []
        waiting = self._waiting
        while waiting and len(ended) < self._group:
            run = waiting.popleft()
            following = waiting[CPUS - 1] if len(waiting) >= CPUS else None
            self._seq += 1
            at = time.time_ns() // 1000
            ended.append(
                protocol.Exited(
                    seq=self._seq,
                    jid=run.jid,
                    serial=run.serial,
                    attempt=run.attempt,
                    at=at,
                    started_at=at - JOB_US,
                    exit_code=0,
                    stdout_bytes=0,
                    stderr_bytes=0,
                    usage=Usage(user_secs=0.0005, system_secs=0.0003, max_rss=1 << 21),
                    successor=f"{following.jid}/{following.attempt}" if following else "",
                )
            )
        if ended:
            self.ended += len(ended)
            self._say(ended, self.supervisor.store.epoch, self._line.session)
        if waiting and not self._busy:
            self._busy = True
            asyncio.get_running_loop().call_soon(self._work)


class Brain:
    """A supervisor on a store of its own."""

    def __init__(self, root: Path, group: int, heartbeat_secs: float = 15.0) -> None:
        self.store = Store.open(f"sqlite:///{root}/jobs.db")
        self.store.start(asyncio.get_running_loop(), _fail)
        self.agent = agent = QuickAgent(group)

        def make_agents(supervisor: Supervisor) -> AgentPool:
            return AgentPool(
                root=root,
                url="unix:nowhere",
                drivers={"local": agent},
                commits=supervisor.commits,
                tasks=supervisor.tasks,
                secret=b"secret",
                wake=supervisor.wake_agent,
                is_wanted=lambda one: supervisor.ops.waiting_for((Need.AGENT, one.key)) > 0,
                out_of_reach=lambda one: None,
            )

        self.supervisor = agent.supervisor = Supervisor(self.store, make_agents)
        agent.talk = AgentTalk(self.supervisor, heartbeat_secs=heartbeat_secs)
        self.intake = Intake(self.supervisor)
        self.statements = self.commits = 0
        database = self.store._database
        run, commit = database.run, database.commit

        def counted_run(sql: str, parameters: Any) -> int:
            self.statements += 1
            return run(sql, parameters)

        def counted_commit() -> None:
            self.commits += 1
            commit()

        database.run, database.commit = counted_run, counted_commit  # type: ignore[method-assign]

    async def submit(self, count: int) -> None:
        for first in range(0, count, BATCH):
            await self.intake.submit(
                "ann", [JobSpec(command=["/bin/true"])] * min(BATCH, count - first), None
            )

    async def until_ended(self, count: int) -> None:
        """Until so many have ended since the start, durably."""
        async for rows in self.supervisor.events.follow(self.supervisor.events.last, user=None):
            if self.agent.ended >= count and any(row.state == State.COMPLETED for row in rows):
                break
        await self.supervisor.commits.durable()

    def mark(self) -> tuple[float, ...]:
        agent = self.agent
        return time.process_time(), self.statements, self.commits, agent.frames_in, agent.frames_out

    async def close(self) -> None:
        await self.supervisor.tasks.close()
        self.supervisor.commits.close()
        await self.store.close()


def _fail(error: Exception) -> None:
    raise error


async def cost_of_a_job(jobs: int, group: int) -> Cost:
    """Submitted in batches, while the agent works."""
    with tempfile.TemporaryDirectory(prefix="bench-brain-") as folder:
        brain = Brain(Path(folder), group)
        await brain.supervisor.recover()
        try:
            await brain.submit(1)
            await brain.until_ended(1)
            before = brain.mark()
            ended = asyncio.create_task(brain.until_ended(1 + jobs))
            await brain.submit(jobs)
            await ended
            cpu, *counts = (now - then for now, then in zip(brain.mark(), before, strict=True))
            brain.supervisor.check()
            return Cost(jobs, cpu / jobs * 1e6, *(count / jobs for count in counts))
        finally:
            await brain.close()


def main() -> None:
    """Print what a job costs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=5000)
    parser.add_argument("--group", type=int, default=16, help="attempts that end in one frame")
    words = parser.parse_args()
    print(asyncio.run(cost_of_a_job(words.jobs, words.group)))


if __name__ == "__main__":
    main()
