"""Numbers of the supervisor in the words of Prometheus, read anew at each scrape.

No label ever holds a user or a job: what grows with them would fill the memory of whoever collects.
"""

from collections import Counter
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sirepo_jobs import __version__
from sirepo_jobs.events import AgentState
from sirepo_jobs.login import has_logins
from sirepo_jobs.supervisor import Supervisor

CONTENT_TYPE = CONTENT_TYPE_LATEST
_PREFIX = "sirepo_jobs"
_RESOURCES = ("cpus", "memory", "gpus")


def text_of(supervisor: Supervisor, jobs: Mapping[str, int]) -> bytes:
    """The page for a scrape; `jobs` counts them by state."""
    registry = CollectorRegistry()
    registry.register(_Snapshot(supervisor, jobs))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


class _Snapshot(Collector):
    def __init__(self, supervisor: Supervisor, jobs: Mapping[str, int]) -> None:
        self._supervisor = supervisor
        self._jobs = jobs

    def collect(self) -> Iterator[Metric]:
        it = self._supervisor
        yield _gauge(
            "jobs", "Jobs in the store by state", ["state"], {(k,): v for k, v in self._jobs.items()}
        )
        agents = Counter((agent.environment.driver, agent.state.value) for agent in it.agents)
        kinds: dict[tuple[str, ...], float] = {
            (driver, state.value): 0 for driver in it.agents.drivers for state in AgentState
        }
        yield _gauge("agents", "Agents by driver and state", ["driver", "state"], kinds | agents)
        yield _gauge("slots", "Capacity of a driver", ["driver", "resource", "kind"], dict(self._slots()))
        yield _gauge(
            "cluster_counts",
            "Logins, queries, submits and so on at a Slurm cluster, as its agents and logins count them",
            ["cluster", "what"],
            dict(self._clusters()),
        )
        yield _gauge("queue_in_memory", "Entries of the scheduler", [], {(): len(it.scheduler)})
        yield _gauge("jobs_in_memory", "Jobs that somebody needs now", [], {(): len(it.jobs)})
        yield _gauge("store_waiting_units", "Changes not yet written", [], {(): it.store.waiting})
        degraded = 1 if it.store.degraded else 0
        yield _gauge("store_degraded", "1 while nothing can be written", [], {(): degraded})
        damaged = len(it.jobs.damaged)
        yield _gauge("store_damaged_jobs", "jobs that were asked for and cannot be read", [], {(): damaged})
        yield _gauge("epoch", "Rises with every start of a supervisor", [], {(): it.store.epoch})
        yield _gauge("info", "The version that runs", ["version"], {(__version__,): 1})
        yield CounterMetricFamily(
            f"{_PREFIX}_events", "Events of jobs since the store was made", it.events.last
        )

    def _clusters(self) -> Iterator[tuple[tuple[str, ...], float]]:
        """Sums over the users of each cluster."""
        found: dict[str, Counter[str]] = {}
        for driver in self._supervisor.agents.drivers.values():
            if has_logins(driver):
                found |= {policy.name: driver.counters(policy.name) for policy in driver.policies()}
        for agent in self._supervisor.agents:
            if agent.environment.cluster in found:
                found[agent.environment.cluster].update(agent.counters)
        for cluster, counts in found.items():
            for what, count in counts.items():
                yield (cluster, what), count

    def _slots(self) -> Iterator[tuple[tuple[str, ...], float]]:
        for name, pool in self._supervisor.agents.pools.items():
            for resource in _RESOURCES:
                size = getattr(pool.size, resource)
                if size is not None:
                    yield (name, resource, "size"), size
                    yield (name, resource, "free"), getattr(pool.free, resource)


def _gauge(
    name: str, text: str, labels: list[str], values: Mapping[tuple[str, ...], float]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"{_PREFIX}_{name}", text, labels=labels)
    for label, value in values.items():
        family.add_metric(label, value)
    return family
