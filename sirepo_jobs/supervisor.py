"""The shell around the pure core: it owns the jobs in memory, lets events happen to them, and does what
the core asks for (design 3, 5).

One thread, one loop. `tell` is the only way by which a job changes: step, put the new record into this
turn's unit, carry out the effects. Whatever leaves the process waits for the unit's commit.
"""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import structlog

from . import failpoints, protocol
from .agent_claim import Agent
from .agent_pool import AgentPool
from .commits import Commits
from .compute_job import ComputeJob, JobTable
from .driver import Environment
from .event_hub import EventHub
from .events import (
    AgentLost,
    Assigned,
    Changed,
    Dequeue,
    Effect,
    EndAttempt,
    Ended,
    Enqueue,
    Event,
    Note,
    NotStarted,
    Progressed,
    Requeue,
    StopAttempt,
)  # fmt: skip
from .job import AttemptRecord, State
from .lifecycle import Illegal, step
from .op import Kind, Need, Op, OpLoop
from .output import Readings
from .reasons import Reason
from .resources import Resources
from .scheduler import Entry, No, Scheduler, Shape
from .spec import SLURM_DRIVER, Changes, JobSpec, changed
from .store import Store
from .store.unit import EventRow, Unit
from .tasks import Tasks
from .token_book import TokenBook

_log = structlog.get_logger(__name__)

#: Jobs read ahead of their turn, and rows in one page of the queue.
READ_AHEAD = 256
PAGE = 2000

_encode = msgspec.json.Encoder().encode
_decode_spec = msgspec.json.Decoder(JobSpec).decode


class _Changes:
    """What a unit changed, to be shown when it is durable."""

    __slots__ = ("jobs", "rows", "unit")

    def __init__(self, unit: Unit) -> None:
        self.unit = unit
        self.jobs: dict[ComputeJob, int] = {}
        self.rows: list[EventRow] = []


def unheard(job: ComputeJob, at: int) -> NotStarted:
    """The present attempt was to end before its agent knew of it: it never was."""
    return NotStarted(
        at=at,
        serial=job.record.serial,
        attempt=job.record.attempt,
        reason=Reason.START_FAILED,
        message="it was asked to end before its agent heard of it",
    )


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


