"""The demo's simulation in a container of an image that this repository builds from wheels (Must show 2)."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bundle_stage import OUT, agent_bundle
from tests.docker_stage import TestEngine, an_engine, write_policy

from .conftest import System

pytestmark = [pytest.mark.real("docker"), pytest.mark.timeout(600)]

REPO = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestEngine]:
    agent_bundle()
    with an_engine(tmp_path_factory.mktemp("docker")) as made:
        subprocess.run(
            [REPO / "bin/build-demo-image", "melt:1"],
            check=True,
            env={**os.environ, "DOCKER_HOST": made.url},
            stdout=subprocess.DEVNULL,
        )
        yield made


def test_the_demo_simulation_in_a_container(tmp_path: Path, engine: TestEngine) -> None:
    """Two MPI processes, live progress, the same physics; read-only, without a network, as nobody."""
    policy = write_policy(tmp_path / "docker.toml", {"here": engine}, "pull = false")
    system = System(
        tmp_path / "root",
        SIREPO_JOBS_DRIVERS="docker",
        SIREPO_JOBS_DOCKER_FILE=str(policy),
        SIREPO_JOBS_BUNDLE_DIR=str(OUT),
    )
    command = ["mpiexec", "-n", "2", "lmp", "-in", "/opt/lammps/share/in.melt"]
    system.up()
    try:
        done = system.cli(
            *("run", "--driver", "docker", "--image", "melt:1", "--cpus", "2", "--progress", "jsonl", "--"),
            *(*command, "-var", "edge", "8", "-var", "warming", "500"),
        )
        assert "1 by 1 by 2 MPI processor grid" in done.stdout.decode()
        found = re.search(rb"at the end: temperature ([\d.]+), potential energy (-[\d.]+)", done.stdout)
        assert found, done.stdout[-2000:]
        assert 0.3 < float(found[1]) < 2.0
        client = system.client()
        (job,) = client.jobs(limit=1)
        assert (job.state, job.exit_code, job.driver) == ("completed", 0, "docker")
        assert job.progress is not None
        assert job.progress["percent_complete"] >= 90
    finally:
        system.up_or_stay()
        system.down("--stop-agents")
    assert engine.containers() == []
