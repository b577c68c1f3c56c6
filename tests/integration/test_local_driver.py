"""The local driver keeps the drivers' contract, and what is its own."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from sirepo_jobs.driver import AgentSpec, Environment, Fate, Handle
from sirepo_jobs.drivers.local import LocalDriver
from sirepo_jobs.errors import LaunchError
from sirepo_jobs.protocol import Hello
from tests.agent_stage import Stage, appears, carrying, comm_of, gone, open_files, scene
from tests.driver_contract import STEPS, Step, exercise


class LocalWorld:
    """Homes and run dirs below one directory, one stage per agent."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.stages: dict[str, Stage] = {}

    def driver(self) -> LocalDriver:
        return LocalDriver(launch_secs=30)

    def spec(self, agent: str) -> AgentSpec:
        return AgentSpec(
            agent=agent,
            environment=Environment(driver="local", user="u"),
            url=f"unix:{self._path}/{agent}.socket",
            token="token-of-tests",
            home=f"{self._path}/{agent}",
            run_root=f"{self._path}/run",
        )

    def broken(self, spec: AgentSpec) -> AgentSpec:
        return msgspec.structs.replace(spec, home="/proc/no/such/home")

    async def hello(self, agent: str, count: int) -> Hello:
        if agent not in self.stages:
            self.stages[agent] = Stage(self._path / f"{agent}.socket")
            await self.stages[agent].listen()
        return await self.stages[agent].connected(count)

    async def kill(self, handle: Handle) -> None:
        pid = int(handle.data["pid"])
        os.kill(pid, signal.SIGKILL)
        await gone(pid)

    async def run_sleep(self, agent: str, token: str) -> None:
        stage = self.stages[agent]
        script = f"trap '' TERM; setsid sleep {token} & touch up; sleep {token}; sleep {token}"
        await stage.send([stage.shell(f"sleep{token}", script)])
        await appears(self._path / f"run/users/u/jobs/sleep{token}/1/up")

    async def sleeps(self, token: str) -> bool:
        return bool(carrying(f"sleep {token}"))


@asynccontextmanager
async def local_world(path: Path) -> AsyncIterator[LocalWorld]:
    world = LocalWorld(path)
    try:
        yield world
    finally:
        for stage in world.stages.values():
            await stage.close()
    assert not carrying(str(path))


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
async def test_contract(tmp_path: Path, step: Step) -> None:
    await exercise(lambda: local_world(tmp_path), step)


async def test_launched_many_times_at_once_there_is_one(tmp_path: Path) -> None:
    async with local_world(tmp_path) as world:
        driver = world.driver()
        handles = await asyncio.gather(*(driver.launch(world.spec("a")) for _ in range(8)))
        assert len({handle.to_json() for handle in handles}) == 1
        await driver.stop(handles[0], grace_secs=20)


