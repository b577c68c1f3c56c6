"""The controller is down, squeue fails, lies or says nothing, records are purged, and there is no accounting
(F117, F119, F120, must show 3): no job is told to have ended as it did not.
"""

import asyncio
import os
import random
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

from sirepo_jobs.lifecycle import MAX_STARTS
from sirepo_jobs.protocol import Exited
from tests.slurm_chaos.ambiguous import patient
from tests.slurm_chaos.wrappers import SQUEUE, Wrappers
from tests.slurm_stage import Cluster, counters, job


class Blackouts(NamedTuple):
    """What came of it."""

    jobs: int
    blackouts: list[str]
    false_ends: int
    true_ends: int
    doubled: int
    #: Attempts that were proved never to begin.
    tried_again: int
    secs: float
    counts: dict[str, int]
    #: Ends that are not as they were to be: jid, what was to be, what was told.
    wrong: list[str]


async def run(
    directory: Path, cluster: Cluster, jobs: int, count: int, blackout_secs: float, secs: float, seed: int
) -> Blackouts:
    """So many jobs, and so many blackouts one after the other while they wait and run."""
    rng = random.Random(seed)
    wrappers = Wrappers(directory / "bin")
    ledger = directory / "ledger"
    ledger.touch()
    kinds = [("down", *SQUEUE)[n % (len(SQUEUE) + 1)] for n in range(count)]
    rng.shuffle(kinds)
    whole = count * (blackout_secs + 2.0)
    codes = [rng.choice((0, 0, 0, 1, 7)) for _ in range(jobs)]
    began = time.monotonic()
    async with patient(directory, cluster, secs, bin_dir=str(wrappers.directory)) as it:
        for n in range(jobs):
            script = f"echo {n} >>{ledger}; sleep {rng.uniform(0, whole / 4):.1f}; exit {codes[n]}"
            await it.stage.send([job(it, f"b{n}", script, {"slurm": {"array": bool(n % 4)}})])
        for kind in kinds:
            await _blackout(cluster, wrappers, kind, blackout_secs)
            await asyncio.sleep(2.0)
        ends = []
        for n in range(jobs):
            attempt = 1
            while not (end := await it.stage.ended(f"b{n}", attempt)).began and attempt < MAX_STARTS:
                # as the supervisor does: it never became a process, so it is tried again
                assert end.reason is not None, end
                assert end.reason.about.retryable, end
                attempt += 1
                script = f"echo {n} >>{ledger}; exit {codes[n]}"
                await it.stage.send([job(it, f"b{n}", script, attempt=attempt)])
            ends.append(end)
        told = [one for one in it.stage.durable if isinstance(one, Exited)]
        counts = counters(it)
    ran = ledger.read_text().split()
    true = sum(end.began and end.exit_code == codes[n] for n, end in enumerate(ends))
    return Blackouts(
        jobs=jobs,
        blackouts=kinds,
        false_ends=sum(one.began and one.exit_code != codes[int(one.jid[1:])] for one in told),
        tried_again=sum(not one.began for one in told),
        true_ends=true,
        doubled=len(ran) - len(set(ran)),
        secs=round(time.monotonic() - began, 1),
        counts=counts,
        wrong=[
            f"{end.jid}: {codes[n]}, not {end.exit_code} {end.signal} {end.reason} {end.proof} {end.message}"
            for n, end in enumerate(ends)
            if not (end.began and end.exit_code == codes[n])
        ],
    )


async def _blackout(cluster: Cluster, wrappers: Wrappers, kind: str, secs: float) -> None:
    if kind != "down":
        wrappers.squeue(kind)
        await asyncio.sleep(secs)
        wrappers.squeue()
        return
    await asyncio.to_thread(stop_controller, cluster)
    await asyncio.sleep(secs)
    await asyncio.to_thread(start_controller, cluster)


def stop_controller(cluster: Cluster) -> None:
    """The controller goes down. By TERM: killed, it forgets what it accepted since it last saved."""
    pid = int((cluster.home / "slurmctld.pid").read_text())
    fd = os.pidfd_open(pid)
    os.kill(pid, signal.SIGTERM)
    if not select.select([fd], [], [], 15)[0]:
        os.kill(pid, signal.SIGKILL)
        select.select([fd], [], [], 15)
    os.close(fd)


def start_controller(cluster: Cluster) -> None:
    """It comes back, and this returns when it answers."""
    subprocess.run(["slurmctld", "-f", cluster.conf], env=cluster.env, check=True, capture_output=True)
    deadline = time.monotonic() + 30
    while subprocess.run(["scontrol", "ping"], env=cluster.env, capture_output=True, check=False).returncode:
        assert time.monotonic() < deadline, "slurmctld does not come back"
        time.sleep(0.1)
