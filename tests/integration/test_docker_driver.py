"""The docker driver keeps the drivers' contract on a real engine, and what is its own."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from sirepo_jobs.client import Job
from sirepo_jobs.driver import AgentSpec, Environment, Fate, Handle
from sirepo_jobs.drivers.docker import DockerDriver
from sirepo_jobs.errors import LaunchError
from sirepo_jobs.protocol import Hello
from sirepo_jobs.reasons import Reason
from tests.agent_stage import Stage, appears, carrying, gone
from tests.bundle_stage import OUT, agent_bundle
from tests.docker_door import a_door
from tests.docker_stage import (
    TestEngine,
    an_engine,
    busybox_files,
    docker_service,
    musl_files,
    root_tar,
    write_policy,
)
from tests.driver_contract import STEPS, Step, exercise

pytestmark = [pytest.mark.real("docker"), pytest.mark.timeout(600)]


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

    def broken(self, spec: AgentSpec) -> AgentSpec:
        return msgspec.structs.replace(spec, home="/proc/no/such/home")

    async def hello(self, agent: str, count: int) -> Hello:
        return await (await self.stage(agent)).connected(count)

    async def stage(self, agent: str) -> Stage:
        """Where that agent calls."""
        if agent not in self.stages:
            (self.path / f"door-{agent}").mkdir(exist_ok=True)
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


#: What a job that wants out would try. Each line says `name: what came of it`.
PROBE = r"""
grep -E '^(Cap(Inh|Prm|Eff|Bnd|Amb)|NoNewPrivs|Seccomp):' /proc/self/status
say() { name=$1; shift; if "$@" >/dev/null 2>&1; then echo "$name: YES"; else echo "$name: no"; fi; }
say write_root touch /x
say write_etc touch /etc/x
say write_bundle touch /opt/sirepo_jobs/x
say mount_tmpfs mount -t tmpfs none /tmp
say mount_proc mount -t proc none /tmp
say read_agent_memory cat /proc/1/mem
say read_agent_environ cat /proc/1/environ
say list_agent_files ls /proc/1/fd
say read_kernel_log cat /proc/kmsg
say write_sysctl sh -c 'echo 1 >/proc/sys/kernel/panic'
say read_memory cat /proc/kcore
say kill_agent kill -9 1
say write_oom_adj_of_agent sh -c 'echo 0 >/proc/1/oom_score_adj'
say make_device dd if=/dev/vda of=/dev/null count=1
say become_root chmod u+s /bin/busybox
say write_cgroup sh -c 'echo 1 >/sys/fs/cgroup/memory/memory.oom_control'
say network nc -w 1 127.0.0.1 2376
say docker_socket test -e /var/run/docker.sock
say docker_socket2 test -e /run/docker.sock
echo interfaces: $(ls /sys/class/net)
echo sockets: $(grep -v ':' /proc/net/unix | grep -c docker)
"""


async def test_a_job_cannot_get_out(tmp_path: Path, engine: TestEngine) -> None:
    """No capability, no privilege, no network, no host, nothing of other users, no secret (Must show 3)."""
    secret = "s3cret-of-the-supervisor"
    async with docker_world(tmp_path, engine) as world:
        (tmp_path / "secret").write_text(secret)
        (tmp_path / "other").mkdir()
        (tmp_path / "other/file").write_text("of another user")
        async with living(world):
            code, said = await world.run("a", "probe", PROBE)
            told = dict(line.split(":", 1) for line in said.splitlines() if ":" in line)
            told = {name.strip(): value.strip() for name, value in told.items()}
            assert code == 0, said
            for name in ("Inh", "Prm", "Eff", "Bnd", "Amb"):
                assert int(told.pop(f"Cap{name}"), 16) == 0
            assert told.pop("NoNewPrivs") == "1"
            assert told.pop("Seccomp") == "2"
            assert told.pop("interfaces") == "lo"
            assert told.pop("sockets") == "0"
            assert len(told) == 19
            # To signal the agent is refused by the kernel or ignored by it: pid 1 of a namespace.
            assert told.pop("kill_agent") in ("YES", "no")
            assert {name for name, value in told.items() if value != "no"} == set()
            # Everything that it can read or find, and nothing of it is ours.
            code, said = await world.run(
                "a",
                "read",
                "env; cat /proc/*/cmdline /proc/*/environ 2>/dev/null;"
                f" cd {tmp_path}; cat secret other/file agents/a/agent.json; ls -a . agents;"
                " for file in agents/a/* /tmp/*; do test -f $file && timeout 5 cat $file; done; ls -aR /tmp",
            )
            assert secret not in said
            assert "of another user" not in said
            assert "token-of-tests" not in said
            assert "agent.json" in said
            # The agent lives still, whatever was sent to it.
            assert await world.run("a", "after", "echo still here") == (0, "still here\n")


async def test_what_the_engine_was_asked_for(tmp_path: Path, engine: TestEngine) -> None:
    """S50, by what the engine itself says of the container."""
    async with (
        docker_world(tmp_path, engine, 'memory = "256 MiB"\ncpus = 1\npids = 77') as world,
        living(world) as a,
    ):
        (found,) = json.loads(engine.docker("inspect", str(a.data["container"])))
        host = found["HostConfig"]
        assert (host["Memory"], host["MemorySwap"], host["NanoCpus"], host["PidsLimit"]) == (
            256 << 20,
            256 << 20,
            10**9,
            77,
        )
        assert (host["CapDrop"], host["CapAdd"], host["Privileged"]) == (["ALL"], [], False)
        assert host["SecurityOpt"] == ["no-new-privileges"]
        assert (host["NetworkMode"], host["IpcMode"], host["PidMode"]) == ("none", "private", "")
        assert host["ReadonlyRootfs"]
        assert found["Config"]["User"] == "65534:65534"
        assert found["Config"]["Image"].startswith("sha256:")
        assert a.data["image"] == found["Config"]["Image"]
        assert "token-of-tests" not in json.dumps(found)
        assert {mount["Destination"]: mount["RW"] for mount in found["Mounts"]} == {
            "/opt/sirepo_jobs": False,
            f"{tmp_path}/agents/a": True,
            f"{tmp_path}/run": True,
            f"{tmp_path}/door-a": False,
        }


async def test_bare_images_without_python(tmp_path: Path, engine: TestEngine) -> None:
    """Busybox alone, and as musl has it: read-only, uid 1234 whom nobody knows, no network (Must show 2)."""
    for image in ("bb:1", "musl:1"):
        (tmp_path / image).mkdir()
        async with docker_world(tmp_path / image, engine, 'ids = "1234:1234"', image) as world, living(world):
            code, said = await world.run(
                "a", "j", "id; touch here /tmp/there; ls; touch /x; echo $FROM_IMAGE$HOME"
            )
            assert code == 0
            assert said.startswith("uid=1234 gid=1234")
            assert "Read-only file system" in said
            assert said.count("here\n") == 1
            assert ("yes/tmp" in said) == (image == "bb:1")
            assert (tmp_path / image / "run/users/u/jobs/j/1/here").stat().st_uid == 1234


async def test_mounts_by_real_path_and_only_what_is_allowed(tmp_path: Path, engine: TestEngine) -> None:
    (tmp_path / "data/deep").mkdir(parents=True)
    (tmp_path / "data/deep/file").write_text("content\n")
    (tmp_path / "data").chmod(0o777)
    (tmp_path / "data2").mkdir()
    (tmp_path / "data/way-out").symlink_to(tmp_path / "data2")
    (tmp_path / "data/to-etc").symlink_to("/etc")
    rule = f'[[mounts]]\npath = "{tmp_path}/data"\nwritable = true'
    async with docker_world(tmp_path, engine, rule) as world:
        mounts = [f"{tmp_path}/data/deep:/in", f"{tmp_path}/data:/out:rw"]
        async with living(world, mounts=mounts):
            code, said = await world.run("a", "j", "cat /in/file; touch /out/new; touch /in/no")
            assert "content" in said
            assert "Read-only" in said
            assert (code, (tmp_path / "data/new").exists()) == (1, True)
        for asked in ("data2", "data/way-out", "data/to-etc", "data/../data2", "."):
            with pytest.raises(LaunchError, match=r"not below|never given") as caught:
                await world.driver().launch(world.spec("a", mounts=[f"{tmp_path}/{asked}:/in"]))
            assert not caught.value.retry


async def test_network_is_refused_unless_it_is_offered(tmp_path: Path, engine: TestEngine) -> None:
    async with docker_world(tmp_path, engine) as world:
        with pytest.raises(LaunchError, match="not offered") as caught:
            await world.driver().launch(world.spec("a", services=["network"]))
        assert caught.value.reason is Reason.UNSATISFIABLE
    engine.docker("network", "create", "--internal", "jobs")
    try:
        async with docker_world(tmp_path, engine, 'network = "jobs"') as world:
            async with living(world, services=["network"]):
                assert "eth0" in (await world.run("a", "j", "ls /sys/class/net"))[1]
            async with living(world, "b"):
                assert "eth0" not in (await world.run("b", "k", "ls /sys/class/net"))[1]
    finally:
        engine.docker("network", "rm", "jobs")


async def test_out_of_memory_is_said_exactly_when_the_kernel_says_it(
    tmp_path: Path, engine: TestEngine
) -> None:
    """Not for exit code 137, nor for somebody's KILL (F112)."""
    hog = "x=$(dd if=/dev/zero bs=1M count=900 2>/dev/null | tr '\\0' x)"
    scripts = {
        "hog": f"exec /bin/sh -c '{hog.replace(chr(39), chr(34))}'",
        "child": f"/bin/sh -c '{hog.replace(chr(39), chr(34))}'; exit $?",
        "says137": "exit 137",
        "killed": "kill -9 $$",
        "fine": "echo fine",
    }
    async with docker_world(tmp_path, engine, 'memory = "96 MiB"') as world, living(world):
        stage = world.stages["a"]
        told = {}
        for jid, script in scripts.items():
            await stage.send([stage.shell(jid, script)])
            ended = await stage.ended(jid)
            told[jid] = (ended.exit_code, ended.signal, ended.reason)
        assert told == {
            "hog": (None, 9, Reason.OUT_OF_MEMORY),
            "child": (137, None, Reason.OUT_OF_MEMORY),
            "says137": (137, None, None),
            "killed": (None, 9, None),
            "fine": (0, None, None),
        }


