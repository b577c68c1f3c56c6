"""`bin/slurm-chaos ambiguous|kills|blackouts|cost [JOBS]`: test_slurm_chaos.py at length."""

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.slurm_chaos import ambiguous, blackouts, thousand
from tests.slurm_stage import cluster_in

#: Of each profile, unless said otherwise.
JOBS = {"ambiguous": 300, "kills": 60, "blackouts": 200, "cost": 1000}


async def _run(profile: str, jobs: int, directory: Path) -> bool:
    options = {"blackouts": ["nodes=4", "MinJobAge=2"], "cost": ["nodes=2"]}.get(profile, ["nodes=4"])
    with cluster_in(directory / "slurm", *options) as cluster:
        if profile in ("ambiguous", "kills"):
            kills = 10 if profile == "kills" else 0
            told: Any = await ambiguous.run(directory, cluster, jobs, 900.0, kills=kills)
            _print(told)
            return bool(told.executions == {1: jobs} and not told.wrong_ids and not told.wrong_ends)
        if profile == "blackouts":
            told = await blackouts.run(directory, cluster, jobs, 10, 8.0, 900.0, seed=6)
            _print(told)
            return bool(told.true_ends == jobs and not told.false_ends and not told.doubled)
        print(f"{thousand.cores()} cores, {jobs} jobs of `exit 0`, 2 nodes of 8 cpus")
        costs = [
            await thousand.ours(directory, cluster, jobs, 900.0, query_secs=10.0),
            thousand.loop(cluster, jobs, directory),
            thousand.polling(cluster, jobs, directory, 10.0),
        ]
        for cost in costs:
            _print(cost)
        return costs[0].submit_secs < costs[1].submit_secs and costs[0].rpcs < costs[1].rpcs < costs[2].rpcs


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
