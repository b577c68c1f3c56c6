"""How long it takes to be back (Must show 4): `bin/recovery-times` prints it, with a thousand live jobs.

* supervisor kill -9: until it serves, and until its agent is online again with every job running;
* agent kill -9: until its jobs are known to be with it again;
* a connection that goes silent: until each end has noticed, in heartbeats.
"""

import argparse
import contextlib
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from sirepo_jobs.client import Client
from sirepo_jobs.errors import Unavailable
from tests.chaos.world import World, world

_WAIT_SECS = 120.0


def when(what: Callable[[], Any], since: float) -> float:
    """Seconds from `since` until `what` is so."""
    while not what():
        if time.monotonic() - since > _WAIT_SECS:
            raise TimeoutError("it did not happen")
        time.sleep(0.005)
    return time.monotonic() - since


class Measure:
    """One service with many jobs that live."""

    def __init__(self, it: World, jobs: int) -> None:
        self.it = it
        self.jobs = jobs
        self.client: Client = it.client(direct=True, patience_secs=0)
        patient = it.client(direct=True)
        patient.submit([{"command": ["sleep", "3600"]} for _ in range(jobs)])
        self.submitted_secs = when(self.all_run, time.monotonic())
        patient.close()

    def ask(self, path: str, **query: Any) -> Any:
        """The answer, None while there is none."""
        with contextlib.suppress(Unavailable):
            return self.client.transport.call("GET", path, query)
        return None

    def serves(self) -> bool:
        """Front end and supervisor answer."""
        return self.ask("/readyz") is not None

    def online(self) -> bool:
        """The agent is connected, and notes were compared."""
        answer = self.ask("/api/v1/agents")
        return bool(answer and answer["agents"] and answer["agents"][0]["state"] == "online")

    def all_run(self) -> bool:
        """Every job is running, as far as the supervisor knows."""
        if not self.online():
            return False
        answer = self.ask("/api/v1/jobs", state="running", limit=1000)
        return bool(answer and len(answer["jobs"]) == min(self.jobs, 1000))

    def supervisor(self) -> tuple[float, float]:
        """Seconds until it serves, and until everything is known again."""
        (pid,) = self.it.pids("supervisor")
        since = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        when(lambda: self.it.pids("supervisor") not in ([], [pid]), since)
        serving = when(self.serves, since)
        return serving, when(self.all_run, since)

    def agent(self) -> float:
        """Seconds until a new network side has told what it holds."""
        calls = self.it.agents_link.counts["connections"]
        (pid,) = self.it.pids("agent")
        since = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        when(lambda: self.it.agents_link.counts["connections"] > calls, since)
        return when(self.all_run, since)

    def silence(self) -> tuple[float, float]:
        """Seconds until the supervisor has noticed, and until the agent has."""
        link = self.it.agents_link
        calls = link.counts["connections"]
        self.it.proxy.do(lambda: setattr(link.faults, "silent", frozenset({"up", "down"})))
        since = time.monotonic()
        noticed = when(lambda: not self.online(), since)
        agent = when(lambda: link.counts["connections"] > calls, since)
        self.it.proxy.do(link.faults.clear)
        self.it.proxy.do(link.cut)
        when(self.all_run, time.monotonic())
        return noticed, agent


def figures(name: str, secs: list[float]) -> dict[str, Any]:
    """The middle and the worst."""
    return {name: {"p50": round(statistics.median(secs), 2), "most": round(max(secs), 2), "runs": len(secs)}}


def run(jobs: int, rounds: int, heartbeat_secs: float) -> dict[str, Any]:
    """All of it."""
    with world(cpus=jobs, heartbeat_secs=heartbeat_secs, armed=False) as it:
        measure = Measure(it, jobs)
        # Who lived for 5 s, or 10 s, is started again without a growing pause.
        supervisor = [measure.supervisor() for _ in range(rounds) if time.sleep(5.5) is None]
        agent = [measure.agent() for _ in range(rounds) if time.sleep(10.5) is None]
        silence = [measure.silence() for _ in range(rounds)]
    return {
        "live_jobs": jobs,
        "heartbeat_secs": heartbeat_secs,
        **figures("supervisor_serves_secs", [one for one, _ in supervisor]),
        **figures("supervisor_reconciled_secs", [two for _, two in supervisor]),
        **figures("agent_readopted_secs", agent),
        **figures("silence_noticed_by_supervisor_heartbeats", [one / heartbeat_secs for one, _ in silence]),
        **figures("silence_noticed_by_agent_heartbeats", [two / heartbeat_secs for _, two in silence]),
    }


def main() -> int:
    """As asked."""
    parser = argparse.ArgumentParser(description="Recovery times.")
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--heartbeat", type=float, default=2.0)
    asked = parser.parse_args()
    print(json.dumps(run(asked.jobs, asked.rounds, asked.heartbeat), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
