"""`bin/slurm-chaos ambiguous|kills|blackouts|cost|over-ssh [JOBS]`: test_slurm_chaos.py at length."""

import asyncio
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from benchmarks.environment import NotHere, python_of
from benchmarks.roster import Contestant
from sirepo_jobs.cluster import SlurmPolicy
from tests.acceptance.cluster_site import site_of
from tests.slurm_chaos import ambiguous, blackouts, over_ssh, thousand
from tests.slurm_stage import Cluster, cluster_in
from tests.sshd_stage import sshd_at

#: Of each profile, unless said otherwise.
JOBS = {"ambiguous": 300, "kills": 60, "blackouts": 200, "cost": 1000, "over-ssh": 1000}
#: What each cluster is; submitit asks the accounting, and knows nothing else.
CLUSTERS = {
    "ambiguous": ("nodes=4",),
    "kills": ("nodes=4",),
    "blackouts": ("nodes=4", "MinJobAge=2"),
    "cost": ("nodes=2", "accounting=yes"),
    "over-ssh": ("nodes=2",),
}
SUBMITIT = Contestant(name="submitit", kind="peer", script="", packages=("submitit==1.5.4",))


async def _run(profile: str, jobs: int, directory: Path) -> bool:
    with cluster_in(directory / "slurm", *CLUSTERS[profile]) as cluster:
        if profile in ("ambiguous", "kills"):
            kills = 10 if profile == "kills" else 0
            told: Any = await ambiguous.run(directory, cluster, jobs, 900.0, kills=kills)
            _print(told)
            return bool(told.executions == {1: jobs} and not told.wrong_ids and not told.wrong_ends)
        if profile == "blackouts":
            told = await blackouts.run(directory, cluster, jobs, 10, 8.0, 900.0, seed=6)
            _print(told)
            return bool(told.true_ends == jobs and not told.false_ends and not told.doubled)
        print(f"{thousand.cores()} cores, load {os.getloadavg()[0]:.1f}, {jobs} jobs, 2 nodes of 8 cpus")
        if profile == "over-ssh":
            return await asyncio.to_thread(_over_ssh, directory, cluster, jobs)
        return await _cost(directory, cluster, jobs)


def _over_ssh(directory: Path, cluster: Cluster, jobs: int) -> bool:
    with sshd_at(str(directory / "sshd")) as sshd:
        policy = sshd.policy("dev", user="key", root="~/.sirepo_jobs")
        # all else is what a policy file says that says nothing
        slurm = SlurmPolicy(env={"SLURM_CONF": cluster.conf}, max_jobs=jobs)
        with site_of(directory, replace(policy, processes=False, slurm=slurm)) as system:
            told = over_ssh.run(system, sshd, cluster, jobs, 900.0)
    _print(told)
    return told.logins == 1 and told.executions == {1: jobs} and told.completed == jobs


async def _cost(directory: Path, cluster: Cluster, jobs: int) -> bool:
    packed = Path(tempfile.mkdtemp(dir=directory))
    costs = [
        await thousand.ours(directory, cluster, jobs, 900.0, query_secs=10.0),
        thousand.loop(cluster, jobs, directory),
        thousand.polling(cluster, jobs, directory, 10.0),
        await thousand.ours(packed, cluster, jobs, 900.0, query_secs=10.0, pack=50),
    ]
    try:
        python = python_of(SUBMITIT)
    except NotHere as exc:
        print(f"without submitit: {exc}")
    else:
        for way in ("submit", "map_array"):
            costs.append(thousand.submitit(cluster, jobs, directory, python, way))
    for cost in costs:
        _print(cost)
    ours, loop, polling = costs[:3]
    return ours.submit_secs < loop.submit_secs and ours.rpcs < loop.rpcs < polling.rpcs


def _print(told: Any) -> None:
    print("  ".join(f"{name}={value}" for name, value in told._asdict().items()), flush=True)


def main(argv: list[str]) -> int:
    """0 when everything was as it must be."""
    if not argv or argv[0] not in JOBS or len(argv) > 2:
        print(__doc__, file=sys.stderr)
        return 2
    jobs = int(argv[1]) if len(argv) == 2 else JOBS[argv[0]]
    with tempfile.TemporaryDirectory(prefix="slurm-chaos.", dir="/tmp") as directory:
        good = asyncio.run(_run(argv[0], jobs, Path(directory)))
    print("as it must be" if good else "NOT as it must be")
    return 0 if good else 1


sys.exit(main(sys.argv[1:]))
