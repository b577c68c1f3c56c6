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

from . import failpoints
from .agent_claim import Agent
from .agent_pool import AgentPool
from .changes import Changes, changed
from .commits import Commits
from .compute_job import ComputeJob, JobTable
from .dispatch import Dispatcher
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
from .op import Need, OpLoop
from .orders import Orders
from .output import Readings
from .reasons import Reason
from .scheduler import Scheduler
from .store import Store
from .store.unit import EventRow, Unit
from .tasks import Tasks
from .token_book import TokenBook

_log = structlog.get_logger(__name__)

_encode = msgspec.json.Encoder().encode


class _Changes:
    """What a unit changed, to be shown when it is durable."""

    __slots__ = ("jobs", "rows", "unit")

    def __init__(self, unit: Unit) -> None:
        self.unit = unit
        self.jobs: dict[ComputeJob, int] = {}
        self.rows: list[EventRow] = []


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
        self.commits = Commits(store, self.loop, lambda: self.dispatch.if_due())
        self.tasks = Tasks()
        self.jobs = JobTable(store, job_cache)
        self.scheduler = Scheduler(queue_window)
        self.orders = Orders(self, max_output_bytes=max_output_bytes, max_processes=max_processes)
        self.ops = OpLoop(self.orders.grant)
        self.dispatch = Dispatcher(self)
        self.agents = make_agents(self)
        self.events = EventHub(store, store.last_event_seq)
        self.readings = Readings(self)
        self.tokens = TokenBook(store, self.commits, self.now)
        self._job_seq = store.last_job_seq
        self._op_id = 0
        self._changes: _Changes | None = None

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
            agent = self.agents.get(job.record.agent or "") or self.agents.at(self.dispatch.environment(job))
            # as many as may run are taken to run, so that nobody else gets their slots (I21)
            standby = job.record.started_at is None and not job.spec.resources.fits(agent.pool.free)
            self.dispatch.adopt(job, agent, standby=standby)
            self.agents.bring(agent)
        for pool in self.agents.pools.values():
            self.ops.wake((Need.CPUS, pool.name))
        self.dispatch.soon()
        failpoints.hit("recover.end")

    def _strand(self, job: ComputeJob) -> None:
        record = job.record
        why = f"driver {job.spec.driver!r} is not configured any more; the job may well be running"
        self.tell(job, AgentLost(at=self.now(), serial=record.serial, attempt=record.attempt, message=why))

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
            self.scheduler.add(job.entry(self.dispatch.shape(job)))

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
                self.dispatch.pause(job, secs)
            case Enqueue():
                self.dispatch.queue(job)
            case Dequeue():
                self.dispatch.unqueue(job)
            case Requeue():
                self.dispatch.requeue(job)
            case StopAttempt(grace_secs=grace_secs):
                self.commits.after(partial(self.orders.cancel, job, job.record.attempt, grace_secs))
            case EndAttempt(reason=reason, situation=situation):
                self._end_attempt(job, reason, situation)
            case Ended():
                pass  # whoever depends on it is told here, when there are dependencies
            case Note(text=text):
                _log.info("dropped", jid=job.jid, what=text)

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
        self.dispatch.end_op(job)

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

    # -- what others ask

    def check(self) -> None:
        """Raise `AssertionError` if any slot was lost or kept (after tests, and on demand)."""
        self.ops.check()
        for pool in self.agents.pools.values():
            pool.check()

    def wake_agent(self, agent: Agent) -> None:
        """The agent came, or the reason why it is away changed."""
        self.ops.follow(agent.key, agent.ops.values(), agent.pool)
        self.ops.wake((Need.AGENT, agent.key))
        self.dispatch.soon()

    def status(self) -> dict[str, Any]:
        """Counts for operators."""
        return {
            "epoch": self.store.epoch,
            "jobs_in_memory": len(self.jobs),
            "queued_in_memory": len(self.scheduler),
            "degraded": self.store.degraded,
            "damaged_jobs": len(self.jobs.damaged),
        }
