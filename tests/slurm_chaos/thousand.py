"""What many jobs cost a site (F131), beside a plain loop of sbatch, one query for each job, and submitit."""

import os
import re
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

from tests.slurm_chaos.ambiguous import patient
from tests.slurm_stage import Cluster, counters, job

_SCRIPT = "#!/bin/sh\nexit 0\n"


class Cost(NamedTuple):
    """Of one way of running so many jobs."""

    way: str
    jobs: int
    submit_secs: float
    secs: float
    submits_per_sec: float
    #: Requests that the controller counted, by what they are.
    rpcs: int
    submit_rpcs: int
    query_rpcs: int
    queries_per_minute: float


async def ours(
    directory: Path, cluster: Cluster, jobs: int, secs: float, query_secs: float, pack: int = 1
) -> Cost:
    """By an agent, as a site would configure it; `pack` jobs share an allocation."""
    reset(cluster)
    spec = {"slurm": {"pack": pack}}
    began = time.monotonic()
    async with patient(
        directory, cluster, secs, query_secs=query_secs, command_secs=60.0, max_jobs=jobs
    ) as it:
        await it.stage.send([job(it, f"k{n}", "exit 0", spec) for n in range(jobs)])
        await it.stage.until(lambda: counters(it).get("waiting") == 0 and counters(it).get("submits"), "sent")
        submitted = time.monotonic() - began
        for n in range(jobs):
            assert (await it.stage.ended(f"k{n}")).exit_code == 0
        spent = time.monotonic() - began
        queries = sum(counters(it).get(kind, 0) for kind in ("queries", "asks", "accounts"))
    way = "sirepo_jobs" if pack == 1 else f"sirepo_jobs pack={pack}"
    return _cost(way, cluster, jobs, submitted, spent, queries)


def loop(cluster: Cluster, jobs: int, directory: Path) -> Cost:
    """sbatch once for each, and one `squeue -t all` now and then: what a careful script does."""
    reset(cluster)
    began = time.monotonic()
    for _ in range(jobs):
        _sbatch(cluster)
    submitted = time.monotonic() - began
    queries = 0
    while _left(cluster, "squeue", "-h", "-t", "PD,R,CG,CF", "-o", "%i"):
        queries += 1
        time.sleep(2.0)
    return _cost("sbatch loop", cluster, jobs, submitted, time.monotonic() - began, queries + 1)


def polling(cluster: Cluster, jobs: int, directory: Path, query_secs: float) -> Cost:
    """sbatch once for each, and then one query for each job that has not ended, again and again."""
    reset(cluster)
    began = time.monotonic()
    left = [_sbatch(cluster) for _ in range(jobs)]
    submitted = time.monotonic() - began
    queries = 0
    while left:
        still = []
        for slurm_id in left:
            queries += 1
            if _left(cluster, "squeue", "-h", "-t", "PD,R,CG,CF", "-o", "%i", "-j", slurm_id):
                still.append(slurm_id)
        left = still
        if left:
            time.sleep(query_secs)
    return _cost("one query per job", cluster, jobs, submitted, time.monotonic() - began, queries)


def submitit(cluster: Cluster, jobs: int, directory: Path, python: str, way: str) -> Cost:
    """submitit of PyPI, of whose environment `python` is; it asks sacct about all of its jobs at once."""
    reset(cluster)
    folder = directory / f"submitit-{way}"
    folder.mkdir()
    said = subprocess.run(
        [python, Path(__file__).parent / "peer.py", way, str(jobs), folder],
        env=cluster.env, check=True, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    submitted, queries, spent = float(said[0]), int(said[1]), float(said[2])
    return _cost(f"submitit {way}", cluster, jobs, submitted, spent, queries)


def _sbatch(cluster: Cluster) -> str:
    return subprocess.run(
        ["sbatch", "--parsable", "--output=/dev/null"],
        input=_SCRIPT, env=cluster.env, check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip


def _left(cluster: Cluster, *argv: str) -> list[str]:
    return cluster.run(*argv, check=False).split()


def reset(cluster: Cluster) -> None:
    """Count from here."""
    cluster.run("sdiag", "-r")


def rpcs(cluster: Cluster) -> dict[str, int]:
    """What the controller was asked by commands of this user, by name."""
    text = cluster.run("sdiag").partition("Remote Procedure Call statistics by message type")[2]
    text = text.partition("Remote Procedure Call statistics by user")[0]
    found = {name: int(count) for name, count in re.findall(r"(\w+)\s*\(\s*\d+\) count:(\d+)", text)}
    # what nodes and steps say among themselves is the same whoever submits
    return {
        name: count
        for name, count in found.items()
        if name.startswith(("REQUEST_SUBMIT", "REQUEST_JOB", "REQUEST_KILL"))
    }


def _cost(way: str, cluster: Cluster, jobs: int, submitted: float, spent: float, queries: int) -> Cost:
    asked = rpcs(cluster)
    submits = sum(count for name, count in asked.items() if "SUBMIT" in name)
    return Cost(
        way=way,
        jobs=jobs,
        submit_secs=round(submitted, 2),
        secs=round(spent, 1),
        submits_per_sec=round(jobs / submitted, 1),
        rpcs=sum(asked.values()),
        submit_rpcs=submits,
        query_rpcs=sum(count for name, count in asked.items() if "INFO" in name),
        queries_per_minute=round(queries / spent * 60, 1),
    )


def cores() -> int:
    """Of this machine, for whoever reads the figures."""
    return len(os.sched_getaffinity(0))
