"""Gives attempts to Slurm: those that ask for the same together, written down before sbatch is run."""

import asyncio
import contextlib
import os
import sys
import time
from pathlib import Path
from typing import Final, NamedTuple

from sirepo_jobs.agents import bundles, slurm_batch, slurm_files
from sirepo_jobs.agents.slurm_batch import Batch
from sirepo_jobs.agents.slurm_book import Book, Submission, mark
from sirepo_jobs.reasons import Reason
from sirepo_jobs.slurm_options import SlurmOptions, warning_secs
from sirepo_jobs.slurm_text import PREFIX, SCRIPT, parse_submitted, sbatch

#: sbatch runs at once: one that hangs shall not stop the others.
SUBMITTERS: Final = 4


class _Key(NamedTuple):
    """What attempts must have in common to go together."""

    options: SlurmOptions
    grace_secs: float


class Submitter:
    """One of several loops that run sbatch."""

    def __init__(self, book: Book) -> None:
        self._book = book

    async def run(self) -> None:
        """Until canceled."""
        while True:
            submission = self._next_submission()
            if submission is None:
                self._book.work.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._idle_secs()):
                        await self._book.work.wait()
                continue
            await self._sbatch(submission)
            self._book.flush()

    def _idle_secs(self) -> float:
        return min(0.5, max(self._book.gather_until - time.monotonic(), 0.02)) if self._book.unsent else 0.5

    def _next_submission(self) -> Submission | None:
        """What may go to Slurm now, marked as being asked."""
        now = time.monotonic()
        due = [
            one for one in self._book.submissions.values()
            if one.batch.phase is slurm_batch.Phase.WAITING and one.batch.due <= now and one.members
        ]  # fmt: skip
        if not due and not (self._book.unsent and now >= self._book.gather_until):
            return None
        if self._book.commands.submits.wait_secs() > 0:
            return None
        submission = due[0] if due else self._gather()
        if submission is not None:
            self._book.commands.submits.take()
            submission.batch = slurm_batch.asked(submission.batch)
        return submission

    def _gather(self) -> Submission | None:
        """The first that waits and those that ask for the same, as many as may go: a new submission."""
        room = self._book.policy.max_jobs - self._book.in_slurm
        # near the limit they wait for one another, so that each end does not bring one more sbatch
        if room <= 0 or room < min(len(self._book.unsent), self._book.policy.max_jobs // 10):
            return None
        first = next(iter(self._book.unsent.values()))
        key = _Key(first.options, first.spawn.grace_secs)
        pack_size = first.options.pack
        most = max(1, self._book.policy.max_array) * pack_size if first.options.array else pack_size
        company = [
            one for one in self._book.unsent.values() if _Key(one.options, one.spawn.grace_secs) == key
        ][: max(1, min(most, room))]
        for one in company:
            del self._book.unsent[one.spawn.ticket]
        dirs = [one.spawn.run_dir for one in company]
        tasks = [dirs[at : at + pack_size] for at in range(0, len(dirs), pack_size)]
        token = f"{PREFIX}{first.spawn.jid}-{first.spawn.attempt}-{mark(first.path)}"
        submission = Submission(token, f"{self._book.home}/{token}", tasks, Batch())
        submission.options, submission.grace_secs = first.options, first.spawn.grace_secs
        for index, run_dirs in enumerate(tasks):
            for run_dir in run_dirs:
                self._book.join(self._book.by_run_dir[run_dir], submission, index)
        self._book.submissions[token] = submission
        return submission

    async def _sbatch(self, submission: Submission) -> None:
        try:
            self._write_down(submission)
        except OSError as exc:
            text = f"cannot write down what is given to Slurm: {exc.strerror}"
            submission.batch = slurm_batch.postponed(submission.batch, text, time.monotonic())
            for attempt in submission.members.values():
                self._book.situate(attempt, text=text, reason=Reason.DISK_FULL)
            return
        packed = max(len(dirs) for dirs in submission.tasks)
        argv = sbatch(
            self._book.policy,
            submission.token,
            submission.options,
            output=f"{submission.directory}/out",
            grace_secs=submission.grace_secs,
            tasks=len(submission.tasks),
            packed=packed,
        )
        said = await self._book.commands.run(
            "submits",
            argv,
            SCRIPT.encode(),
            env={
                "SIREPO_JOBS_BATCH": f"{submission.directory}/batch.json",
                "SIREPO_JOBS_PAYLOAD": "\n".join(payload_argv()),
                "SIREPO_JOBS_LIB": os.environ.get("PYTHONPATH", ""),
                "SIREPO_JOBS_MODULES": " ".join(self._book.policy.modules),
                "SIREPO_JOBS_WARNING_SECS": str(warning_secs(submission.options, submission.grace_secs)),
            },
        )
        answer = parse_submitted(said.rc, said.out, said.err)
        others = any(one.life.slurm_id for one in self._book.attempts.values())
        before = submission.batch
        self._book.move(submission, slurm_batch.answered(before, answer, time.monotonic(), others=others))

    def _write_down(self, submission: Submission) -> None:
        """Before sbatch is run, so that whoever comes after us knows of it (C1)."""
        os.makedirs(submission.directory, 0o700, exist_ok=True)
        file = slurm_files.BatchFile(
            token=submission.token,
            tasks=submission.tasks,
            run_root=self._book.spec.run_root,
            bells=self._book.bells,
            bundle=bundles.own(),
        )
        if submission.batch.tries == 1:
            slurm_files.put(f"{submission.directory}/batch.json", file, sync=True)
        slurm_files.put(f"{submission.directory}/state.json", slurm_files.BatchState(asked=True), sync=True)


def payload_argv() -> list[str]:
    """How this very program is started with the verb that compute nodes want."""
    words = Path("/proc/self/cmdline").read_bytes().decode(errors="surrogateescape").split("\0")[:-1]
    if words[-1:] in (["start"], ["run"]):
        return [*words[:-1], "payload"]
    return [sys.executable, "-P", "-m", "sirepo_jobs.agents", "payload"]
