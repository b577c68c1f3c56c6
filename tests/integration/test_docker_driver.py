"""The docker driver keeps the drivers' contract on a real engine, and what is its own."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from sirepo_jobs.driver import AgentSpec, Environment, Handle
from sirepo_jobs.drivers.docker import DockerDriver
from sirepo_jobs.protocol import Hello
from tests.agent_stage import Stage, appears, carrying, gone
from tests.bundle_stage import OUT, agent_bundle
from tests.docker_stage import TestEngine, an_engine, busybox_files, musl_files, root_tar, write_policy
from tests.driver_contract import STEPS, Step, exercise

pytestmark = pytest.mark.real("docker")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestEngine]:
    """An engine with an image of busybox alone, and one as musl has it."""
    agent_bundle()
    with an_engine(tmp_path_factory.mktemp("docker")) as made:
        made.make_image("bb:1", root_tar(busybox_files()), "ENV PATH=/bin FROM_IMAGE=yes LD_PRELOAD=/no.so")
        made.make_image("musl:1", root_tar(musl_files()), "ENV PATH=/bin")
        yield made


class DockerWorld:
    """Homes and run dirs below one directory, one stage per agent."""

    def __init__(self, path: Path, engine: TestEngine, policy: str = "", image: str = "bb:1") -> None:
        self.path = path
        self.engine = engine
        self.image = image
        self.policy_file = write_policy(path / "docker.toml", {"here": engine}, policy)
        self.stages: dict[str, Stage] = {}

    def driver(self) -> DockerDriver:
        return DockerDriver(policy_file=self.policy_file, bundle_dir=OUT)

    def spec(self, agent: str, **environment: object) -> AgentSpec:
        (self.path / f"door-{agent}").mkdir(exist_ok=True)
        told = {"driver": "docker", "user": "u", "image": self.image, **environment}
        return AgentSpec(
            agent=agent,
            environment=msgspec.convert(told, Environment),
            url=f"unix:{self.path}/door-{agent}/s",
            token="token-of-tests",
            home=f"{self.path}/agents/{agent}",
            run_root=f"{self.path}/run",
        )

    async def hello(self, agent: str, count: int) -> Hello:
        return await (await self.stage(agent)).connected(count)

    async def stage(self, agent: str) -> Stage:
        """Where that agent calls."""
        if agent not in self.stages:
            self.stages[agent] = stage = Stage(self.path / f"door-{agent}/s")
            await stage.listen()
            stage.path.chmod(0o666)
        return self.stages[agent]

    def pid(self, handle: Handle) -> int:
        """Of the launcher, as this machine sees it."""
        return int(self.engine.docker("inspect", "-f", "{{.State.Pid}}", str(handle.data["container"])))

    async def kill(self, handle: Handle) -> None:
        pid = self.pid(handle)
        os.kill(pid, signal.SIGKILL)
        await gone(pid)
        await asyncio.to_thread(self.engine.docker, "wait", str(handle.data["container"]))

    async def run_sleep(self, agent: str, token: str) -> None:
        stage = self.stages[agent]
        script = f"trap '' TERM; setsid sleep {token} & touch up; sleep {token}; sleep {token}"
        await stage.send([stage.shell(f"sleep{token}", script)])
        await appears(self.path / f"run/users/u/jobs/sleep{token}/1/up")

    async def sleeps(self, token: str) -> bool:
        return bool(carrying(f"sleep {token}"))

    async def run(self, agent: str, jid: str, script: str) -> tuple[int | None, str]:
        """What a shell script ended with, and printed."""
        stage = self.stages[agent]
        await stage.send([stage.shell(jid, script)])
        ended = await stage.ended(jid)
        run_dir = self.path / f"run/users/u/jobs/{jid}/1"
        return ended.exit_code, (run_dir / "stdout").read_text() + (run_dir / "stderr").read_text()


@asynccontextmanager
async def docker_world(
    path: Path, engine: TestEngine, policy: str = "", image: str = "bb:1"
) -> AsyncIterator[DockerWorld]:
    world = DockerWorld(path, engine, policy, image)
    try:
        yield world
    finally:
        for stage in world.stages.values():
            await stage.close()
    assert engine.containers() == []


@asynccontextmanager
async def living(world: DockerWorld, agent: str = "a", **environment: object) -> AsyncIterator[Handle]:
    """An agent that has called."""
    driver = world.driver()
    await world.stage(agent)
    handle = await driver.launch(world.spec(agent, **environment))
    try:
        await world.hello(agent, 1)
        yield handle
    finally:
        await driver.stop(handle, grace_secs=20)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
async def test_contract(tmp_path: Path, engine: TestEngine, step: Step) -> None:
    await exercise(lambda: docker_world(tmp_path, engine), step)