async def test_every_process_is_gone_after_stop(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        pids = [s.launcher, *s.helpers("sj-spawner"), *s.helpers("sj-agent")]
        assert len(pids) == 4
        assert [comm_of(pid) for pid in pids] == ["sj-launcher", "sj-spawner", "sj-spawner", "sj-agent"]
        assert s.handle is not None
        await s.driver.stop(s.handle, grace_secs=20)
        for pid in pids:
            await gone(pid)


async def test_recycled_pid_is_not_our_agent(tmp_path: Path) -> None:
    decoy = await asyncio.create_subprocess_exec("sleep", "1000", start_new_session=True)
    try:
        async with local_world(tmp_path) as world:
            driver = world.driver()
            good = await driver.launch(world.spec("a"))
            stolen = Handle(agent="a", driver="local", version=1, data={**good.data, "pid": decoy.pid})
            assert await driver.look(stolen) is Fate.GONE
            await driver.stop(good, grace_secs=20)
            await driver.stop(stolen, grace_secs=0)
            other_boot = Handle(agent="a", driver="local", version=1, data={**good.data, "boot_id": "x"})
            assert await driver.look(other_boot) is Fate.GONE
            await driver.stop(other_boot, grace_secs=0)
        assert decoy.returncode is None
    finally:
        decoy.kill()
        await decoy.wait()


async def test_a_launch_that_takes_too_long_has_failed(tmp_path: Path) -> None:
    async with local_world(tmp_path) as world:
        with pytest.raises(LaunchError) as caught:
            await LocalDriver(launch_secs=0.001).launch(world.spec("a"))
        assert caught.value.retry
        driver = world.driver()
        handle = await driver.launch(world.spec("a"))
        await driver.stop(handle, grace_secs=20)


def environ_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


async def test_supervisors_secrets_and_files_do_not_reach_the_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_SUPERVISOR", "s3cret")
    held = os.open("/dev/zero", os.O_RDONLY)
    os.set_inheritable(held, True)
    try:
        async with scene(tmp_path) as s:
            pids = (s.launcher, *s.helpers("sj-spawner"), *s.helpers("sj-agent"))
            assert [os.getsid(pid) for pid in pids] == [s.launcher] * 4
            files = {pid: open_files(pid) for pid in pids}
            assert not [pid for pid in pids if "/dev/zero" in files[pid]]
            # Or nobody could launch again while a spawner of a dead launcher ends its jobs.
            assert [pid for pid in pids if f"{s.home}/lock" in files[pid]] == [s.launcher]
            for pid in pids:
                assert b"s3cret" not in environ_of(pid)
                assert os.readlink(f"/proc/{pid}/cwd") in ("/", str(s.home))
    finally:
        os.close(held)


async def test_what_was_stopped_after_a_crash_is_told_truly_later(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        await s.stage.send([s.stage.run("j", ["sleep", "1000"])])
        await s.stage.started("j")
        os.kill(s.launcher, signal.SIGKILL)
        await gone(s.launcher)
        assert s.handle is not None
        await s.driver.stop(s.handle, grace_secs=1)
        await s.launch()
        exited = await s.stage.ended("j")
        # It was us who killed it, so its signal says nothing about the job.
        assert (exited.exit_code, exited.signal, exited.proof) == (None, None, "launcher_lost")


async def test_start_that_fails_says_why(tmp_path: Path) -> None:
    async with local_world(tmp_path) as world:
        spec = world.spec("a")
        (tmp_path / "a" / "journal").mkdir(parents=True)
        with pytest.raises(LaunchError, match="journal"):
            await world.driver().launch(spec)


async def test_in_the_foreground(tmp_path: Path) -> None:
    """`run`, for containers and service managers: ends with TERM, and `start` finds it."""
    async with local_world(tmp_path) as world:
        spec = world.spec("a")
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        command = (sys.executable, "-P", "-m", "sirepo_jobs.agents")
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*command, "run", stdin=pipe, stdout=pipe, env=env)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(msgspec.json.encode(spec))
        process.stdin.close()
        told = json.loads(await process.stdout.readline())
        assert told["pid"] == process.pid
        handle = await world.driver().launch(spec)
        assert handle.data["pid"] == process.pid
        second = await asyncio.create_subprocess_exec(*command, "run", stdin=pipe, stderr=pipe, env=env)
        _, err = await second.communicate(msgspec.json.encode(spec))
        assert (second.returncode, b"runs already" in err) == (1, True)
        process.terminate()
        assert await process.wait() == 0
        assert await world.driver().look(handle) is Fate.GONE


@pytest.mark.parametrize(("words", "given"), [((), b""), (("dance",), b"{}"), (("start",), b"no JSON")])
async def test_wrong_use_is_refused(words: tuple[str, ...], given: bytes) -> None:
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "sirepo_jobs.agents", *words, stdin=pipe, stderr=pipe, env=env
    )
    _, err = await process.communicate(given)
    assert process.returncode == 2
    assert err
