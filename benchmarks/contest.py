"""Rounds: every contestant starts, does its workloads, ends; then the next one; then all again.

Interleaved, because the machine is shared and a slow minute must not be one contestant's alone.
"""

import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cpu import keep_orphans, tree_secs
from .environment import HOME, REPO, NotHere, python_of
from .roster import COUNTS, Contestant

CONTESTANTS = Path(__file__).parent / "contestants"
#: Start or one workload of the slowest peer.
_ANSWER_SECS = 600.0


@dataclass(frozen=True)
class Sample:
    """One workload of one contestant in one round."""

    contestant: str
    workload: str
    round: int
    count: int
    #: Of the whole workload; for `latency` of each job.
    secs: list[float]
    #: User and system time of all its processes, jobs included, per item.
    cpu_us: float


class Broken(Exception):
    """A contestant ended or kept silent; the text has the end of what it said."""


class _Running:
    """A contestant that was started."""

    def __init__(self, contestant: Contestant, python: str, log: Path, place: str) -> None:
        self.log = log
        environ = {name: value for name, value in os.environ.items() if not name.startswith("SIREPO_JOBS_")}
        environ |= contestant.environ | {"TMPDIR": place}
        # what it starts finds its own environment's programs
        environ["PATH"] = f"{Path(python).parent}:{environ['PATH']}"
        if contestant.kind == "ours":
            environ["PYTHONPATH"] = str(REPO)
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                [python, str(CONTESTANTS / contestant.script), *contestant.words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environ,
                preexec_fn=keep_orphans,
            )

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], _ANSWER_SECS)
        line = self.process.stdout.readline() if ready else b""
        if not line:
            tail = self.log.read_text(errors="replace").strip().splitlines()[-1:]
            raise Broken(tail[0] if tail else f"no answer within {_ANSWER_SECS:g} s")
        return dict(json.loads(line))

    def do(self, workload: str, count: int) -> tuple[list[float], float]:
        """The times, and the CPU time per item in microseconds."""
        assert self.process.stdin is not None
        before = tree_secs(self.process.pid)
        self.process.stdin.write(json.dumps({"do": workload, "count": count}).encode() + b"\n")
        self.process.stdin.flush()
        secs = self.answer()["secs"]
        cpu_us = (tree_secs(self.process.pid) - before) / count * 1e6
        return secs if isinstance(secs, list) else [secs], cpu_us

    def end(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


def play(
    contestants: list[Contestant], workloads: list[str], rounds: int, *, quick: bool
) -> tuple[list[Sample], dict[str, str]]:
    """All samples, and why some contestants have none.

    What contestants write stays until all is over: an ext4 without a journal looks, for minutes, at each file
    that was deleted whenever one is made, and whoever comes after pays for it.
    """
    HOME.mkdir(exist_ok=True)
    place = tempfile.mkdtemp(prefix="bench-")
    os.chmod(place, 0o711)  # servers of peers may run as other users
    _spread(place)
    try:
        return _play(contestants, workloads, rounds, place, quick=quick)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _spread(place: str) -> None:
    """Let directories made here lie apart from each other and from others' (`chattr +T`), where ext4 can."""
    if chattr := shutil.which("chattr"):
        subprocess.run([chattr, "+T", place], stderr=subprocess.DEVNULL)


def _play(
    contestants: list[Contestant], workloads: list[str], rounds: int, place: str, *, quick: bool
) -> tuple[list[Sample], dict[str, str]]:
    samples: list[Sample] = []
    left_out: dict[str, str] = {}
    pythons: dict[str, str] = {}
    for contestant in contestants:
        try:
            pythons[contestant.name] = python_of(contestant)
        except NotHere as exc:
            left_out[contestant.name] = str(exc)
    for number in range(1, rounds + 1):
        for contestant in contestants:
            if contestant.name in left_out:
                continue
            try:
                samples += _turn(contestant, pythons[contestant.name], workloads, number, place, quick=quick)
            except Broken as exc:
                left_out[contestant.name] = f"round {number}: {exc}"
    return samples, left_out


def _turn(
    contestant: Contestant, python: str, workloads: list[str], number: int, place: str, *, quick: bool
) -> list[Sample]:
    samples = []
    running = _Running(contestant, python, HOME / f"{contestant.script}.log", place)
    try:
        running.answer()
        for workload in contestant.workloads:
            if workload not in workloads:
                continue
            count = max(int(COUNTS[workload][quick] * contestant.share), 10)
            secs, cpu_us = running.do(workload, count)
            samples.append(Sample(contestant.name, workload, number, count, secs, cpu_us))
            print(f"round {number}: {contestant.name}: {workload}: {_short(samples[-1])}", file=sys.stderr)
    finally:
        running.end()
    return samples


def _short(sample: Sample) -> str:
    if sample.workload == "latency":
        return f"{sorted(sample.secs)[len(sample.secs) // 2] * 1e3:.2f} ms, {sample.cpu_us:.0f} us of CPU"
    return f"{sample.count / sample.secs[0]:.0f} per s, {sample.cpu_us:.0f} us of CPU"
