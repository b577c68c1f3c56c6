"""`/jobs/{jid}/explain`: the facts are gathered here, `sirepo_jobs.explain` makes words of them."""

import asyncio
import contextlib

import msgspec

from sirepo_jobs.agent_claim import Agent
from sirepo_jobs.compute_job import ComputeJob
from sirepo_jobs.errors import Error
from sirepo_jobs.explain import TAIL_BYTES, AgentFacts, Asked, Facts, QueueFacts, Tail, explain
from sirepo_jobs.job import State

from .handler import Handler

#: How long an agent may take to hand over the end of a job's stderr.
STDERR_SECS = 5.0
_ASKED = {"CancelAsked": "cancel", "HoldAsked": "hold", "PreemptAsked": "preempt"}
_FAILED = frozenset({State.ERROR, State.CANCELED})


class _By(msgspec.Struct):
    by: str = ""


class Explain(Handler):
    """`/jobs/{jid}/explain`."""

    async def get(self, jid: str) -> None:
        """Why the job waits, runs where it runs, failed or was ended."""
        async with self.job(jid) as job:
            before = await self.before(job)
            record = job.record if before is None else before.record
            asked = await self._asked(job)
            stderr = await self._stderr(job)
            self.answer(explain(record, job.spec, self._facts(job, asked, stderr)))

    def _facts(self, job: ComputeJob, asked: Asked | None, stderr: Tail | None) -> Facts:
        record = job.record
        pending = record.state is State.PENDING
        name = self.supervisor.dispatch.environment(job).key if pending else record.agent
        agent = self.supervisor.agents.get(name or "")
        return Facts(
            now=self.supervisor.now(),
            name=job.fixed.name,
            priority=job.fixed.priority,
            queue=self._queue(job, agent) if pending else None,
            agent=_agent_facts(agent) if agent is not None else None,
            asked=asked,
            stderr=stderr,
            standby=job.op is not None and job.op.standby,
            scheduling=job.scheduling,
        )

    def _queue(self, job: ComputeJob, agent: Agent | None) -> QueueFacts:
        record, op = job.record, job.op
        reason, text = self.supervisor.dispatch.why_pending(job)
        ahead, more = 0, False
        if op is None:
            key = (-job.fixed.priority, record.seq)
            ahead, more = self.supervisor.scheduler.ahead(record.user, key)
        if op is not None and op.waiting is not None:
            resource = str(op.waiting.resource[0])
        elif agent is None or not agent.is_online:
            resource = "agent"
        else:
            resource = "turn" if ahead or more else "cpus"
        pool = self.supervisor.agents.pools[job.spec.driver]
        return QueueFacts(
            reason=reason,
            text=text,
            resource=resource,
            ahead=ahead,
            more=more,
            need=job.spec.resources,
            free=pool.free,
            size=pool.size,
            op=op.op_id if op is not None else None,
        )

    async def _asked(self, job: ComputeJob) -> Asked | None:
        """Who asked last for what is being done, or was done, to the job."""
        record = job.record
        if record.state not in (State.HELD, State.CANCELED, State.CANCELING, State.LOST):
            return None
        rows = await self.supervisor.store.events(after=0, limit=10_000, jid=record.jid)
        for row in reversed(rows):
            if row.kind in _ASKED:
                return Asked(_ASKED[row.kind], msgspec.json.decode(row.data, type=_By).by, row.at)
        return None

    async def _stderr(self, job: ComputeJob) -> Tail | None:
        """The end of the last attempt's stderr, if the job failed and there is any."""
        record = job.record
        if record.state not in _FAILED or not record.run_dir or not record.agent or record.started_at is None:
            return None
        if record.stderr_bytes == 0:
            return Tail()
        agent = self.supervisor.agents.get(record.agent)
        if agent is None:
            agent = self.supervisor.agents.at(self.supervisor.dispatch.environment(job))
        start = max((record.stderr_bytes or 0) - TAIL_BYTES, 0)
        data = b""
        try:
            async with asyncio.timeout(STDERR_SECS):
                chunks = self.supervisor.readings.read(
                    job,
                    run_dir=record.run_dir,
                    attempt=record.attempt,
                    agent=agent,
                    stream="stderr",
                    offset=start,
                    limit=TAIL_BYTES,
                    follow=False,
                )
                async with contextlib.aclosing(chunks) as flow:
                    async for chunk in flow:
                        data += chunk
        except TimeoutError:
            return Tail(error=f"agent {agent.name} did not answer in {STDERR_SECS:g} s")
        except Error as exc:
            return Tail(error=str(exc))
        return Tail(data, cut=start > 0)


def _agent_facts(agent: Agent) -> AgentFacts:
    return AgentFacts(
        name=agent.name,
        driver=agent.environment.driver,
        state=agent.state,
        host=agent.host,
        since=agent.since,
        failures=agent.failures,
        trouble=agent.trouble,
        next_try_at=agent.next_try_at,
    )
