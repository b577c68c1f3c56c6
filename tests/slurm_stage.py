"""A real Slurm of the test's own, and an agent that speaks with it; see `agent_stage` for the agent."""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sirepo_jobs.cluster import SlurmPolicy
from sirepo_jobs.protocol import Counters, Run, Scheduling
from tests.agent_stage import Scene, appears, scene

ROOT = Path(__file__).parents[1]
SERVICE = ROOT / "bin/dev-services"


class Cluster:
    """A throw-away cluster."""

    def __init__(self, directory: Path, conf: str) -> None:
        self.directory = directory
        self.conf = conf
        self.env = {**os.environ, "SLURM_CONF": conf}

    @property
    def home(self) -> Path:
        """Where its daemons keep their files."""
        return Path(self.conf).parent

    def run(self, *argv: str, check: bool = True) -> str:
        """One of Slurm's commands, asked by the test."""
        return subprocess.run(argv, env=self.env, check=check, capture_output=True, text=True).stdout

    def jobs(self, columns: str = "%i|%T|%j") -> list[list[str]]:
        """Every job that the controller knows of."""
        return [
            line.split("|")
            for line in self.run("squeue", "-h", "-r", "-t", "all", "-o", columns).splitlines()
        ]

    def policy(self, **changes: Any) -> SlurmPolicy:
        """What a test may ask of it: quick, because nobody else is there."""
        return SlurmPolicy(
            **{
                "env": {"SLURM_CONF": self.conf},
                "query_secs": 1.0,
                "queries_per_minute": 600,
                "submits_per_minute": 6000,
                "settle_secs": 3.0,
                "submit_settle_secs": 2.0,
                "command_secs": 15.0,
                **changes,
            }
        )


@contextmanager
def cluster_in(directory: Path, *options: str) -> Iterator[Cluster]:
    """Started by the project's own script; under CI=true one that does not start fails."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "options").write_text("".join(f"{option}\n" for option in options))
    started = subprocess.run(
        [SERVICE, "slurm", "start", directory], capture_output=True, text=True, timeout=300, check=False
    )
    if started.returncode:
        why = f"Slurm does not start: {started.stderr[-2000:]}"
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)
    try:
        yield Cluster(directory, started.stdout.strip().partition("conf=")[2])
    finally:
        subprocess.run([SERVICE, "slurm", "remove", directory], check=True, capture_output=True, timeout=300)


@asynccontextmanager
async def slurm_scene(path: Path, cluster: Cluster, **changes: Any) -> AsyncIterator[Scene]:
    """An agent whose jobs are Slurm's. At its end nothing of it is left in the queue."""
    async with scene(path, slurm=cluster.policy(**changes)) as the_scene:
        yield the_scene


def job(the_scene: Scene, jid: str, script: str, spec: dict[str, Any] | None = None, **changes: Any) -> Run:
    """A job as the supervisor sends it."""
    raw = msgspec.Raw(msgspec.json.encode({"command": ["/bin/sh", "-c", script], **(spec or {})}))
    return the_scene.stage.shell(jid, script, spec=raw, **changes)


async def says(the_scene: Scene, jid: str, text: bytes) -> None:
    """Wait until a job has written this, and nothing else, to its stdout."""
    path = await appears(the_scene.run_dir(jid) / "stdout")
    async with asyncio.timeout(60):
        while path.read_bytes() != text:
            await asyncio.sleep(0.02)


def situations(the_scene: Scene, jid: str) -> list[Scheduling]:
    """What was told of where a job stands."""
    return [one for one in the_scene.stage.others if isinstance(one, Scheduling) and one.jid == jid]


def counters(the_scene: Scene) -> dict[str, int]:
    """What Slurm was asked, as last told."""
    told = [one for one in the_scene.stage.others if isinstance(one, Counters)]
    return told[-1].counts if told else {}