async def test_remote_engine_over_tls(tmp_path: Path, engine: TestEngine) -> None:
    """Bundle and files go into volumes there; nothing of this machine is mounted."""
    engine.docker("network", "create", "--internal", "far")
    try:
        policy = write_policy(tmp_path / "docker.toml", {"far": engine}, 'network = "far"', tls=True)
        driver = DockerDriver(policy_file=policy, bundle_dir=OUT)
        assert driver.remote
        spec = AgentSpec(
            agent="a",
            environment=Environment(driver="docker", user="u", image="bb:1"),
            url="wss://127.0.0.1:1/agent",
            token="token-of-tests",
            home=f"{tmp_path}/agents/a",
            run_root=f"{tmp_path}/run",
        )
        handle = await driver.launch(spec)
        assert await driver.launch(spec) == handle
        assert await driver.look(handle) is Fate.ALIVE
        (found,) = json.loads(engine.docker("inspect", str(handle.data["container"])))
        assert {mount["Type"] for mount in found["Mounts"]} == {"volume"}
        await driver.stop(handle, grace_secs=10)
        assert await driver.look(handle) is Fate.GONE
        assert engine.containers() == []
    finally:
        engine.docker("network", "rm", "far")


async def test_a_lost_reply_to_create_is_no_second_container(tmp_path: Path, engine: TestEngine) -> None:
    """The engine makes it and its answer never comes; whoever asks again finds what is there (F109)."""
    async with (
        a_door(tmp_path / "proxy", Path(engine.url.removeprefix("unix://"))) as door,
        docker_world(tmp_path, engine) as world,
    ):
        policy = world.policy_file.read_text().replace(engine.url, f"unix://{tmp_path}/proxy")
        world.policy_file.write_text(policy)
        driver = world.driver()
        await world.stage("a")
        door.lose_next_create()
        with pytest.raises(LaunchError) as caught:
            await driver.launch(world.spec("a"))
        assert caught.value.retry
        assert door.lost == 1
        assert len(engine.containers()) == 1
        handle = await driver.launch(world.spec("a"))
        await world.hello("a", 1)
        assert engine.containers() == [handle.data["container"]]
        await driver.stop(handle, grace_secs=10)


