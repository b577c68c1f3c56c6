"""What an agent is told about an attempt: run it, end it, stop or continue it, it has slots.

Each order is safe to repeat and names serial and attempt, so that one that comes
late changes nothing (C4, I6).
"""

from typing import TYPE_CHECKING

import msgspec

from . import failpoints, protocol
from .compute_job import ComputeJob
from .events import NotStarted
from .op import Op
from .reasons import Reason
from .spec import SLURM_DRIVER

if TYPE_CHECKING:
    from .supervisor import Supervisor


def unheard(job: ComputeJob, at: int) -> NotStarted:
    """The present attempt was to end before its agent knew of it: it never was."""
    return NotStarted(
        at=at,
        serial=job.record.serial,
        attempt=job.record.attempt,
        reason=Reason.START_FAILED,
        message="it was asked to end before its agent heard of it",
    )


class Orders:
    """The orders of one supervisor."""

    def __init__(
        self, supervisor: "Supervisor", *, max_output_bytes: int | None, max_processes: int | None
    ) -> None:
        self._supervisor = supervisor
        #: No attempt may write more to stdout and stderr together (F053) ...
        self._max_output_bytes = max_output_bytes
        #: ... nor have more processes at once (F050).
        self._max_processes = max_processes

    def run(self, job: ComputeJob, attempt: int) -> None:
        """Tell the agent to run this attempt, if that is still what is wanted; safe to repeat."""
        record, op = job.record, job.op
        agent = self._supervisor.agents.get(record.agent or "")
        if op is None or agent is None or agent.line is None or record.attempt != attempt:
            return
        if record.stopping:
            if not op.told:
                # nobody else can end it: an agent has nothing to say of what it never heard of
                self._supervisor.tell(job, unheard(job, self._supervisor.now()))
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

    def cancel(self, job: ComputeJob, attempt: int, grace_secs: float) -> None:
        """Tell the agent to end this attempt; safe to repeat, and repeated when the agent comes back."""
        record = job.record
        agent = self._supervisor.agents.get(record.agent or "")
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

    def signal(self, job: ComputeJob, *, suspend: bool) -> bool:
        """Tell the agent to stop or continue the processes of the attempt; False when it is not there."""
        record = job.record
        agent = self._supervisor.agents.get(record.agent or "")
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
        job = self._supervisor.jobs.get(op.jid)
        agent = self._supervisor.agents.get(op.place.key)
        if job is not None and agent is not None and agent.line is not None:
            record = job.record
            agent.line.say(protocol.Grant(jid=record.jid, serial=record.serial, attempt=record.attempt))


def _limit(asked: int | None, most: int | None) -> int | None:
    """What a job gets that asks for this where the installation gives at most that; None = no limit."""
    return min((limit for limit in (asked, most) if limit is not None), default=None)
