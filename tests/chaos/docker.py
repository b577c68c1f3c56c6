"""Chaos on a real Docker engine: `python -m tests.chaos.docker [--jobs N] [--kills K] [--seed S]`.

A supervisor with the docker driver runs short jobs while engine, containerd, shims, launchers and containers
are killed, stopped and restarted. Each job writes down, outside of our files, that it began and ended;
what the service says at the end is held against that: no state may be wrong, no attempt may have begun
twice, no byte of output may be missing, nothing may be left running. Exits with 1 when anything is.
"""

import argparse
import asyncio
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from sirepo_jobs.client import Client, Job
from tests.agent_stage import carrying
from tests.bundle_stage import OUT, agent_bundle
from tests.docker_stage import TestEngine, an_engine, busybox_files, root_tar, write_policy

#: What infrastructure may say for a killed attempt; never the job's own fault.
PATIENCE_SECS = 900.0
#: A job: says that it began, writes lines and a last one without its end, says that it ended.
SCRIPT = """
echo "start $SIREPO_JOBS_JID $SIREPO_JOBS_ATTEMPT" >>/witness/truth
i=0; while [ $i -lt {lines} ]; do echo "line $i of {number}"; i=$((i+1)); done
sleep {secs}
printf 'last of {number}'
echo "end $SIREPO_JOBS_JID $SIREPO_JOBS_ATTEMPT" >>/witness/truth
exit {code}
"""


class Chaos:
    """One run."""

    def __init__(self, engine: TestEngine, path: Path, jobs: int, kills: int, seed: int) -> None:
        self.engine = engine
        self.path = path
        self.witness = path / "witness"
        self.jobs = jobs
        self.kills = kills
        self.random = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.plan: dict[str, tuple[int, bytes]] = {}
        self.client: Client

    # -- what is done to it

    async def kill_launcher(self) -> bool:
        """KILL to the first process of the container: it dies with everything in it."""
        for container in await self._running():
            pid = int(await self._docker("inspect", "-f", "{{.State.Pid}}", container))
            if pid > 0:
                os.kill(pid, signal.SIGKILL)
                return True
        return False

    async def remove_container(self) -> bool:
        """`docker rm -f`, as by a human (F111)."""
        for container in await self._running():
            await self._docker("rm", "-f", container)
            return True
        return False

    async def kill_shim(self) -> bool:
        """KILL to what holds the container (F107)."""
        return self._kill_by("containerd-shim", signal.SIGKILL)

    async def kill_containerd(self) -> bool:
        """KILL to the engine's containerd; the engine starts another."""
        return self._kill_by(f"{self.engine_home}/exec/containerd/containerd.toml", signal.SIGKILL)

    async def kill_engine(self) -> bool:
        """KILL to dockerd, and a start after a while (F107)."""
        os.kill(self.engine.pid, signal.SIGKILL)
        await asyncio.sleep(self.random.uniform(0, 1.5))
        await self._start_engine()
        return True

    async def stop_engine(self) -> bool:
        """STOP, and CONT after a while: it hangs (F106)."""
        pid = self.engine.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(self.random.uniform(0.5, 4))
        finally:
            os.kill(pid, signal.SIGCONT)
        return True

    async def restart_engine(self) -> bool:
        """In order, with and without --live-restore (F104, F105)."""
        pid = self.engine.pid
        os.kill(pid, signal.SIGTERM)
        async with asyncio.timeout(60):
            while _lives(pid):
                await asyncio.sleep(0.05)
        await self._start_engine()
        return True

    @property
    def engine_home(self) -> Path:
        return Path(self.engine.url.removeprefix("unix://")).parent

    def _kill_by(self, words: str, number: signal.Signals) -> bool:
        home = str(self.engine_home)
        for pid, command in carrying(home).items():
            if words in command and home in command:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
                    return True
        return False

    async def _start_engine(self) -> None:
        args = self.random.choice(("", "--live-restore"))
        for _ in range(5):
            try:
                await asyncio.to_thread(self.engine.start, DEV_DOCKER_ARGS=args)
            except subprocess.CalledProcessError:
                continue
            return
        raise AssertionError("the engine does not start any more")

    async def _docker(self, *words: str) -> str:
        return await asyncio.to_thread(self.engine.docker, *words)

    async def _running(self) -> list[str]:
        try:
            return (await self._docker("ps", "-q", "--no-trunc")).split()
        except subprocess.CalledProcessError:
            return []

    # -- the run

    def submit(self) -> None:
        """All jobs, in a few batches."""
        specs, texts = [], []
        for number in range(self.jobs):
            lines = self.random.choice((0, 1, 20, 400))
            code = self.random.choice((0, 0, 0, 1, 3, 42))
            text = "".join(f"line {i} of {number}\n" for i in range(lines)) + f"last of {number}"
            script = SCRIPT.format(
                lines=lines, number=number, code=code,
                secs=round(self.random.uniform(0, 0.8), 2),
            )  # fmt: skip
            specs.append(
                {
                    "command": ["sh", "-c", script], "driver": "docker", "image": "bb:1", "max_attempts": 100,
                    "retry_on": ["AGENT_LOST", "NODE_FAILED", "START_FAILED", "LAUNCH_FAILED"],
                    "mounts": [f"{self.witness}:/witness:rw"], "limits": {"grace": "1s"},
                }
            )  # fmt: skip
            texts.append((code, text.encode()))
        for job, plan in zip(self.client.submit(specs), texts, strict=True):
            self.plan[job.jid] = plan

    async def nemesis(self) -> None:
        """Kills, each after some more jobs have ended, so that there is always something to lose."""
        acts: list[Callable[[], Awaitable[bool]]] = [
            self.kill_launcher, self.kill_launcher, self.remove_container, self.kill_shim,
            self.kill_containerd,
            self.kill_engine, self.stop_engine, self.restart_engine,
        ]  # fmt: skip
        per_kill = self.jobs * 0.9 / self.kills
        while sum(self.done.values()) < self.kills:
            wanted = sum(self.done.values()) * per_kill
            while self.ended() < min(wanted, self.jobs - 8):
                await asyncio.sleep(0.1)
            act = self.random.choice(acts)
            await asyncio.sleep(self.random.uniform(0, 1.0))
            if await act():
                self.done[act.__name__] += 1
                print(
                    f"{sum(self.done.values())}: {act.__name__}; {self.ended()} jobs have ended", flush=True
                )

    def ended(self) -> int:
        """Jobs whose end is written down by themselves."""
        return len(set(re.findall(r"^end (\S+)", self.truth(), re.MULTILINE)))

    def truth(self) -> str:
        """What the jobs wrote down."""
        file = self.witness / "truth"
        return file.read_text() if file.exists() else ""

    async def wait(self) -> None:
        """Until every job has ended."""
        deadline = time.monotonic() + PATIENCE_SECS
        for jid in self.plan:
            while not (await asyncio.to_thread(self.client.wait, jid, timeout=30)).ended:
                assert time.monotonic() < deadline, f"{jid} does not end: {self.client.explain(jid)}"

    # -- what came of it

    def judge(self) -> list[str]:
        """Everything that is wrong."""
        wrong: list[str] = []
        words = Counter(self.truth().splitlines())
        wrong += [f"happened {count} times: {line}" for line, count in words.items() if count > 1]
        for jid, (code, text) in self.plan.items():
            job = self.client.get(jid)
            wrong += [f"{jid}: {what}" for what in self._judge(job, code, text, words)]
        return wrong

    def _judge(self, job: Job, code: int, text: bytes, words: Counter[str]) -> list[str]:
        state = "completed" if code == 0 else "error"
        wrong = []
        if (job.state, job.exit_code, job.signal) != (state, code, None):
            wrong.append(
                f"is {job.state}, exit_code={job.exit_code}, {job.signal=}, {job.reason}: {job.situation}"
            )
        for word in ("start", "end"):
            if words[f"{word} {job.jid} {job.attempt}"] != 1:
                wrong.append(f"attempt {job.attempt} has no {word} of its own")
        said = b"".join(self.client.logs(job.jid))
        if said != text:
            wrong.append(f"stdout has {len(said)} bytes, not {len(text)}")
        later = [
            line
            for line in words
            if line.startswith(f"end {job.jid} ") and not line.endswith(f" {job.attempt}")
        ]
        # An attempt that had written its end and was killed before its exit was known may be tried again; the
        # service cannot know better. It must be rare, and it is counted.
        self.done["killed between last word and exit"] += len(later)
        return wrong


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


