"""Jobs in a real Slurm that are stopped where they stand, and go on: all processes, on every node."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sirepo_jobs.protocol import Suspended
from tests.agent_stage import Scene, gone, stands
from tests.slurm_stage import Cluster, cluster_in, job, situations, slurm_scene

pytestmark = [pytest.mark.real("slurm"), pytest.mark.timeout(600)]
#: Counts up for ever, and says which process it is.
COUNT = "echo $$ >$SIREPO_JOBS_RUN_DIR/pid$SLURM_PROCID; n=0; while :; do echo $((n+=1)); sleep 0.02; done"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster_in(tmp_path_factory.mktemp("slurm")) as found:
        yield found


async def until(true: Any) -> None:
    """Slurm's processes have no event for us."""
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.02)


async def pids_of(it: Scene, jid: str, tasks: int) -> list[int]:
    """Of the processes that run COUNT."""
    files = [it.run_dir(jid) / f"pid{n}" for n in range(tasks)]
    await until(lambda: all(file.is_file() and file.read_text() for file in files))
    return [int(file.read_text()) for file in files]


async def suspend(it: Scene, jid: str, *, on: bool) -> None:
    """Ask for it, and wait until the agent says that it is so."""
    told = len(it.stage.durable)
    await it.stage.send([it.stage.suspend(jid, on)])
    await it.stage.until(
        lambda: [one.on for one in it.stage.durable[told:] if isinstance(one, Suspended)] == [on],
        f"suspended: {on}",
    )


async def test_all_processes_stop_and_go_on(tmp_path: Path, cluster: Cluster) -> None:
    async with slurm_scene(tmp_path, cluster) as it:
        slurm = {"nodes": 2, "ntasks": 2, "srun": True, "array": False}
        await it.stage.send([job(it, "s1", COUNT, {"slurm": slurm})])
        await it.stage.started("s1")
        pids = await pids_of(it, "s1", 2)
        await suspend(it, "s1", on=True)
        await until(lambda: all(stands(pid) for pid in pids))
        said = it.stdout("s1")
        # Slurm says so too, as soon as it is listed again, and it is no reason to end it
        await it.stage.until(lambda: situations(it, "s1")[-1].state == "STOPPED", "listed")
        await suspend(it, "s1", on=False)
        await until(lambda: len(it.stdout("s1")) > len(said) + 20)
        await it.stage.send([it.stage.cancel("s1", 0.0)])
        assert (await it.stage.ended("s1")).stopped


async def test_a_stopped_job_that_is_canceled_has_its_grace(tmp_path: Path, cluster: Cluster) -> None:
    async with slurm_scene(tmp_path, cluster) as it:
        script = f"trap 'echo bye; exit 4' TERM; {COUNT}"
        await it.stage.send([job(it, "c1", script, {"slurm": {"array": False}})])
        await it.stage.started("c1")
        (pid,) = await pids_of(it, "c1", 1)
        await suspend(it, "c1", on=True)
        await until(lambda: stands(pid))
        await it.stage.send([it.stage.cancel("c1", 60.0)])
        ended = await it.stage.ended("c1")
        assert (ended.exit_code, ended.stopped) == (4, True)
        assert it.stdout("c1").endswith(b"bye\n")


async def test_a_new_broker_knows_not_what_stands_still(tmp_path: Path, cluster: Cluster) -> None:
    """The one that stopped it is dead; the next one lets it go on, and ends it."""
    async with slurm_scene(tmp_path, cluster) as it:
        script = f"trap 'echo bye; exit 4' TERM; {COUNT}"
        await it.stage.send([job(it, "k1", script, {"slurm": {"array": False}})])
        await it.stage.started("k1")
        (pid,) = await pids_of(it, "k1", 1)
        await suspend(it, "k1", on=True)
        await until(lambda: stands(pid))
        (broker,) = it.helpers("sj-broker")
        os.kill(broker, signal.SIGKILL)
        await gone(broker)
        await it.stage.send([it.stage.cancel("k1", 60.0)])
        ended = await it.stage.ended("k1")
        assert (ended.exit_code, ended.stopped) == (4, True)
