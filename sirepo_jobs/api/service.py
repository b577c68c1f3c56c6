"""The service itself: agents, counts, health."""

from tornado.web import RequestHandler

from sirepo_jobs.errors import NotFound

from .handler import Handler, House, encode


class Agents(Handler):
    """`/agents`."""

    async def get(self) -> None:
        """The agents that the caller may know of."""
        self.answer(
            {
                "agents": [
                    {
                        "agent": agent.name,
                        "user": agent.environment.user,
                        "driver": agent.environment.driver,
                        "state": agent.state,
                        "ops": len(agent.ops),
                        "host": agent.host,
                        "version": agent.version,
                        "trouble": agent.trouble,
                    }
                    for agent in self.supervisor.agents
                    if self.is_admin or agent.environment.user == self.user
                ]
            }
        )


class StopAgents(Handler):
    """`/agents/stop`: end every agent and its jobs (`down --stop-agents`)."""

    async def post(self) -> None:
        """Answered when they are gone."""
        if not self.is_admin:
            raise NotFound("there is no such page")
        self.answer({"stopped": await self.supervisor.agents.stop_all()})


class Stats(Handler):
    """`/stats`."""

    async def get(self) -> None:
        """Counts by state, and of what is in memory."""
        counts = await self.supervisor.store.count_by_state(None if self.is_admin else self.user)
        self.answer({"jobs": counts, **(self.supervisor.status() if self.is_admin else {})})


class Health(RequestHandler):
    """`/healthz` and `/readyz`: no data, so no credentials."""

    def initialize(self, house: House) -> None:
        """Called by Tornado with the arguments of the route."""
        self.house = house

    def get(self) -> None:
        """Ready when the store takes writes."""
        degraded = self.house.supervisor.store.degraded
        self.set_status(503 if degraded and self.request.path == "/readyz" else 200)
        self.set_header("Content-Type", "application/json")
        self.finish(encode({"status": "degraded" if degraded else "ok"}))
