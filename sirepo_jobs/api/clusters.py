"""`/clusters`: which there are, logging in there, and whether all is well (SIR-43, F134).

Credentials pass through here from the request's body to the driver, and are kept by neither.
"""

from collections.abc import Iterable
from typing import Any

from msgspec.structs import replace

from sirepo_jobs.errors import NotFound
from sirepo_jobs.login import ClusterView, LoginDriver, has_logins, parse_answers, parse_login
from sirepo_jobs.supervisor import Supervisor

from .handler import Handler


def _drivers(supervisor: Supervisor) -> Iterable[LoginDriver]:
    return (driver for driver in supervisor.agents.drivers.values() if has_logins(driver))


class _ClusterHandler(Handler):
    def driver(self, cluster: str) -> LoginDriver:
        """The driver that knows this cluster. Raises `NotFound`."""
        for driver in _drivers(self.supervisor):
            if any(policy.name == cluster for policy in driver.policies()):
                return driver
        raise NotFound(f"there is no cluster {cluster[:64]!r}", code="no_cluster")

    def cluster_view(self, driver: LoginDriver, cluster: str) -> ClusterView:
        """The cluster as the caller sees it, with what its agent counted there."""
        view = driver.view(cluster, self.user)
        counters = dict(view.counters)
        for agent in self.supervisor.agents:
            environment = agent.environment
            if environment.cluster == cluster and environment.user == self.user:
                counters |= agent.counters
        return replace(view, counters=counters)


class Clusters(_ClusterHandler):
    """`/clusters`."""

    def get(self) -> None:
        """Every cluster, by name."""
        found: list[Any] = [
            self.cluster_view(driver, policy.name)
            for driver in _drivers(self.supervisor)
            for policy in driver.policies()
        ]
        self.answer({"clusters": found})


class Cluster(_ClusterHandler):
    """`/clusters/{cluster}`."""

    def get(self, cluster: str) -> None:
        """How it stands for the caller."""
        self.answer(self.cluster_view(self.driver(cluster), cluster))


class Login(_ClusterHandler):
    """`/clusters/{cluster}/login`."""

    async def post(self, cluster: str) -> None:
        """Begin to log in; answered when the cluster asks something, or it is over."""
        order = parse_login(self.request.body)
        self.answer(await self.driver(cluster).log_in(cluster, self.user, order))

    async def delete(self, cluster: str) -> None:
        """Log out."""
        driver = self.driver(cluster)
        await driver.log_out(cluster, self.user)
        self.answer(self.cluster_view(driver, cluster))


class LoginAnswer(_ClusterHandler):
    """`/clusters/{cluster}/login/{login}`."""

    async def post(self, cluster: str, login: str) -> None:
        """Answer what is asked; no answers: how does it stand."""
        said = parse_answers(self.request.body)
        self.answer(await self.driver(cluster).answer(cluster, self.user, login, said.answers))


class ClusterCheck(_ClusterHandler):
    """`/clusters/{cluster}/check`."""

    async def post(self, cluster: str) -> None:
        """Look at everything that a job there will need."""
        self.answer({"cluster": cluster, "checks": await self.driver(cluster).check(cluster, self.user)})
