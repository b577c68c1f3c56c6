"""Ends of leases: when nothing proves what became of an attempt, and it cannot be alive any more (C9).

An attempt with a lease is ended on its agent's side when the agent has had no word from the supervisor for
so long. The agent counts from when it *said* the last heartbeat that was confirmed, the supervisor from
when it *confirmed* it, which is later; both by the boot clock, which no suspension stops and nobody can
set. So the supervisor concludes after the agent has acted: by the grace of the job and a margin for clocks
that do not run alike.

What this cannot see: a process that no KILL ends (a disk that hangs), and the death by force of every
process of an agent but its jobs.
"""

import asyncio

import structlog

from .agent_claim import boot_secs
from .agent_talk import AgentTalk
from .compute_job import ComputeJob
from .job import State
from .reasons import Reason
from .resources import format_secs
from .supervisor import Supervisor

_log = structlog.get_logger(__name__)

LOOK_SECS = 1.0
#: Beyond lease and grace: for the agent's own look, and for the kill to be felt ...
MARGIN_SECS = 5.0
#: ... and for clocks that run apart.
DRIFT = 0.02


def ends_after_secs(lease_secs: float, grace_secs: float) -> float:
    """How long after the last renewal the attempt is certainly no more."""
    return lease_secs * (1 + DRIFT) + grace_secs + MARGIN_SECS


class Leases:
    """Looks for lost jobs whose lease is over."""

    def __init__(self, supervisor: Supervisor, talk: AgentTalk) -> None:
        self._supervisor = supervisor
        self._talk = talk
        self._begun = boot_secs()
        #: Since when the agent that is connected knows nothing of them.
        self._unknown: dict[str, float] = {}

    async def watch(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(LOOK_SECS)
            self.look(boot_secs())

    def look(self, now: float) -> None:
        """Say so of each attempt whose lease is over at this instant of the boot clock."""
        unknown, self._unknown = self._unknown, {}
        for job in self._supervisor.jobs.active():
            record = job.record
            if record.state is not State.LOST or record.lease_secs is None:
                continue
            since = self._since(job, unknown, now)
            if since is None or now - since < ends_after_secs(record.lease_secs, job.spec.limits.grace):
                continue
            lease = format_secs(record.lease_secs)
            _log.warning("lease is over", jid=job.jid, attempt=record.attempt, lease_secs=record.lease_secs)
            self._talk.dead(
                job,
                "lease_expired",
                f"nothing was heard of it for longer than its lease of {lease}; it has been ended by now",
            )

    def _since(self, job: ComputeJob, unknown: dict[str, float], now: float) -> float | None:
        """When its lease was renewed for the last time, at the latest; None: it still is."""
        agent = self._supervisor.agents.get(job.record.agent or "")
        if agent is None:
            return self._begun
        if agent.line is None:
            return agent.renewed_at
        if job.record.reason is not Reason.AGENT_LOST:
            return None
        # another install answers in its name: what it hears renews nothing of this one
        since = self._unknown[job.jid] = unknown.get(job.jid, now)
        return since
