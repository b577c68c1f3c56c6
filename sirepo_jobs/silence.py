"""Agents that are connected and say nothing of an attempt that they were given, or told to end.

A launcher that hangs, a spawner in a file system that does not answer, a process that no KILL ends: the
network side beats on, and the job would be `starting` or `canceling` for ever. So it is asked once more, by
a connection that begins anew: whoever calls says what it holds, and hears again what is wanted. One who is
silent after that, too, has lost the attempt as far as anybody can see. That is no end (C4): a late word of
it counts, and an operator may declare it lost.

Not for batch schedulers: there an attempt may wait for weeks before it starts.
"""

import asyncio
from typing import NamedTuple

import structlog

from .agent_claim import Agent
from .agent_talk import AgentTalk
from .compute_job import ComputeJob
from .events import QueueMoved
from .job import State
from .reasons import Reason
from .resources import format_secs
from .supervisor import Supervisor

_log = structlog.get_logger(__name__)

_Key = tuple[str, int, bool]


class _Watched(NamedTuple):
    #: By the loop's clock; a time without connection does not count.
    since: float
    asked: bool = False


class Silence:
    """Looks for attempts of which nothing is heard."""

    def __init__(self, supervisor: Supervisor, talk: AgentTalk, *, patience_secs: float) -> None:
        self._supervisor = supervisor
        self._talk = talk
        self._patience_secs = patience_secs
        self._watched: dict[_Key, _Watched] = {}

    async def watch(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(self._patience_secs / 8)
            self.look(self._supervisor.loop.time())

    def look(self, now: float) -> None:
        """Ask whoever has been silent for the time of patience, and give up whoever was asked before."""
        before, self._watched = self._watched, {}
        asked: dict[Agent, ComputeJob] = {}
        for job in self._supervisor.jobs.active():
            record = job.record
            agent = self._supervisor.agents.get(record.agent or "")
            key = (record.jid, record.attempt, record.stopping is not None)
            out_of_reach = record.state is State.LOST and key in before
            if agent is None or not (_is_owed(job) or out_of_reach):
                continue
            watched = before.get(key) or _Watched(now)
            if agent.line is None or out_of_reach:
                watched = watched._replace(since=now)
            elif now - watched.since >= self._patience(job):
                if watched.asked:
                    self._give_up(agent, job, now)
                    continue
                asked[agent] = job
                watched = _Watched(now, asked=True)
                waited = self._waited(job)
                self._say(job, f"agent {agent.name} has said nothing of it for {waited}; it is asked again")
            self._watched[key] = watched
        for agent, job in asked.items():
            if agent.line is not None:
                agent.line.hang_up(
                    4412, f"not a word of {job.jid}/{job.record.attempt}: call again, and tell"
                )

    def _patience(self, job: ComputeJob) -> float:
        """Who was told to end has its grace besides."""
        grace_secs = job.spec.limits.grace if job.record.state is State.CANCELING else 0.0
        return self._patience_secs + grace_secs

    def _waited(self, job: ComputeJob) -> str:
        return format_secs(self._patience(job))

    def _say(self, job: ComputeJob, text: str) -> None:
        record = job.record
        self._supervisor.tell(
            job,
            QueueMoved(
                at=self._supervisor.now(),
                serial=record.serial,
                attempt=record.attempt,
                reason=Reason.AGENT_UNREACHABLE,
                message=text,
            ),
        )

    def _give_up(self, agent: Agent, job: ComputeJob, now: float) -> None:
        what = "was told to end it" if job.record.state is State.CANCELING else "was given it"
        why = (
            f"agent {agent.name} {what} and has said nothing of it, also when it was asked again after"
            f" {self._waited(job)}; the job may well be running"
        )
        _log.warning("agent is silent", agent=agent.name, jid=job.jid, attempt=job.record.attempt)
        self._talk.lost(job, why)
        self._talk.failed(agent, job, "not a word of it", now)


def _is_owed(job: ComputeJob) -> bool:
    """Whether its agent, if it is well, would have said something by and by."""
    op = job.op
    if op is None or not op.told or op.standby or job.spec.cluster is not None:
        return False
    return job.record.state in (State.STARTING, State.CANCELING)
