"""Replies of sbatch that are lost after it accepted (F118): one execution each, and the right id."""

import asyncio
import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from sirepo_jobs.agents import slurm_files
from sirepo_jobs.lifecycle import MAX_STARTS
from tests.agent_stage import Scene, gone
from tests.slurm_chaos.wrappers import LOST, Wrappers
from tests.slurm_stage import Cluster, counters, job, slurm_scene


class Ambiguous(NamedTuple):
    """What came of it."""

    jobs: int
    faults: dict[str, int]
    executions: dict[int, int]
    wrong_ids: int
    wrong_ends: int
    #: Slurm jobs beyond one for each of ours.
    copies: int
    secs: float
    counts: dict[str, int]


async def run(
    directory: Path, cluster: Cluster, jobs: int, secs: float, *, squeue: str = "", kills: int = 0
) -> Ambiguous:
    """So many jobs of one sbatch each, the answer of which is lost; brokers and launchers are killed."""
    wrappers = Wrappers(directory / "bin")
    wrappers.lose(*LOST)
    wrappers.squeue(squeue)
    ledger = directory / "ledger"
    ledger.touch()
    began = time.monotonic()
    async with patient(directory, cluster, secs, bin_dir=str(wrappers.directory), max_array=1) as it:
        for n in range(jobs):
            await it.stage.send([job(it, f"m{n}", _script(ledger, n))])
        for n in range(kills):
            await asyncio.sleep(1.0)
            await _kill(it, launcher=n % 2 == 1)
        wrong_ends = 0
        tries = [1] * jobs
        for n in range(jobs):
            while not (ended := await it.stage.ended(f"m{n}", tries[n])).began and tries[n] < MAX_STARTS:
                # as the supervisor does: the launcher was killed before it gave this to Slurm
                assert kills, ended
                tries[n] += 1
                await it.stage.send([job(it, f"m{n}", _script(ledger, n), attempt=tries[n])])
            wrong_ends += ended.exit_code != n % 3 or not ended.began
        spent = time.monotonic() - began
        wrong_ids = sum(not _has_its_id(it, f"m{n}", tries[n]) for n in range(jobs))
        counts = counters(it)
    lines = Counter(ledger.read_text().split())
    listed = Counter(name for _, _, name in cluster.jobs() if name.startswith("sj-m"))
    return Ambiguous(
        jobs=jobs,
        faults=dict(Counter(wrappers.met().values())),
        executions=dict(Counter(lines[str(n)] for n in range(jobs))),
        wrong_ids=wrong_ids,
        wrong_ends=wrong_ends,
        copies=sum(listed.values()) - len(listed),
        secs=round(spent, 1),
        counts=counts,
    )


async def _kill(it: Scene, *, launcher: bool) -> None:
    """-9 to the broker, or to the launcher, which is started again as its driver would."""
    if not launcher:
        for pid in it.helpers("sj-broker"):
            os.kill(pid, signal.SIGKILL)
        return
    hellos, pid = len(it.stage.hellos), it.launcher
    os.kill(pid, signal.SIGKILL)
    await gone(pid)
    await it.launch()
    await it.stage.connected(hellos + 1)


def _script(ledger: Path, n: int) -> str:
    return f"echo {n} >>{ledger}; echo $SLURM_JOB_ID; exit {n % 3}"


def _has_its_id(it: Scene, jid: str, attempt: int) -> bool:
    """Whether what we say is the Slurm job that ran it."""
    place = it.run_dir(jid, attempt)
    owner = slurm_files.owner_of(str(place))
    told = msgspec.json.decode((place / "slurm.json").read_bytes(), type=slurm_files.SlurmJob)
    return owner is not None and told.slurm_id == owner.slurm_id == it.stdout(jid, attempt).decode().strip()


@contextlib.asynccontextmanager
async def patient(directory: Path, cluster: Cluster, secs: float, **changes: object) -> AsyncIterator[Scene]:
    """An agent whose test waits so long for anything."""
    from tests import agent_stage

    before, agent_stage.WAIT_SECS = agent_stage.WAIT_SECS, secs
    try:
        async with slurm_scene(directory, cluster, **{"command_secs": 3.0, **changes}) as it:
            yield it
    finally:
        agent_stage.WAIT_SECS = before
