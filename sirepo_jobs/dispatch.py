"""From the queue to an agent, and back: who may begin now, with what, and why the others wait
(SIR-12, SIR-13).

The scheduler says whose turn it is, the op loop acquires what it takes. A job that may begin is written down
as assigned first; its agent hears of it when that is durable (C1).
"""

import asyncio
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from .agent_claim import Agent
from .compute_job import ComputeJob
from .driver import Environment
from .events import Assigned
from .job import State
from .op import Kind, Need, Op
from .reasons import Reason
from .resources import Resources
from .scheduler import Entry, No, Shape
from .spec import JobSpec

if TYPE_CHECKING:
    from .supervisor import Supervisor

#: Jobs read ahead of their turn: more when half of them have begun, so that nobody waits for the store.
READ_AHEAD = 512
#: Rows in one page of the queue.
PAGE = 2000

_decode_spec = msgspec.json.Decoder(JobSpec).decode


def environment_of(spec: JobSpec, user: str) -> Environment:
    """Where a job may run. On a cluster the image is the job's own affair, not its agent's."""
    if spec.cluster is not None:
        return Environment(driver=spec.driver, user=user, cluster=spec.cluster)
    return Environment(
        driver=spec.driver,
        user=user,
        image=spec.image,
        mounts=spec.mounts,
        services=list(spec.services),
        # the processes of a local agent take theirs from its host; a container gets its own
        gpus=spec.resources.gpus if spec.driver == "docker" else 0,
        shm=spec.shm,
    )


