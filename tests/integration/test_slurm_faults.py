"""A real Slurm that starts a job again, or does not cancel (F121, F125)."""

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sirepo_jobs.protocol import Exited
from tests.slurm_chaos.wrappers import Wrappers
from tests.slurm_stage import Cluster, cluster_in, job, situations, slurm_scene

pytestmark = [pytest.mark.real("slurm"), pytest.mark.timeout(600)]
ALONE = {"slurm": {"array": False}}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster_in(tmp_path_factory.mktemp("slurm")) as found:
        yield found


def slurm_id(cluster: Cluster, jid: str) -> str:
    (found,) = [one for one, _, name in cluster.jobs() if name.startswith(f"sj-{jid}-")]
    return found


async def until(true: Callable[[], object]) -> None:
    """Slurm has no event for us."""
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.05)


async def test_started_again_under_the_same_id_it_runs_once(tmp_path: Path, cluster: Cluster) -> None:
    """F121: an administrator overrules --no-requeue; the claim is taken, so the second start does nothing."""
    async with slurm_scene(tmp_path, cluster) as it:
        await it.stage.send([job(it, "q1", "echo ran; exec sleep 600", ALONE)])
        await it.stage.started("q1")
        await until(lambda: it.stdout("q1"))
        number = slurm_id(cluster, "q1")
        (broker,) = it.helpers("sj-broker")
        os.kill(broker, signal.SIGSTOP)  # it is slow to hear of the first one's end
        cluster.run("scontrol", "update", f"JobId={number}", "Requeue=1")
        requeue = ["scontrol", "requeue", number]
        # it refuses while the node is still at it
        await until(lambda: not subprocess.run(requeue, env=cluster.env, capture_output=True).returncode)

        def shown() -> str:
            return cluster.run("scontrol", "-o", "show", "job", number)

        # it would wait for two minutes, as all that are requeued do; within the same second a node takes
        # what it was sent for the first one's, which is revoked
        await until(lambda: "JobState=PENDING" in shown())
        cluster.run("scontrol", "update", f"JobId={number}", "StartTime=now+2")
        await until(lambda: "Restarts=1" in shown() and "ExitCode=77:0" in shown())
        os.kill(broker, signal.SIGCONT)
        ended = await it.stage.ended("q1")
        assert (ended.began, ended.exit_code, ended.proof) == (True, None, "exit_record")
        assert it.stdout("q1") == b"ran\n"
        assert len([one for one in it.stage.durable if isinstance(one, Exited)]) == 1


async def test_a_scancel_that_fails_is_repeated_and_nothing_is_called_ended(
    tmp_path: Path, cluster: Cluster
) -> None:
    """F125: one that waits and one that runs, while Slurm refuses every scancel."""
    wrappers = Wrappers(tmp_path / "bin")
    scancel, fails = wrappers.directory / "scancel", tmp_path / "fails"
    scancel.unlink()
    scancel.write_text(
        f"#!/bin/sh\n[ ! -e {fails} ] || {{ echo . >>{fails}; echo 'scancel: error: time' >&2; exit 1; }}\n"
        f'exec {shutil.which("scancel")} "$@"\n'
    )
    scancel.chmod(0o755)
    async with slurm_scene(tmp_path, cluster, bin_dir=str(wrappers.directory)) as it:
        await it.stage.send([job(it, "r1", "exec sleep 600", ALONE)])
        await it.stage.send([job(it, "w1", "echo never", {"slurm": {"nodes": 9, "array": False}})])
        await it.stage.started("r1")
        await it.stage.until(lambda: any(one.state for one in situations(it, "w1")), "w1 is listed")
        fails.touch()
        await it.stage.send([it.stage.cancel("r1", 0.5), it.stage.cancel("w1", 0.5)])
        await until(lambda: len(fails.read_text().split()) >= 2)  # each of them
        assert not [one for one in it.stage.durable if isinstance(one, Exited)]
        fails.unlink()
        ran, waited = await it.stage.ended("r1"), await it.stage.ended("w1")
        # by us, or by Slurm itself when its own TERM was quicker
        assert ran.began
        assert ran.stopped or ran.signal == signal.SIGTERM
        assert (waited.began, waited.stopped, waited.proof) == (False, True, "never_claimed")
