"""Chaos on a real Docker engine: `bin/docker-chaos [--jobs N] [--kills K] [--seed S]`.

A supervisor with the docker driver runs short jobs while engine, containerd, shims, launchers and containers
are killed, stopped and restarted. Each job writes down, outside of our files, that it began and ended;
what the service says at the end is held against that: no state may be wrong, no attempt may have begun
twice, no byte of output may be missing, nothing may be left running. Exits with 1 when anything is.
"""

import argparse
import asyncio
import random
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from sirepo_jobs.client import Client, Job
from tests.agent_stage import carrying
from tests.bundle_stage import agent_bundle
from tests.chaos.docker_acts import EngineActs
from tests.docker_door import a_door
from tests.docker_stage import an_engine, busybox_files, docker_service, root_tar, write_policy

PATIENCE_SECS = 900.0
#: After so many deaths of its agent a job is not tried again: `lifecycle.MAX_CRASHES`, said independently.
DEATHS = 3
#: A job: says that it began, writes lines and a last one without its end, says that it ended.
SCRIPT = """
echo "start $SIREPO_JOBS_JID $SIREPO_JOBS_ATTEMPT" >>/witness/truth
i=0; while [ $i -lt {lines} ]; do echo "line $i of {number}"; i=$((i+1)); done
sleep {secs}
printf 'last of {number}'
echo "end $SIREPO_JOBS_JID $SIREPO_JOBS_ATTEMPT" >>/witness/truth
exit {code}
"""


class Report(NamedTuple):
    """What came of one run."""

    jobs: int
    attempts: int
    kills: int
    secs: float
    counts: Counter[str]
    wrong: list[str]


class Chaos:
    """The jobs of one run, and what must have become of them."""

    def __init__(self, witness: Path, jobs: int, rand: random.Random) -> None:
        self.witness = witness
        self.jobs = jobs
        self.random = rand
        self.counts: Counter[str] = Counter()
        self.plan: dict[str, tuple[int, bytes]] = {}
        self.client: Client

    def submit(self, count: int) -> None:
        """So many more jobs, in one batch."""
        first = len(self.plan)
        count = min(count, self.jobs - first)
        if count <= 0:
            return
        specs, texts = [], []
        for number in range(first, first + count):
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

    async def nemesis(self, acts: EngineActs, kills: int) -> None:
        """Each act after some jobs have ended, and while others are there to be lost."""
        per_kill = self.jobs / kills
        while acts.kills < kills:
            wanted = int((acts.kills + 1) * per_kill) + 8
            await asyncio.to_thread(self.submit, wanted - len(self.plan))
            while self.ended() < min(acts.kills * per_kill, self.jobs - 8):
                await asyncio.sleep(0.1)
            await asyncio.sleep(self.random.uniform(0, 1.0))
            name = await acts.next()
            print(f"{acts.kills}: {name}; {self.ended()} of {len(self.plan)} jobs have ended", flush=True)
        await asyncio.to_thread(self.submit, self.jobs)

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
            while not (await asyncio.to_thread(self._ended, jid)):
                assert time.monotonic() < deadline, f"{jid} does not end: {self.client.explain(jid)}"

    def _ended(self, jid: str) -> bool:
        try:
            return self.client.wait(jid, timeout=30).ended
        except TimeoutError:
            return False

    # -- what came of it

    def judge(self) -> list[str]:
        """Everything that is wrong."""
        wrong: list[str] = []
        words = Counter(self.truth().splitlines())
        wrong += [f"happened {count} times: {line}" for line, count in words.items() if count > 1]
        for jid, (code, text) in self.plan.items():
            job = self.client.get(jid)
            judge = self._judge_poisoned if job.reason == "POISONED" else self._judge
            wrong += [f"{jid}: {what}" for what in judge(job, code, text, words)]
        return wrong

    def _judge(self, job: Job, code: int, text: bytes, words: Counter[str]) -> list[str]:
        state = "completed" if code == 0 else "error"
        self.counts[f"jobs that ended as {state}"] += 1
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
        self.counts["attempts killed between last word and exit"] += len(later)
        return wrong

    def _judge_poisoned(self, job: Job, code: int, text: bytes, words: Counter[str]) -> list[str]:
        """Right only after `DEATHS` attempts whose agent died, none of which has told an end."""
        self.counts["jobs that ended as POISONED: their agent was killed three times"] += 1
        path = f"/api/v1/jobs/{job.jid}/attempts"
        attempts = self.client.transport.call("GET", path)["attempts"]
        unknown = [one for one in attempts if one["exit_code"] is None and one["signal"] is None]
        deaths = [one for one in unknown if one["proof"] not in (None, "wait_status")]
        wrong = []
        if (job.state, job.exit_code, job.signal) != ("error", None, None):
            wrong.append(f"POISONED, but {job.state}, exit_code={job.exit_code}, {job.signal=}")
        if len(deaths) < DEATHS:
            wrong.append(f"POISONED after {len(deaths)} deaths of its agent: {attempts}")
        said = b"".join(self.client.logs(job.jid))
        if not text.startswith(said):
            wrong.append(f"stdout of {len(said)} bytes is no beginning of what it writes")
        if words[f"end {job.jid} {job.attempt}"]:
            self.counts["attempts killed between last word and exit"] += 1
        return wrong


async def run(jobs: int, kills: int, seed: int) -> Report:
    """The whole of it."""
    agent_bundle()
    rand = random.Random(seed)
    with (
        tempfile.TemporaryDirectory(prefix="docker-chaos.") as folder,
        an_engine(Path(folder, "engine")) as engine,
    ):
        path = Path(folder)
        engine.make_image("bb:1", root_tar(busybox_files()), "ENV PATH=/bin")
        chaos = Chaos(path / "witness", jobs, rand)
        chaos.witness.mkdir()
        chaos.witness.chmod(0o777)
        began = time.monotonic()
        async with a_door(path / "door", Path(engine.url.removeprefix("unix://"))) as door:
            acts = EngineActs(engine, door, rand)
            async with docker_service(path, _policy(path, chaos.witness)) as client:
                chaos.client = client
                await chaos.nemesis(acts, kills)
                await chaos.wait()
                wrong = await asyncio.to_thread(chaos.judge)
            counts = chaos.counts + acts.done + Counter({"answers that were lost": door.lost})
        wrong += [f"left over: {command}" for command in carrying(str(chaos.witness)).values()]
        wrong += [f"container left over: {container}" for container in engine.containers()]
        if wrong:
            sys.stderr.write((path / "up.log").read_text()[-3000:])
        attempts = len(re.findall(r"^start", chaos.truth(), re.MULTILINE))
        return Report(jobs, attempts, acts.kills, time.monotonic() - began, counts, wrong)


def _policy(path: Path, witness: Path) -> Path:
    rule = f'pull = false\ncpus = 2\n[[mounts]]\npath = "{witness}"\nwritable = true'
    policy = write_policy(path / "docker.toml", {}, rule)
    with policy.open("a") as file:
        file.write(f'[engines.here]\nurl = "unix://{path}/door"\ncpus = 4\nmemory = "1 GiB"\n')
    return policy


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--kills", type=int, default=110)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    told = parser.parse_args()
    report = asyncio.run(run(told.jobs, told.kills, told.seed))
    print(
        f"{report.jobs} jobs, {report.attempts} attempts, {report.kills} kills, {report.secs:.0f} s,"
        f" seed {told.seed}"
    )
    print("\n".join(f"  {count:4} {what}" for what, count in sorted(report.counts.items())))
    print("\n".join(f"WRONG {what}" for what in report.wrong) or "nothing wrong")
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