class Supervisor:
    """The brain: jobs, queue, ops and agents of one store."""

    def __init__(
        self,
        store: Store,
        make_agents: "Callable[[Supervisor], AgentPool]",
        *,
        job_cache: int = 2000,
        queue_window: int = 10_000,
        max_output_bytes: int | None = None,
        max_processes: int | None = None,
    ) -> None:
        self.store = store
        self.loop = asyncio.get_running_loop()
        self.commits = Commits(store, self.loop, self._dispatch_if_due)
        self.tasks = Tasks()
        self.jobs = JobTable(store, job_cache)
        self.scheduler = Scheduler(queue_window)
        self.ops = OpLoop(self.grant)
        self.agents = make_agents(self)
        self.events = EventHub(store, store.last_event_seq)
        self.readings = Readings(self)
        self.tokens = TokenBook(store, self.commits, self.now)
        #: No attempt may write more to stdout and stderr together (F053).
        self._max_output_bytes = max_output_bytes
        self._max_processes = max_processes
        self._job_seq = store.last_job_seq
        self._op_id = 0
        self._changes: _Changes | None = None
        self._dispatching = False
        #: Whose place in the queue is another one; they are moved together at the end of the turn.
        self._moved: dict[str, ComputeJob] = {}
        #: Queued, and not to begin before the timer.
        self._pauses: dict[str, asyncio.TimerHandle] = {}

    @staticmethod
    def now() -> int:
        """The wall clock in microseconds: for records, never for deciding."""
        return time.time_ns() // 1000

    def next_job_seq(self) -> int:
        """The next place in the order of acceptance."""
        self._job_seq += 1
        return self._job_seq

    def next_op_id(self) -> int:
        """An id no other op of this epoch has."""
        self._op_id += 1
        return self._op_id

    async def recover(self) -> None:
        """Know again what was under way before the restart: agents, attempts, the queue (SIR-L1, SYS-16)."""
        failpoints.hit("recover.begin")
        await self.tokens.load()
        for row in await self.store.agents():
            self.agents.restore(row)
        for stored in await self.store.active_jobs():
            self.jobs.revive(stored)  # one that cannot be read costs itself alone (F015)
        for user, _count in await self.store.pending_users():
            self.scheduler.expect_rows(user)
        # those that were seen to start come first: of the others nobody knows yet which have slots
        for job in sorted(self.jobs.active(), key=lambda job: job.record.started_at is None):
            if job.spec.driver not in self.agents.drivers:
                self._strand(job)
                continue
            agent = self.agents.get(job.record.agent or "") or self.agents.at(self.environment(job))
            # as many as may run are taken to run, so that nobody else gets their slots (I21)
            standby = job.record.started_at is None and not job.spec.resources.fits(agent.pool.free)
            self.adopt(job, agent, standby=standby)
            self.agents.bring(agent)
        for pool in self.agents.pools.values():
            self.ops.wake((Need.CPUS, pool.name))
        self.dispatch_soon()
        failpoints.hit("recover.end")

    def _strand(self, job: ComputeJob) -> None:
        record = job.record
        why = f"driver {job.spec.driver!r} is not configured any more; the job may well be running"
        self.tell(job, AgentLost(at=self.now(), serial=record.serial, attempt=record.attempt, message=why))

    def adopt(self, job: ComputeJob, agent: Agent, *, standby: bool) -> None:
        """Book what an attempt holds that its agent has already."""
        job.op = Op(
            self.next_op_id(),
            Kind.RUN,
            job.jid,
            agent,
            go=lambda _op: None,
            still=lambda: True,
            pool=agent.pool,
            need=job.spec.resources,
        )
        job.op.told = True  # as far as we know
        self.scheduler.charge(job.record.user, job.op.need.cpus)
        self.ops.adopt(job.op, standby=standby)

    # -- the one way by which a job changes

    def tell(self, job: ComputeJob, event: Event) -> None:
        """Let `event` happen to `job`. Raises `lifecycle.Illegal` and changes nothing if it cannot."""
        before = job.record
        job.record, effects = step(before, event, job.spec)
        if job.record is not before:
            self._record(job, event)
        for effect in effects:
            self._carry_out(job, effect)

    def change(self, job: ComputeJob, changes: Changes, by: str) -> None:
        """Have something about the job another way; the same again changes nothing.

        Raises `BadInput` when the job could not have been accepted so, `lifecycle.Illegal` when it is too
        late, and changes nothing then.
        """
        spec = changed(job.spec, changes)
        if spec == job.spec:
            return
        before = job.spec, job.fixed
        job.spec = spec
        job.fixed = msgspec.structs.replace(
            job.fixed, name=spec.name or job.fixed.name, priority=spec.priority, spec=_encode(spec)
        )
        said: dict[str, Any] = msgspec.to_builtins(changes)
        said.pop("jid", None)
        try:
            self.tell(job, Changed(at=self.now(), by=by, changes=said))
        except Illegal:
            job.spec, job.fixed = before
            raise
        unit = self.commits.unit
        (unit.new if job.jid in unit.new else unit.fixed)[job.jid] = job.fixed

    def created(self, job: ComputeJob, at: int) -> None:
        """Write down a job that was just made, and queue it."""
        self.commits.unit.new[job.jid] = job.fixed
        self._write(job, at, "Submitted", b"{}")
        if not self.jobs.full:
            self.jobs.add(job)
        if job.record.state is State.PENDING:
            self.scheduler.add(job.entry(self.shape(job)))

    def _record(self, job: ComputeJob, event: Event) -> None:
        if isinstance(event, Progressed):
            # shown live and kept, but no line of history: it says nothing about what happened
            self._changed(job, None)
        else:
            self._write(job, event.at, type(event).__name__, _encode(event))

    def _write(self, job: ComputeJob, at: int, kind: str, data: bytes) -> None:
        record = job.record
        row = EventRow(
            seq=self.events.next_seq(),
            jid=record.jid,
            user=record.user,
            version=record.version,
            at=at,
            kind=kind,
            state=record.state,
            data=data,
        )
        self.commits.unit.events.append(row)
        self._changed(job, row)

    def _changed(self, job: ComputeJob, row: EventRow | None) -> None:
        unit = self.commits.unit
        unit.jobs[job.jid] = job.record
        if self._changes is None or self._changes.unit is not unit:
            self._changes = _Changes(unit)
            unit.done.append(partial(self._show, self._changes))
        self._changes.jobs[job] = job.record.version
        if row is not None:
            self._changes.rows.append(row)

    def _show(self, changes: _Changes) -> None:
        """What changed is durable: let everybody see it."""
        for job, version in changes.jobs.items():
            job.committed(version)
            if self.jobs.get(job.jid) is job:
                self.jobs.release(job)
        self.events.publish(changes.rows)

    # -- effects

    def _carry_out(self, job: ComputeJob, effect: Effect) -> None:
        match effect:
            case Enqueue(pause_secs=secs) if secs:
                self._pause(job, secs)
            case Enqueue():
                self._queue(job)
            case Dequeue():
                self.scheduler.remove(job.record.user, job.jid)
                if job.jid in self._pauses:
                    self._pauses.pop(job.jid).cancel()
                self._end_op(job)
                self.dispatch_soon()  # others may have waited behind it
            case Requeue():
                self._moved[job.jid] = job
                self.dispatch_soon()
            case StopAttempt(grace_secs=grace_secs):
                self.commits.after(partial(self.send_cancel, job, job.record.attempt, grace_secs))
            case EndAttempt(reason=reason, situation=situation):
                self._end_attempt(job, reason, situation)
            case Ended():
                pass  # whoever depends on it is told here, when there are dependencies
            case Note(text=text):
                _log.info("dropped", jid=job.jid, what=text)

    def _queue(self, job: ComputeJob) -> None:
        self.scheduler.add(job.entry(self.shape(job)))
        self.dispatch_soon()

    def _pause(self, job: ComputeJob, secs: float) -> None:
        """Queue it after a while. A restart forgets the pause: it was one itself."""

        def over() -> None:
            del self._pauses[job.jid]
            if job.record.state is State.PENDING:
                self._queue(job)

        self._pauses[job.jid] = self.loop.call_later(secs, over)

    def _end_attempt(self, job: ComputeJob, reason: Reason | None, situation: str) -> None:
        record = job.record
        self.commits.unit.attempts.append(
            AttemptRecord(
                jid=record.jid,
                attempt=record.attempt,
                serial=record.serial,
                agent=job.op.place.key if job.op else record.agent,
                run_dir=record.run_dir,
                image_id=record.image_id,
                state=record.state,
                reason=reason or record.reason,
                situation=situation if reason else record.situation,
                exit_code=record.exit_code,
                signal=record.signal,
                stdout_bytes=record.stdout_bytes,
                stderr_bytes=record.stderr_bytes,
                proof=record.proof,
                usage=record.usage,
                started_at=record.started_at,
                ended_at=record.ended_at or self.now(),
            )
        )
        self._end_op(job)

    def _end_op(self, job: ComputeJob) -> None:
        job.scheduling = None
        if job.op is None:
            return
        self.scheduler.charge(job.record.user, -job.op.need.cpus)
        self.ops.end(job.op)
        job.op = None
        self.dispatch_soon()

    def agent_refused(self, agent: Agent, reason: Reason, why: str) -> None:
        """Its driver says that it can never be, for what the jobs themselves ask: they end, and say why."""
        for op in self.ops.waiting_ops((Need.AGENT, agent.key)):
            job = self.jobs.get(op.jid)
            if job is None or job.op is not op or job.record.state is not State.PENDING:
                continue
            run_dir = f"{job.jid}/{job.record.attempt + 1}"
            self.tell(job, Assigned(at=self.now(), agent=agent.key, run_dir=run_dir))
            record = job.record
            self.tell(
                job,
                NotStarted(
                    at=self.now(),
                    serial=record.serial,
                    attempt=record.attempt,
                    reason=reason,
                    message=why,
                    final=True,
                ),
            )

    # -- from the queue to the agent

    def environment(self, job: ComputeJob) -> Environment:
        """Where the job may run."""
        return environment_of(job.spec, job.record.user)

    def shape(self, job: ComputeJob) -> Shape:
        """What the scheduler needs to know of it."""
        return Shape(job.spec.driver, self.environment(job).key, job.spec.resources)

    def dispatch_soon(self) -> None:
        """Look at the end of this turn who may go now.

        What ended and what starts in its place are one commit.
        """
        if not self._dispatching:
            self._dispatching = True
            self.loop.call_soon(self._dispatch_if_due)

    def _dispatch_if_due(self) -> None:
        if self._dispatching:
            self.dispatch()

    def dispatch(self) -> None:
        """Let ops that waited try again, then admit from the queue whatever has room."""
        self._dispatching = False
        self._move()
        self.ops.settle()
        for entry in self.scheduler.admit(self._room):
            if entry.jid in self._pauses:
                continue  # a page of the store named it; its timer will, too
            job = self.jobs.get(entry.jid)
            if job is None:
                self.scheduler.add(entry)
                self.tasks.ensure("read ahead", partial(self._read_ahead, entry))
                break
            if job.record.state is State.PENDING and job.op is None:
                self._begin(job, entry.shape)
        for user, after in self.scheduler.wants():
            self.tasks.ensure(f"page of {user}", partial(self._read_page, user, after))

    def _move(self) -> None:
        """Give those whose priority was changed their new places."""
        moved, self._moved = self._moved, {}
        entries = []
        for job in moved.values():
            self.scheduler.remove(job.record.user, job.jid)
            if job.record.state is State.PENDING and job.op is not None:
                self._end_op(job)
            entries.append(job.entry(self.shape(job)))
        self.scheduler.bury(entries)
        for job, entry in zip(moved.values(), entries, strict=True):
            if job.record.state is State.PENDING:
                self.scheduler.add(entry)

    def _room(self, shape: Shape, user: str) -> No | None:
        """Whether a job of this shape can be placed now."""
        if shape.pool not in self.agents.pools:
            return No(Reason.LAUNCH_FAILED, f"driver {shape.pool!r} is not configured any more")
        agent = self.agents.get(shape.environment)
        if agent is None:
            return None  # it will be made, and its first op brings it
        if agent.line is None or not agent.is_online:
            # one op waits for the agent; the others stay compact entries
            return No(*agent.why_not()) if self.ops.waiting_for((Need.AGENT, agent.key)) else None
        if sick := agent.health.why_not(self.loop.time()):
            return No(Reason.START_FAILED, f"agent {agent.name} is paused: {sick}")
        if len(agent.ops) >= agent.op_limit:
            return No(Reason.RESOURCES, f"agent {agent.name} has {len(agent.ops)} ops, its limit")
        pool = agent.pool
        if shape.need.fits(pool.free) and self.ops.nobody_waits_for((Need.CPUS, pool.name)):
            return None
        if agent.takes_standby(shape.need):
            return None
        lacking = shape.need.shortage(pool.free) or "others stand in line"
        return No(Reason.RESOURCES, f"{lacking} (of {pool.size.cpus} cpus)")

    def _begin(self, job: ComputeJob, shape: Shape) -> None:
        agent = self.agents.at(self.environment(job))
        serial = job.record.serial
        job.op = Op(
            self.next_op_id(),
            Kind.RUN,
            job.jid,
            agent,
            go=partial(self._assign, job),
            still=lambda: job.record.state is State.PENDING and job.record.serial == serial,
            pool=agent.pool,
            need=shape.need,
        )
        self.scheduler.charge(job.record.user, shape.need.cpus)
        self.jobs.release(job)
        self.ops.begin(job.op)

    def _assign(self, job: ComputeJob, op: Op) -> None:
        """Everything is acquired: write the intent down, then send (C1)."""
        run_dir = f"{job.jid}/{job.record.attempt + 1}"
        agent = self.agents.get(op.place.key)
        lease_secs = job.spec.lease_secs if agent is not None and agent.leases else None
        self.tell(
            job,
            Assigned(
                at=self.now(),
                agent=op.place.key,
                run_dir=run_dir,
                lease_secs=lease_secs,
                image_id=agent.image_id if agent is not None else None,
            ),
        )
        self.commits.after(partial(self.send_run, job, job.record.attempt))

    def send_run(self, job: ComputeJob, attempt: int) -> None:
        """Tell the agent to run this attempt, if that is still what is wanted; safe to repeat."""
        record, op = job.record, job.op
        agent = self.agents.get(record.agent or "")
        if op is None or agent is None or agent.line is None or record.attempt != attempt:
            return
        if record.stopping:
            if not op.told:
                # nobody else can end it: an agent has nothing to say of what it never heard of
                self.tell(job, unheard(job, self.now()))
            return
        failpoints.hit("dispatch.after_intent")
        op.told = True
        spec = job.spec
        agent.line.say(
            protocol.Run(
                jid=record.jid,
                serial=record.serial,
                attempt=attempt,
                op_id=op.op_id,
                command=spec.command,
                env=spec.env,
                run_dir=record.run_dir or "",
                soft_secs=spec.limits.soft,
                hard_secs=spec.limits.hard,
                grace_secs=spec.limits.grace,
                progress=spec.progress is not None,
                cpus=spec.resources.cpus,
                standby=op.standby,
                lease_secs=record.lease_secs,
                output_bytes=_limit(spec.limits.output, self._max_output_bytes),
                # How many a node carries is for its site to say.
                processes=_limit(
                    spec.limits.processes, None if spec.driver == SLURM_DRIVER else self._max_processes
                ),
                spec=msgspec.Raw(job.fixed.spec),
            )
        )
        failpoints.hit("dispatch.after_say")

    def send_cancel(self, job: ComputeJob, attempt: int, grace_secs: float) -> None:
        """Tell the agent to end this attempt; safe to repeat, and repeated when the agent comes back."""
        record = job.record
        agent = self.agents.get(record.agent or "")
        if agent is not None and agent.line is not None and record.attempt == attempt and job.op is not None:
            agent.line.say(
                protocol.Cancel(
                    jid=record.jid,
                    serial=record.serial,
                    attempt=attempt,
                    op_id=job.op.op_id,
                    grace_secs=grace_secs,
                )
            )

    def send_signal(self, job: ComputeJob, *, suspend: bool) -> bool:
        """Tell the agent to stop or continue the processes of the attempt; False when it is not there."""
        record = job.record
        agent = self.agents.get(record.agent or "")
        if agent is None or agent.line is None or job.op is None:
            return False
        agent.line.say(
            protocol.Signal(
                jid=record.jid,
                serial=record.serial,
                attempt=record.attempt,
                op_id=job.op.op_id,
                suspend=suspend,
            )
        )
        return True

    def grant(self, op: Op) -> None:
        """Tell the agent that a standby op has slots; safe to repeat."""
        job = self.jobs.get(op.jid)
        agent = self.agents.get(op.place.key)
        if job is not None and agent is not None and agent.line is not None:
            record = job.record
            agent.line.say(protocol.Grant(jid=record.jid, serial=record.serial, attempt=record.attempt))

    # -- rows that are to become entries and jobs

    async def _read_ahead(self, first: Entry) -> None:
        entries = self.scheduler.upcoming(READ_AHEAD, first)
        await self.commits.durable()
        unknown = await self.jobs.load_next(entry.jid for entry in entries)
        for entry in entries:
            if entry.jid in unknown:
                self.scheduler.remove(entry.user, entry.jid)
        self.dispatch_soon()

    async def _read_page(self, user: str, after: tuple[int, int] | None) -> None:
        # rows of units that are not durable yet would be missed, and count as dropped by the scheduler
        await self.commits.durable()
        rows = await self.store.pending(user=user, after=after and (-after[0], after[1]), limit=PAGE)
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
        self.scheduler.feed(user, entries, complete=len(rows) < PAGE)
        self.dispatch_soon()

    # -- what others ask

    def why_pending(self, job: ComputeJob) -> tuple[Reason | None, str]:
        """Why a queued job waits, now."""
        if (pause := self._pauses.get(job.jid)) is not None:
            left = max(0.0, pause.when() - self.loop.time())
            return Reason.RETRYING, f"{job.record.situation}; tried again in {left:.0f} s"
        if job.op is not None and job.op.waiting is not None:
            return job.op.waiting.reason, job.op.waiting.text
        shape = self.shape(job)
        user = job.record.user
        refusal = self._room(shape, user)
        ahead, more = self.scheduler.ahead(user, (-job.fixed.priority, job.record.seq))
        if ahead:
            count = f"{ahead} or more" if more else str(ahead)
            tail = f"; of the next one: {refusal.text}" if refusal else ""
            return Reason.PRIORITY, f"{count} of your jobs are before it{tail}"
        return (refusal.reason, refusal.text) if refusal else (job.record.reason, "its turn is next")

    def check(self) -> None:
        """Raise `AssertionError` if any slot was lost or kept (after tests, and on demand)."""
        self.ops.check()
        for pool in self.agents.pools.values():
            pool.check()

    def wake_agent(self, agent: Agent) -> None:
        """The agent came, or the reason why it is away changed."""
        self.ops.follow(agent.key, agent.ops.values(), agent.pool)
        self.ops.wake((Need.AGENT, agent.key))
        self.dispatch_soon()

    def status(self) -> dict[str, Any]:
        """Counts for operators."""
        return {
            "epoch": self.store.epoch,
            "jobs_in_memory": len(self.jobs),
            "queued_in_memory": len(self.scheduler),
            "degraded": self.store.degraded,
            "damaged_jobs": len(self.jobs.damaged),
        }


def _limit(asked: int | None, most: int | None) -> int | None:
    """What a job gets that asks for this where the installation gives at most that; None = no limit."""
    return asked if most is None else most if asked is None else min(asked, most)
