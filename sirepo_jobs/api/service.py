"""The service itself: agents, counts, health."""

from typing import Any

from sirepo_jobs.agent_claim import Agent
from sirepo_jobs.compute_job import ComputeJob
from sirepo_jobs.errors import Conflict, NotFound
from sirepo_jobs.events import DeathProven
from sirepo_jobs.supervisor import Supervisor

from . import metrics
from .handler import Handler


def agent_view(agent: Agent) -> dict[str, Any]:
    """An agent as the API answers it."""
    return {
        "agent": agent.name,
        "user": agent.environment.user,
        "driver": agent.environment.driver,
        "state": agent.state,
        "leaving": agent.leaving,
        "ops": len(agent.ops),
        "host": agent.host,
        "version": agent.version,
        "trouble": agent.trouble,
        "counters": agent.counters,
        "foreign": sorted(agent.foreign),
    }


def declare_dead(supervisor: Supervisor, job: ComputeJob, by: str) -> None:
    """The present attempt is no more: somebody says so who answers for it."""
    record = job.record
    supervisor.tell(
        job,
        DeathProven(
            at=supervisor.now(),
            serial=record.serial,
            attempt=record.attempt,
            proof="operator",
            message=f"{by} declared that it is no more; its agent was out of reach",
        ),
    )


class Agents(Handler):
    """`/agents`."""

    async def get(self) -> None:
        """The agents that the caller may know of, and whether these are all."""
        agents = sorted(self.supervisor.agents, key=lambda agent: agent.name)
        known = [agent_view(agent) for agent in agents if self.may_know(agent)]
        self.answer({"agents": known, "everybodys": self.is_admin})


class AgentVerb(Handler):
    """`/agents/{agent}/drain`, `stop`."""

    async def post(self, name: str, verb: str) -> None:
        """`drain`: no more work, an end after what it has. `stop`: an end now, answered when it is gone."""
        agent = self.supervisor.agents.get(name)
        if agent is None or not self.may_know(agent):
            # a foreign one is as missing as a missing one (S4)
            raise NotFound(
                f"there is no agent {name[:64]!r}; the list of agents has their names", code="agent_not_found"
            )
        if verb == "drain":
            self.changing()
            self.supervisor.agents.drain(agent)
            await self.written()
        else:
            await self.supervisor.agents.stop(agent)
        self.answer(agent_view(agent))


class DeclareGone(Handler):
    """`/agents/{agent}/declare-gone`: an operator's word in the place of a proof (C9)."""

    async def post(self, name: str) -> None:
        """End the attempts of an agent that is out of reach. Asking again changes nothing."""
        agent = self.supervisor.agents.get(name)
        if not self.is_admin or agent is None:
            raise NotFound(f"there is no agent {name[:64]!r}", code="agent_not_found")
        if agent.line is not None:
            raise Conflict(
                f"agent {name} is connected from {agent.host}: it is not gone; cancel its jobs, or stop it"
            )
        self.changing()
        jobs = [job for job in self.supervisor.jobs.active() if job.record.agent == name]
        for job in jobs:
            declare_dead(self.supervisor, job, self.user)
        self.supervisor.agents.declare_gone(agent)
        await self.written()
        self.answer(agent_view(agent))


class StopAgents(Handler):
    """`/agents/stop`: end every agent and its jobs (`down --stop-agents`)."""

    async def post(self) -> None:
        """Answered when they are gone; `left` are those that could not be ended, and why."""
        if not self.is_admin:
            raise NotFound("there is no such page")
        said = await self.supervisor.agents.stop_all()
        left = {name: why for name, why in said.items() if why}
        self.answer({"stopped": [name for name in said if name not in left], "left": left})


class Stats(Handler):
    """`/stats`."""

    async def get(self) -> None:
        """Counts by state, and of what is in memory."""
        counts = await self.supervisor.store.count_by_state(None if self.is_admin else self.user)
        self.answer({"jobs": counts, **(self.supervisor.status() if self.is_admin else {})})


class Metrics(Handler):
    """`/metrics`: numbers for Prometheus."""

    async def get(self) -> None:
        """As they are now; nothing in them names a user or a job."""
        if not self.is_admin:
            raise NotFound("there is no such page")
        counts = await self.supervisor.store.count_by_state(None)
        self.set_header("Content-Type", metrics.CONTENT_TYPE)
        self.finish(metrics.text_of(self.supervisor, counts))


class Health(Handler):
    """`/healthz` and `/readyz`: no data, so no credentials."""

    def prepare(self) -> None:
        """Anybody may ask."""

    def get(self) -> None:
        """Ready when the store takes writes."""
        degraded = self.supervisor.store.degraded
        self.answer(
            {"status": "degraded" if degraded else "ok"},
            503 if degraded and self.request.path == "/readyz" else 200,
        )