async def run(jobs: int, kills: int, seed: int) -> int:
    """The whole of it; the exit status."""
    agent_bundle()
    with (
        tempfile.TemporaryDirectory(prefix="docker-chaos.") as folder,
        an_engine(Path(folder, "engine")) as engine,
    ):
        path = Path(folder)
        engine.make_image("bb:1", root_tar(busybox_files()), "ENV PATH=/bin")
        chaos = Chaos(engine, path, jobs, kills, seed)
        chaos.witness.mkdir()
        chaos.witness.chmod(0o777)
        rule = f'pull = false\ncpus = 2\n[[mounts]]\npath = "{chaos.witness}"\nwritable = true'
        policy = write_policy(path / "docker.toml", {"here": engine}, rule)
        policy.write_text(policy.read_text().replace("\ncpus = 2\nmemory", "\ncpus = 4\nmemory"))
        root = path / "root"
        env = {
            **os.environ, "SIREPO_JOBS_DRIVERS": "docker", "SIREPO_JOBS_DOCKER_FILE": str(policy),
            "SIREPO_JOBS_BUNDLE_DIR": str(OUT), "SIREPO_JOBS_ROOT": str(root),
        }  # fmt: skip
        program = str(Path(sys.executable).parent / "sirepo-jobs")
        with (path / "up.log").open("wb") as log:
            up = await asyncio.create_subprocess_exec(
                program, "up", "--port", "0", stdout=asyncio.subprocess.PIPE, stderr=log, env=env
            )
            assert up.stdout is not None
            while b"listening on" not in (line := await up.stdout.readline()):
                assert line, (path / "up.log").read_text()[-2000:]
            url = line.split()[-1].decode()
            began = time.monotonic()
            with Client(url, (root / "token").read_text().strip()) as client:
                chaos.client = client
                await asyncio.to_thread(chaos.submit)
                await chaos.nemesis()
                await chaos.wait()
                wrong = await asyncio.to_thread(chaos.judge)
            down = await asyncio.create_subprocess_exec(program, "down", "--stop-agents", env=env)
            await down.wait()
            await up.wait()
        wrong += [f"left over: {command}" for command in carrying(str(chaos.witness)).values()]
        wrong += [f"container left over: {container}" for container in engine.containers()]
        attempts = len(re.findall(r"^start", chaos.truth(), re.MULTILINE))
        print(f"{jobs} jobs, {attempts} attempts, {time.monotonic() - began:.0f} s, seed {seed}")
        print("\n".join(f"  {count:4} {what}" for what, count in sorted(chaos.done.items())))
        print("\n".join(f"WRONG {what}" for what in wrong) or "nothing wrong")
        if wrong:
            print((path / "up.log").read_text()[-3000:], file=sys.stderr)
        return 1 if wrong else 0


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--kills", type=int, default=110)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    told = parser.parse_args()
    return asyncio.run(run(told.jobs, told.kills, told.seed))


if __name__ == "__main__":
    sys.exit(main())