async def test_an_engine_that_hangs_says_nothing_and_others_go_on(
    tmp_path: Path, engine: TestEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unknown is not gone (F106); a user without containers there goes to another engine."""
    monkeypatch.setattr("sirepo_jobs.drivers.docker.engine.CALL_SECS", 3.0)

    async def says_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1 << 16):
            pass
        writer.close()

    hanging = await asyncio.start_unix_server(says_nothing, tmp_path / "deaf")
    async with hanging, docker_world(tmp_path, engine) as world:
        text = world.policy_file.read_text()
        deaf = f'[engines.deaf]\nurl = "unix://{tmp_path}/deaf"\ncpus = 64\nmemory = "64 GiB"\n'
        world.policy_file.write_text(text + deaf)
        driver = world.driver()
        assert driver.host_of("u") == "deaf"
        with pytest.raises(LaunchError) as caught:
            await driver.launch(world.spec("a"))
        assert caught.value.retry
        assert driver.host_of("u") == "here"
        handle = await driver.launch(world.spec("a"))
        assert driver.host_of("u") == "here"
        there = msgspec.structs.replace(handle, data={**handle.data, "engine": "deaf"})
        assert await driver.look(there) is Fate.UNKNOWN
        assert await driver.look(handle) is Fate.ALIVE
        await driver.stop(handle, grace_secs=10)


async def test_pools_keep_users_apart_and_a_running_agent_where_it_is(
    tmp_path: Path, engine: TestEngine
) -> None:
    """Whoever is in a pool is on its engines alone; an agent of before goes on until it is gone (SIR-42)."""
    async with docker_world(tmp_path, engine) as world:
        two = {"here": engine, "far": engine}
        pools = (
            '[pools.gold]\nengines = ["far"]\nusers = ["u"]\n[pools.rest]\nengines = ["here"]\nusers = []\n'
        )
        async with living(world) as before:
            assert before.data["engine"] == "here"
            world.policy_file = write_policy(tmp_path / "docker.toml", two, pools)
            driver = world.driver()
            assert driver.remember("u", before) == "here"
            assert await driver.look(before) is Fate.ALIVE
            async with living(world, "b") as fresh:
                assert fresh.data["engine"] == driver.host_of("u") == "far"
            await driver.stop(before, grace_secs=20)
            assert await driver.look(before) is Fate.GONE
        with pytest.raises(LaunchError, match="user 'v' is in no pool") as caught:
            await driver.launch(world.spec("c", user="v"))
        assert caught.value.retry


async def test_as_a_whole(tmp_path: Path, engine: TestEngine) -> None:
    """Through service, supervisor and engine: output, ends with their reasons."""
    policy = write_policy(tmp_path / "docker.toml", {"here": engine}, "pull = false")
    base = {"driver": "docker", "image": "bb:1"}
    async with docker_service(tmp_path, policy) as client:

        def run(**spec: object) -> Job:
            return client.wait(client.submit({**base, **spec}).jid, timeout=60)

        def work() -> None:
            job = run(command=["sh", "-c", "printf hello; exit 3"])
            assert (job.state, job.exit_code, job.reason) == ("error", 3, "EXIT_NONZERO")
            assert b"".join(client.logs(job.jid)) == b"hello"
            lost = [run(command=["true"], image="none:1") for _ in range(2)]
            assert {(job.state, job.reason) for job in lost} == {("error", "IMAGE_PULL_FAILED")}
            many = client.submit([{**base, "command": ["true"], "mounts": ["/etc:/in"]}] * 5)
            ended = [client.wait(one.jid, timeout=60) for one in many]
            assert {(job.state, job.reason) for job in ended} == {("error", "UNSATISFIABLE")}
            assert "/etc is never given to containers" in ended[0].situation

        await asyncio.to_thread(work)
    assert engine.containers() == []
