"""A real sshd with real users for tests, and drivers that log in there."""

import asyncio
import contextlib
import hmac
import os
import re
import shutil
import struct
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sirepo_jobs.cluster import ClusterPolicy, SlurmPolicy, SshPolicy
from sirepo_jobs.driver import AgentSpec, Environment, Handle
from sirepo_jobs.drivers.sbatch import SbatchDriver
from sirepo_jobs.protocol import Hello
from tests.agent_stage import Stage, appears, carrying, gone
from tests.bundle_stage import OUT, agent_bundle

ROOT = Path(__file__).parents[1]
SERVICE = str(ROOT / "bin" / "dev-services")


class Sshd:
    """What `dev-services sshd start` said, and what tests do to it."""

    def __init__(self, directory: str, words: dict[str, str]) -> None:
        self.directory = directory
        self.words = words
        self.password = words["password"]

    def user(self, name: str) -> str:
        """The account's full name."""
        return self.words["prefix"] + name

    def home(self, name: str) -> Path:
        return Path(self.words["homes"]) / self.user(name)

    def code(self, name: str) -> str:
        """The next one-time code (HOTP, RFC 4226) that the account's token shows."""
        counter = 0
        for line in Path(self.words["otp_file"]).read_text().splitlines():
            fields = line.split()
            if fields[1] == self.user(name) and len(fields) > 4:
                counter = int(fields[4]) + 1  # within the window, whichever way it counts
        digest = hmac.digest(bytes.fromhex(self.words["otp_secret"]), struct.pack(">Q", counter), "sha1")
        start = digest[-1] & 15
        return f"{(int.from_bytes(digest[start : start + 4]) & 0x7FFFFFFF) % 10**6:06d}"

    def share_bundles(self, account: str, root: Path) -> None:
        """Let a root have what other roots of the account have: an upload takes a second or two."""
        user = self.user(account)
        shared = self.home(account) / "bundles"
        for directory in (shared, root):
            directory.mkdir(mode=0o700, exist_ok=True)
            shutil.chown(directory, user, user)
        (root / "bundles").symlink_to(shared)

    def logins(self) -> int:
        """Connections that sshd accepted so far."""
        return len(re.findall(r"^Accepted (?!key )", Path(self.words["log"]).read_text(), re.MULTILINE))

    def policy(
        self, name: str = "dev", *, user: str = "key", processes: bool = True, **ssh: Any
    ) -> ClusterPolicy:
        """A cluster of this sshd, for one account, with processes for jobs and a root of its own."""
        return ClusterPolicy(
            name=name,
            ssh=SshPolicy(
                **{
                    "host": self.words["host"],
                    "port": int(self.words["port"]),
                    "known_hosts": self.words["known_hosts"],
                    "username": self.user(user),
                    "key_file": self.words["key_file"],
                    "root": f"~/{uuid.uuid4().hex[:8]}",
                    **ssh,
                }
            ),
            slurm=SlurmPolicy(),
            processes=processes,
        )


@contextlib.contextmanager
def sshd_at(directory: str) -> Iterator[Sshd]:
    """Started for these tests, and removed."""
    started = subprocess.run([SERVICE, "sshd", "start", directory], capture_output=True, text=True)
    words = dict(line.split("=", 1) for line in started.stdout.splitlines() if "=" in line)
    if started.returncode or "prefix" not in words:
        why = f"sshd does not start: {started.stderr.strip()[-500:]}"
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)
    agent_bundle()
    try:
        yield Sshd(directory, words)
    finally:
        subprocess.run([SERVICE, "sshd", "remove", directory], check=True, capture_output=True)


class SshWorld:
    """One account, stages that its agents call, and as many drivers as are wanted."""

    def __init__(self, sshd: Sshd, path: Path, policy: ClusterPolicy, account: str = "key") -> None:
        self.sshd = sshd
        self.path = path
        self.policy = policy
        self.account = account
        self.stages: dict[str, Stage] = {}
        self.drivers: list[SbatchDriver] = []

    def driver(self) -> SbatchDriver:
        driver = SbatchDriver(
            clusters={self.policy.name: self.policy}, bundle_dir=OUT, state_dir=self.path / "state"
        )
        self.drivers.append(driver)
        return driver

    def environment(self) -> Environment:
        return Environment(driver="sbatch", user="ann", cluster=self.policy.name)

    def spec(self, agent: str) -> AgentSpec:
        return AgentSpec(
            agent=agent,
            environment=self.environment(),
            url=f"unix:{self.path}/{agent}.socket",
            token="token-of-tests",
            home="",
            run_root="",
        )

    def broken(self, spec: AgentSpec) -> AgentSpec:
        environment = Environment(driver="sbatch", user="ann", cluster="elsewhere")
        return msgspec.structs.replace(spec, environment=environment)

    async def listen(self, agent: str) -> Stage:
        if agent not in self.stages:
            self.stages[agent] = Stage(self.path / f"{agent}.socket")
            await self.stages[agent].listen()
        return self.stages[agent]

    async def hello(self, agent: str, count: int) -> Hello:
        return await (await self.listen(agent)).connected(count)

    async def kill(self, handle: Handle) -> None:
        pid = int(handle.data["pid"])
        os.kill(pid, 9)
        await gone(pid)

    @property
    def run_root(self) -> Path:
        root = self.policy.ssh.root.removeprefix("~/")
        return self.sshd.home(self.account) / root / "jobs"

    async def run_sleep(self, agent: str, token: str) -> None:
        stage = self.stages[agent]
        script = f"trap '' TERM; setsid sleep {token} & touch up; sleep {token}; sleep {token}"
        await stage.send([stage.shell(f"sleep{token}", script, run_dir=f"sleep{token}/1")])
        await appears(self.run_root / f"sleep{token}/1/up")

    async def sleeps(self, token: str) -> bool:
        return bool(carrying(f"sleep {token}"))

    async def close(self) -> None:
        for driver in self.drivers:
            await driver.close()
        for stage in self.stages.values():
            await stage.close()


@contextlib.asynccontextmanager
async def ssh_world(
    sshd: Sshd, path: Path, *, account: str = "key", bare: bool = False, **policy: Any
) -> AsyncIterator[SshWorld]:
    """A world that must be empty again at the end; unless `bare`, it shares its bundle with others."""
    world = SshWorld(sshd, path, sshd.policy(user=account, **policy), account)
    if not bare:
        sshd.share_bundles(account, world.run_root.parent)
    try:
        yield world
    finally:
        await world.close()
    root = f"{world.policy.ssh.root.removeprefix('~/')}/"
    try:
        async with asyncio.timeout(60):
            while carrying(root):  # what hears of the end of its connection ends too
                await asyncio.sleep(0.02)
    except TimeoutError:
        pytest.fail(f"left behind: {carrying(root)}")