class Dispatcher:
    """Who of one supervisor's jobs begins; pauses before a job is queued again are kept here."""

    def __init__(self, supervisor: "Supervisor") -> None:
        self._supervisor = supervisor
        self._scheduler = supervisor.scheduler
        self._ops = supervisor.ops
        #: Jobs that were read ahead and have not begun; less than that when all were in memory.
        self._ahead = 0
        #: At the end of this turn it is looked who may go.
        self._due = False
        #: Whose place in the queue is another one; they are moved together at the end of the turn.
        self._moved: dict[str, ComputeJob] = {}
        #: Queued, and not to begin before the timer.
        self._pauses: dict[str, asyncio.TimerHandle] = {}

    def environment(self, job: ComputeJob) -> Environment:
        """Where the job may run."""
        return environment_of(job.spec, job.record.user)

    def shape(self, job: ComputeJob) -> Shape:
        """What the scheduler needs to know of it."""
        return Shape(job.spec.driver, self.environment(job).key, job.spec.resources)

    def soon(self) -> None:
        """Look at the end of this turn who may go now.

        What ended and what starts in its place are one commit.
        """
        if not self._due:
            self._due = True
            self._supervisor.loop.call_soon(self.if_due)

    def if_due(self) -> None:
        """Look now, if somebody asked for it in this turn."""
        if self._due:
            self.at_once()

    def at_once(self) -> None:
        """Let ops that waited try again, then admit from the queue whatever has room."""
        self._due = False
        self._move()
        self._ops.settle()
        for entry in self._scheduler.admit(self._room):
            if entry.jid in self._pauses:
                continue  # a page of the store named it; its timer will, too
            job = self._supervisor.jobs.get(entry.jid)
            if job is None:
                self._scheduler.add(entry)
                self._supervisor.tasks.ensure("read ahead", partial(self._read_ahead, entry))
                break
            if job.record.state is State.PENDING and job.op is None:
                self._begin(job, entry.shape)
                self._ahead -= 1
                if self._ahead == READ_AHEAD // 2:
                    self._supervisor.tasks.ensure("read ahead", partial(self._read_ahead, entry))
        for user, after in self._scheduler.wants():
            self._supervisor.tasks.ensure(f"page of {user}", partial(self._read_page, user, after))

    def _move(self) -> None:
        """Give those whose priority was changed their new places."""
        moved, self._moved = self._moved, {}
        entries = []
        for job in moved.values():
            self._scheduler.remove(job.record.user, job.jid)
            if job.record.state is State.PENDING and job.op is not None:
                self.end_op(job)
            entries.append(job.entry(self.shape(job)))
        self._scheduler.bury(entries)
        for job, entry in zip(moved.values(), entries, strict=True):
            if job.record.state is State.PENDING:
                self._scheduler.add(entry)

    def _room(self, shape: Shape, user: str) -> No | None:
        """Whether a job of this shape can be placed now."""
        if shape.pool not in self._supervisor.agents.pools:
            return No(Reason.LAUNCH_FAILED, f"driver {shape.pool!r} is not configured any more")
        agent = self._supervisor.agents.get(shape.environment)
        if agent is None:
            return None  # it will be made, and its first op brings it
        if agent.line is None or not agent.is_online:
            # one op waits for the agent; the others stay compact entries
            return No(*agent.why_not()) if self._ops.waiting_for((Need.AGENT, agent.key)) else None
        if sick := agent.health.why_not(self._supervisor.loop.time()):
            return No(Reason.START_FAILED, f"agent {agent.name} is paused: {sick}")
        if len(agent.ops) >= agent.op_limit:
            return No(Reason.RESOURCES, f"agent {agent.name} has {len(agent.ops)} ops, its limit")
        pool = agent.pool
        if shape.need.fits(pool.free) and self._ops.nobody_waits_for((Need.CPUS, pool.name)):
            return None
        if agent.takes_standby(shape.need):
            return None
        lacking = shape.need.shortage(pool.free) or "others stand in line"
        return No(Reason.RESOURCES, f"{lacking} (of {pool.size.cpus} cpus)")

    def _begin(self, job: ComputeJob, shape: Shape) -> None:
        agent = self._supervisor.agents.at(self.environment(job))
        serial = job.record.serial
        job.op = Op(
            self._supervisor.next_op_id(),
            Kind.RUN,
            job.jid,
            agent,
            go=partial(self._assign, job),
            still=lambda: job.record.state is State.PENDING and job.record.serial == serial,
            pool=agent.pool,
            need=shape.need,
        )
        self._scheduler.charge(job.record.user, shape.need.cpus)
        self._supervisor.jobs.release(job)
        self._ops.begin(job.op)

    def _assign(self, job: ComputeJob, op: Op) -> None:
        """Everything is acquired: write the intent down, then send (C1)."""
        run_dir = f"{job.jid}/{job.record.attempt + 1}"
        agent = self._supervisor.agents.get(op.place.key)
        lease_secs = job.spec.lease_secs if agent is not None and agent.leases else None
        self._supervisor.tell(
            job,
            Assigned(
                at=self._supervisor.now(),
                agent=op.place.key,
                run_dir=run_dir,
                lease_secs=lease_secs,
                image_id=agent.image_id if agent is not None else None,
            ),
        )
        self._supervisor.commits.after(partial(self._supervisor.orders.run, job, job.record.attempt))

    def adopt(self, job: ComputeJob, agent: Agent, *, standby: bool) -> None:
        """Book what an attempt holds that its agent has already."""
        job.op = Op(
            self._supervisor.next_op_id(),
            Kind.RUN,
            job.jid,
            agent,
            go=lambda _op: None,
            still=lambda: True,
            pool=agent.pool,
            need=job.spec.resources,
        )
        job.op.told = True  # as far as we know
        self._scheduler.charge(job.record.user, job.op.need.cpus)
        self._ops.adopt(job.op, standby=standby)

    def queue(self, job: ComputeJob) -> None:
        """Let it stand in line."""
        self._scheduler.add(job.entry(self.shape(job)))
        self.soon()

    def unqueue(self, job: ComputeJob) -> None:
        """Take it out of the queue; what it held goes back."""
        self._scheduler.remove(job.record.user, job.jid)
        if job.jid in self._pauses:
            self._pauses.pop(job.jid).cancel()
        self.end_op(job)
        self.soon()  # others may have waited behind it

    def requeue(self, job: ComputeJob) -> None:
        """Its priority is another one: it gets its new place at the end of the turn."""
        self._moved[job.jid] = job
        self.soon()

    def pause(self, job: ComputeJob, secs: float) -> None:
        """Queue it after a while. A restart forgets the pause: it was one itself."""

        def over() -> None:
            del self._pauses[job.jid]
            if job.record.state is State.PENDING:
                self.queue(job)

        self._pauses[job.jid] = self._supervisor.loop.call_later(secs, over)

    def end_op(self, job: ComputeJob) -> None:
        """Its op is over, or not wanted any more: slots and its share go back, once."""
        job.scheduling = None
        if job.op is None:
            return
        self._scheduler.charge(job.record.user, -job.op.need.cpus)
        self._ops.end(job.op)
        job.op = None
        self.soon()

    # -- rows that are to become entries and jobs

    async def _read_ahead(self, first: Entry) -> None:
        entries = self._scheduler.upcoming(READ_AHEAD, first)
        self._ahead = len(entries)
        await self._supervisor.commits.durable()
        unknown = await self._supervisor.jobs.load_next(entry.jid for entry in entries)
        for entry in entries:
            if entry.jid in unknown:
                self._scheduler.remove(entry.user, entry.jid)
        self.soon()

    async def _read_page(self, user: str, after: tuple[int, int] | None) -> None:
        # rows of units that are not durable yet would be missed, and count as dropped by the scheduler
        await self._supervisor.commits.durable()
        rows = await self._supervisor.store.pending(
            user=user, after=after and (-after[0], after[1]), limit=PAGE
        )
        entries = []
        for row in rows:
            try:
                spec = _decode_spec(row.spec)
                shape = Shape(row.driver, environment_of(spec, row.user).key, spec.resources)
                priority = int(row.priority)
            except (msgspec.DecodeError, ValueError, TypeError):
                # when its turn comes it is read, found out and left alone (F015)
                shape, priority = Shape(row.driver, row.jid, Resources()), 0
            entries.append(Entry(-priority, row.seq, row.jid, row.user, shape))
        self._scheduler.feed(user, entries, complete=len(rows) < PAGE)
        self.soon()

    # -- what others ask

    def why_pending(self, job: ComputeJob) -> tuple[Reason | None, str]:
        """Why a queued job waits, now."""
        if (pause := self._pauses.get(job.jid)) is not None:
            left = max(0.0, pause.when() - self._supervisor.loop.time())
            return Reason.RETRYING, f"{job.record.situation}; tried again in {left:.0f} s"
        if job.op is not None and job.op.waiting is not None:
            return job.op.waiting.reason, job.op.waiting.text
        shape = self.shape(job)
        user = job.record.user
        refusal = self._room(shape, user)
        ahead, more = self._scheduler.ahead(user, (-job.fixed.priority, job.record.seq))
        if ahead:
            count = f"{ahead} or more" if more else str(ahead)
            tail = f"; of the next one: {refusal.text}" if refusal else ""
            return Reason.PRIORITY, f"{count} of your jobs are before it{tail}"
        return (refusal.reason, refusal.text) if refusal else (job.record.reason, "its turn is next")
