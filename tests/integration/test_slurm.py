"""Jobs in a real Slurm: run, fail, wait, be canceled; what is told of them meanwhile."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from sirepo_jobs.agents import slurm_files
from sirepo_jobs.reasons import Reason
from tests.agent_stage import appears, children_of, gone
from tests.slurm_stage import Cluster, cluster_in, counters, job, says, situations, slurm_scene

pytestmark = [pytest.mark.real("slurm"), pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster_in(tmp_path_factory.mktemp("slurm")) as found:
        yield found


async def test_a_job_runs_and_tells_how_it_ended(tmp_path: Path, cluster: Cluster) -> None:
    async with slurm_scene(tmp_path, cluster) as it:
        script = "echo hello from $SLURM_JOB_ID; echo oops >&2; exit 3"
        await it.stage.send([job(it, "j1", script)])
        ended = await it.stage.ended("j1")
        assert (ended.exit_code, ended.signal, ended.proof) == (3, None, "exit_record")
        assert it.stdout("j1").startswith(b"hello from ")
        assert it.stderr("j1") == b"oops\n"
        assert (ended.stdout_bytes, ended.stderr_bytes) == (len(it.stdout("j1")), 5)
        assert ended.started_at is not None
        assert await it.stage.until(lambda: counters(it).get("submits") == 1, "counters")


async def test_jobs_that_ask_for_the_same_become_one_array(tmp_path: Path, cluster: Cluster) -> None:
    async with slurm_scene(tmp_path, cluster) as it:
        await it.stage.send([job(it, f"a{n}", f"echo {n}") for n in range(20)])
        for n in range(20):
            assert (await it.stage.ended(f"a{n}")).exit_code == 0
            assert it.stdout(f"a{n}") == f"{n}\n".encode()
        await it.stage.until(lambda: counters(it).get("in_slurm") == 0, "counters")
        assert counters(it)["submits"] <= 3


async def test_one_that_asks_for_something_else_goes_alone(tmp_path: Path, cluster: Cluster) -> None:
    async with slurm_scene(tmp_path, cluster) as it:
        show = "echo $SLURM_CPUS_PER_TASK $SLURM_JOB_PARTITION ${SLURM_ARRAY_JOB_ID-alone}"
        slurm = {"partition": "short", "cpus_per_task": 3, "time": 60, "array": False}
        await it.stage.send([job(it, f"o{n}", show, {"slurm": slurm}) for n in range(2)])
        for n in range(2):
            assert (await it.stage.ended(f"o{n}")).exit_code == 0
            assert it.stdout(f"o{n}") == b"3 short alone\n"


async def test_attempts_share_an_allocation(tmp_path: Path, cluster: Cluster) -> None:
    async with slurm_scene(tmp_path, cluster) as it:
        spec = {"slurm": {"pack": 5}}
        await it.stage.send([job(it, f"p{n}", "echo $SLURM_JOB_ID; exit $((n))", spec) for n in range(5)])
        for n in range(5):
            assert (await it.stage.ended(f"p{n}")).exit_code == 0
        assert len({it.stdout(f"p{n}") for n in range(5)}) == 1


async def test_progress_and_output_while_it_runs(tmp_path: Path, cluster: Cluster) -> None:
    async with slurm_scene(tmp_path, cluster) as it:
        script = 'echo "{\\"percent_complete\\": 50}" >> $SIREPO_JOBS_PROGRESS; echo half; sleep 600'
        await it.stage.send([job(it, "l1", script, progress=True)])
        await it.stage.started("l1")
        reading = it.stage.read("l1", follow=True)
        await it.stage.send([reading])
        await it.stage.until(lambda: it.stage.progress, "progress")
        await it.stage.until(lambda: it.stage.chunks.get(reading.op_id) == b"half\n", "output")
        assert it.stage.progress[-1].data == {"percent_complete": 50}
        await it.stage.send([it.stage.cancel("l1", 0.0)])
        assert (await it.stage.ended("l1")).stopped


async def test_cancel_while_it_runs_keeps_the_grace(tmp_path: Path, cluster: Cluster) -> None:
    async with slurm_scene(tmp_path, cluster) as it:
        await it.stage.send(
            [job(it, "c1", "trap 'echo bye; exit 4' TERM; echo up; while :; do sleep 0.1; done")]
        )
        await it.stage.started("c1")
        await says(it, "c1", b"up\n")  # so its trap is set
        await it.stage.send([it.stage.cancel("c1", 20.0)])
        ended = await it.stage.ended("c1")
        assert (ended.exit_code, ended.stopped) == (4, True)
        assert it.stdout("c1") == b"up\nbye\n"


async def test_cancel_while_it_waits_proves_that_it_never_begins(tmp_path: Path, cluster: Cluster) -> None:
    async with slurm_scene(tmp_path, cluster) as it:
        spec = {"slurm": {"nodes": 9, "array": False}}
        await it.stage.send([job(it, "w1", "echo never", spec)])
        said = await it.stage.until(lambda: [one for one in situations(it, "w1") if one.state], "listed")
        assert said[-1].word in ("PartitionConfig", "PartitionNodeLimit")
        assert said[-1].reason is Reason.UNSATISFIABLE
        assert said[-1].never
        assert said[-1].word in said[-1].text
        await it.stage.send([it.stage.cancel("w1")])
        ended = await it.stage.ended("w1")
        assert (ended.began, ended.stopped, ended.proof) == (False, True, "never_claimed")
        states = {state for slurm_id, state, _ in cluster.jobs() if slurm_id == said[-1].id}
        assert states == {"CANCELLED"}


async def test_a_refusal_is_told_in_slurms_own_words(tmp_path: Path, cluster: Cluster) -> None:
    async with slurm_scene(tmp_path, cluster) as it:
        await it.stage.send([job(it, "r1", "true", {"slurm": {"partition": "nix"}})])
        ended = await it.stage.ended("r1")
        assert (ended.reason, ended.began) == (Reason.SUBMIT_REJECTED, False)
        assert "invalid partition specified: nix" in ended.message


async def test_what_the_site_forbids_does_not_reach_slurm(tmp_path: Path, cluster: Cluster) -> None:
    async with slurm_scene(tmp_path, cluster, partitions=["debug"], max_time_secs=60.0) as it:
        await it.stage.send([job(it, "f1", "true", {"slurm": {"partition": "short"}})])
        await it.stage.send([job(it, "f2", "true", {"slurm": {"time": 3600}})])
        assert "'short' may not be used here" in (await it.stage.ended("f1")).message
        assert "at most 1m is allowed" in (await it.stage.ended("f2")).message
        assert counters(it).get("submits", 0) == 0


async def test_a_script_that_fails_is_quoted(tmp_path: Path, cluster: Cluster) -> None:
    async with slurm_scene(tmp_path, cluster, modules=["no-such-module"]) as it:
        await it.stage.send([job(it, "e1", "true")])
        ended = await it.stage.ended("e1")
        assert (ended.began, ended.reason) == (False, Reason.START_FAILED)
        assert "its script said: " in ended.message
        assert "module" in ended.message


async def test_an_admin_ends_a_waiting_and_a_running_job(tmp_path: Path, cluster: Cluster) -> None:
    async with slurm_scene(tmp_path, cluster) as it:
        await it.stage.send([job(it, "x1", "exec sleep 600", {"slurm": {"array": False}})])
        await it.stage.send([job(it, "x2", "true", {"slurm": {"nodes": 9, "array": False}})])
        await it.stage.started("x1")
        await it.stage.until(lambda: any(one.id for one in situations(it, "x2")), "x2 queued")
        ids = {
            name.split("-")[1]: slurm_id for slurm_id, _, name in cluster.jobs() if name.startswith("sj-x")
        }
        cluster.run("scancel", ids["x1"], ids["x2"])
        ran = await it.stage.ended("x1")
        assert (ran.signal, ran.began, ran.proof) == (15, True, "exit_record")
        waited = await it.stage.ended("x2")
        assert (waited.began, waited.reason) == (False, Reason.CANCELED_BY_ADMIN)


async def test_jobs_outlive_launcher_broker_and_boot(tmp_path: Path, cluster: Cluster) -> None:
    async with slurm_scene(tmp_path, cluster) as it:
        await it.stage.send([job(it, "s1", "mkfifo go; read x < go; echo $x", {"slurm": {"array": False}})])
        await it.stage.send([job(it, "s2", "true", {"slurm": {"nodes": 9, "array": False}})])
        await it.stage.started("s1")
        await it.stage.until(lambda: any(one.state == "PENDING" for one in situations(it, "s2")), "s2 waits")
        os.kill(it.helpers("sj-broker")[0], signal.SIGKILL)
        await appears(it.run_dir("s1") / "go")
        os.kill(it.launcher, signal.SIGKILL)
        await gone(it.launcher)
        hellos = len(it.stage.hellos)
        await it.launch()
        hello = await it.stage.connected(hellos + 1)
        assert {(held.jid, held.state) for held in hello.inventory} == {("s1", "running"), ("s2", "starting")}
        await asyncio.to_thread((it.run_dir("s1") / "go").write_text, "end\n")
        assert (await it.stage.ended("s1")).exit_code == 0
        await it.stage.send([it.stage.cancel("s2")])
        assert not (await it.stage.ended("s2")).began
        assert it.stdout("s1") == b"end\n"
        tokens = [name for _, _, name in cluster.jobs() if name.startswith("sj-s")]
        assert len(tokens) == 2


async def test_the_walltime_is_told_before_it_strikes(tmp_path: Path, cluster: Cluster) -> None:
    async with slurm_scene(tmp_path, cluster) as it:
        spec = {"slurm": {"time": 60, "array": False}, "limits": {"grace": 3.0}}
        script = "trap 'echo saved; exit 0' TERM; echo up; while :; do sleep 0.1; done"
        await it.stage.send([job(it, "t1", script, spec)])
        await it.stage.started("t1")
        await says(it, "t1", b"up\n")
        (slurm_id,) = [one for one, _, name in cluster.jobs() if name.startswith("sj-t1-")]
        assert "TimeLimit=00:01:00" in cluster.run("scontrol", "-o", "show", "job", slurm_id)
        # what Slurm does 10 s before the end (--signal=B:USR1@10), without the wait
        cluster.run("scancel", "--signal=USR1", "--batch", slurm_id)
        ended = await it.stage.ended("t1")
        assert (ended.reason, ended.exit_code) == (Reason.TIME_LIMIT, 0)
        assert it.stdout("t1").endswith(b"saved\n")


async def test_the_place_in_the_queue_is_told(tmp_path: Path, cluster: Cluster) -> None:
    async with slurm_scene(tmp_path, cluster) as it:
        whole = {"slurm": {"nodes": 2, "exclusive": True, "time": 600, "array": False}}
        for n in range(3):
            await it.stage.send([job(it, f"q{n}", "exec sleep 6000", whole)])
            await it.stage.until(lambda n=n: any(one.id for one in situations(it, f"q{n}")), "accepted")
            if n == 0:
                await it.stage.started("q0")  # from here on the others have a place
        told = await it.stage.until(
            lambda: [one for one in situations(it, "q2") if one.position and one.starts_at],
            "position and start",
        )
        assert (told[-1].position, told[-1].queued) == (2, 2)
        assert told[-1].reason in (Reason.PRIORITY, Reason.RESOURCES)
        assert told[-1].starts_at > told[-1].at
        await it.stage.send([it.stage.cancel(f"q{n}", 0.0) for n in range(3)])
        assert all([(await it.stage.ended(f"q{n}")).stopped for n in range(3)])


async def test_a_job_that_leaves_no_record_ends_by_the_accounting(tmp_path: Path) -> None:
    with cluster_in(tmp_path / "slurm", "accounting=yes", "MinJobAge=2", "nodes=1") as cluster:
        async with slurm_scene(tmp_path, cluster, settle_secs=1.0) as it:
            await it.stage.send([job(it, "n1", "exec sleep 6000", {"slurm": {"array": False}})])
            await it.stage.started("n1")
            owner = slurm_files.owner_of(str(it.run_dir("n1")))
            assert owner is not None
            for pid in (owner.pid, *children_of(owner.pid)):  # as by the death of its node
                os.kill(pid, signal.SIGKILL)
            ended = await it.stage.ended("n1")
            assert (ended.began, ended.proof) == (True, "scheduler")
            assert (ended.exit_code, ended.signal) == (None, 9)
            assert counters(it)["asks"] >= 1
