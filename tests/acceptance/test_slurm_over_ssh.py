"""The whole way: a real Slurm behind a real sshd, as an ordinary user who has nothing installed (issue 6, 1).

The cluster's software (LAMMPS, MPICH) is the site's, as it is everywhere; of ours there is nothing before.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.acceptance.cluster_site import site_of, until
from tests.acceptance.conftest import System
from tests.agent_stage import carrying
from tests.slurm_chaos import over_ssh
from tests.slurm_stage import Cluster, cluster_in
from tests.sshd_stage import Sshd, sshd_at

pytestmark = [pytest.mark.real("sshd"), pytest.mark.real("slurm"), pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]
MPI = {"nodes": 2, "ntasks": 2, "srun": True, "mpi": "pmi2"}


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with sshd_at(str(tmp_path_factory.mktemp("sshd"))) as found:
        user = os.stat(found.home("key")).st_uid
        yield found
    # what MPICH leaves when it is killed
    for left in Path("/dev/shm").glob("mpich_shm_*"):
        if left.stat().st_uid == user:
            left.unlink()


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster_in(tmp_path_factory.mktemp("slurm")) as found:
        yield found


@pytest.fixture(scope="module")
def software() -> Iterator[Path]:
    """What the site has for everybody: LAMMPS with its libraries, and the demo's input."""
    place = Path(tempfile.mkdtemp(prefix="site-software."))
    place.chmod(0o755)
    packages = Path(next(path for path in sys.path if path.endswith("site-packages")))
    for source in (packages / "lammps/lmp", packages / "lammps/liblammps.so.0"):
        shutil.copy(source, place)
    shutil.copytree(packages / "lammps.libs", place / "lib")
    shutil.copy(Path(sys.prefix) / "lib/libmpi.so.12", place / "lib")
    shutil.copytree(Path(sys.prefix) / "lib/mpich", place / "lib/mpich")
    shutil.copy(ROOT / "etc/examples/lammps/in.melt", place)
    yield place
    shutil.rmtree(place)


@pytest.fixture
def site(sshd: Sshd, slurm: Cluster, tmp_path: Path) -> Iterator[System]:
    policy = sshd.policy("dev", user="key", root="~/.sirepo_jobs")
    policy = msgspec.structs.replace(policy, processes=False, slurm=slurm.policy())
    with site_of(tmp_path, policy) as system:
        yield system
    left = carrying(f"{sshd.words['homes']}/")
    assert not left, left


def melt(software: Path, warming: int, **more: object) -> dict[str, object]:
    """The demo simulation as a job of two MPI ranks on two nodes."""
    libraries = f"{software}/lib:{software}/lib/mpich:{software}"
    variables = ["-var", "edge", "8", "-var", "warming", str(warming)]
    return {
        "name": "melt",
        "command": [f"{software}/lmp", "-in", f"{software}/in.melt", *variables],
        "env": {"LD_LIBRARY_PATH": libraries, "OMP_NUM_THREADS": "1"},
        "driver": "sbatch",
        "slurm": MPI,
        "limits": {"soft": "10m"},
        "progress": "jsonl",
        **more,
    }


def test_the_demo_simulation_from_a_bare_account(
    sshd: Sshd, slurm: Cluster, software: Path, site: System, tmp_path: Path
) -> None:
    assert os.listdir(sshd.home("key")) == []
    before = sshd.logins()
    client = site.client()
    made = client.submit(melt(software, 2500))
    seen = []

    def ended() -> bool:
        job = client.get(made.jid)
        if job.state == "running" and job.progress:
            seen.append(job.progress["percent_complete"])
        return job.state in ("completed", "error", "canceled")

    until(ended, "the end of the simulation", 150)
    job = client.get(made.jid)
    assert job.state == "completed", (job.situation, b"".join(client.logs(made.jid, "stderr")))
    # live: it was seen at work, more than once, and went forward
    assert len(set(seen)) >= 2, seen
    assert seen == sorted(seen)
    said = b"".join(client.logs(made.jid))
    assert b"on 2 procs" in said or b"2 by 1 by 1 MPI processor grid" in said or b"1 by 1 by 2 MPI" in said
    assert b"at the end: temperature" in said
    assert "log.lammps" in {file.path for file in client.files(made.jid)}
    client.download(made.jid, "log.lammps", tmp_path / "log")
    assert b"at the end: temperature" in (tmp_path / "log").read_bytes()
    assert sshd.logins() == before + 1
    until(
        lambda: (
            f"COMPLETED 2 {sshd.user('key')}"
            in slurm.run("squeue", "-h", "-t", "all", "-o", "%T %D %u").splitlines()
        ),
        "Slurm says so too: two nodes, the user's own account",
    )


def test_cancel_ends_it_in_slurm(sshd: Sshd, slurm: Cluster, software: Path, site: System) -> None:
    client = site.client()
    made = client.submit(melt(software, 400_000))
    until(lambda: client.get(made.jid).progress, "it runs and says so")
    client.cancel(made.jid)
    assert client.wait(made.jid, timeout=150).state == "canceled"
    until(lambda: not slurm.run("squeue", "-h", "-t", "R,PD,CG").strip(), "nothing is left in Slurm")


def test_many_jobs_are_one_login_and_few_questions(sshd: Sshd, slurm: Cluster, site: System) -> None:
    """`bin/slurm-chaos over-ssh` is the same with a thousand (issue 6, 4)."""
    told = over_ssh.run(site, sshd, slurm, 50, 150.0)
    assert (told.logins, told.completed, told.executions) == (1, 50, {1: 50})
    # they come in one request, so one or two arrays have them all
    assert told.submit_rpcs == told.submits <= 3
    # one listing a second is what this policy allows, whatever the number of jobs
    assert told.query_rpcs <= told.secs + 10


def test_a_killed_supervisor_finds_running_and_waiting_jobs(sshd: Sshd, slurm: Cluster, site: System) -> None:
    """One runs, one waits in Slurm, one waits for its turn with us: each runs once."""
    client = site.client()
    home = sshd.home("key")
    script = "echo $SLURM_JOB_ID >> ~/begun-$1; while [ ! -e ~/go ]; do sleep 0.1; done; echo done"
    spec = {"driver": "sbatch", "cluster": "dev"}
    whole = {"slurm": {"nodes": 2, "exclusive": True, "array": False}}
    running = client.submit({"command": ["/bin/sh", "-c", script, "sh", "a"], **spec, **whole})
    until(lambda: client.get(running.jid).state == "running", "the first runs")
    waiting = client.submit({"command": ["/bin/sh", "-c", script, "sh", "b"], **spec, **whole})
    until(lambda: "PENDING" in slurm.run("squeue", "-h", "-o", "%T"), "the second waits in Slurm")
    site.crash()
    until((home / "begun-a").exists, "it goes on")
    site.up()
    client = site.client()
    assert client.get(running.jid).state in ("running", "lost")
    third = client.submit({"command": ["/bin/sh", "-c", script, "sh", "c"], **spec})
    subprocess.run(["runuser", "-u", sshd.user("key"), "--", "touch", str(home / "go")], check=True)
    for job, name in ((running, "a"), (waiting, "b"), (third, "c")):
        assert client.wait(job.jid, timeout=150).state == "completed", name
        assert len((home / f"begun-{name}").read_text().splitlines()) == 1, name
