"""Many jobs through the whole system: HTTP, supervisor, one SSH login, an agent on the login node, Slurm
(issue 6, must show 4).
"""

import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from tests.acceptance.conftest import System
from tests.slurm_chaos.thousand import reset, rpcs
from tests.slurm_stage import Cluster
from tests.sshd_stage import Sshd

_PAGE = 200


class OverSsh(NamedTuple):
    """What it took."""

    jobs: int
    logins: int
    #: Until the service had answered for all of them, and until all were in Slurm.
    accepted_secs: float
    in_slurm_secs: float
    secs: float
    #: How often so many executions were counted: {1: jobs} is as it must be.
    executions: dict[int, int]
    completed: int
    #: Runs of sbatch, and of all that asks.
    submits: int
    queries: int
    queries_per_minute: float
    #: Requests that the controller counted.
    rpcs: int
    submit_rpcs: int
    query_rpcs: int


def run(system: System, sshd: Sshd, slurm: Cluster, jobs: int, secs: float) -> OverSsh:
    """So many jobs of one line each, as a user gives them to the service."""
    ledger = sshd.home("key") / "ledger"
    ledger.unlink(missing_ok=True)
    reset(slurm)
    before = sshd.logins()
    client = system.client()
    spec = {"driver": "sbatch", "cluster": "dev", "tags": {"profile": "over-ssh"}}
    began = time.monotonic()
    made = []
    for first in range(0, jobs, _PAGE):
        numbers = range(first, min(jobs, first + _PAGE))
        made += client.submit([{**spec, "command": ["/bin/sh", "-c", _script(ledger, n)]} for n in numbers])
    accepted = time.monotonic() - began
    in_slurm = 0.0
    while True:
        counts = client.clusters()[0]["counters"]
        if not in_slurm and counts.get("submits") and not counts.get("waiting"):
            in_slurm = time.monotonic() - began
        if not list(client.jobs(state="active", limit=1)):
            break
        assert time.monotonic() < began + secs, "not all jobs have ended"
        time.sleep(0.5)
    spent = time.monotonic() - began
    counts = client.clusters()[0]["counters"]
    asked = rpcs(slurm)
    queries = sum(counts.get(kind, 0) for kind in ("queries", "asks", "accounts"))
    lines = Counter(ledger.read_text().split())
    return OverSsh(
        jobs=jobs,
        logins=sshd.logins() - before,
        accepted_secs=round(accepted, 2),
        in_slurm_secs=round(in_slurm, 2),
        secs=round(spent, 1),
        executions=dict(Counter(lines[str(n)] for n in range(jobs))),
        completed=len({job.jid for job in made} & {job.jid for job in client.jobs(state="completed")}),
        submits=counts.get("submits", 0),
        queries=queries,
        queries_per_minute=round(queries / spent * 60, 1),
        rpcs=sum(asked.values()),
        submit_rpcs=sum(count for name, count in asked.items() if "SUBMIT" in name),
        query_rpcs=sum(count for name, count in asked.items() if "INFO" in name),
    )


def _script(ledger: Path, n: int) -> str:
    return f"echo {n} >>{ledger}"
