"""Inside a Slurm job: takes the claim, runs the attempt, keeps its limits, writes its record.

The batch script (`slurm_text.SCRIPT`) ends in `main`. What is to be run stands in the file that
`SIREPO_JOBS_BATCH` names; a task of an array, or an allocation that several attempts share, works off its
own run dirs one after the other. It needs nothing but the shared file system: no agent, no network.
"""

import os
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from typing import Final

from sirepo_jobs.agents import exit_file, process, slurm_files
from sirepo_jobs.agents.birth import Births, Busy
from sirepo_jobs.agents.child import Child, report
from sirepo_jobs.agents.nursery import Nursery
from sirepo_jobs.agents.slurm_files import Owner
from sirepo_jobs.agents.words import Over, Spawn
from sirepo_jobs.reasons import Reason
from sirepo_jobs.slurm_options import MARGIN_SECS
from sirepo_jobs.slurm_text import NOTHING_TO_DO

#: Names of ours that jobs do not see.
_OURS: Final = (
    "SIREPO_JOBS_BATCH", "SIREPO_JOBS_PAYLOAD", "SIREPO_JOBS_LIB", "SIREPO_JOBS_MODULES",
    "SIREPO_JOBS_WARNING_SECS", "SIREPO_JOBS_PYTHONPATH",
)  # fmt: skip
_RETRY_SECS: Final = 1.0


class Payload:
    """One Slurm job, or one task of an array."""

    def __init__(self, batch: slurm_files.BatchFile) -> None:
        self._batch = batch
        self._slurm_id = slurm_id(dict(os.environ))
        names = [name for name in os.environ if name not in _OURS]
        # The agent cleaned the environment before sbatch; the rest is Slurm's and the site's.
        self._births = Births(batch.run_root, os.environ, names)
        self._nursery = Nursery()
        self._waker, self._wake = socket.socketpair()
        self._poll = select.poll()
        self._poll.register(self._waker.fileno(), select.POLLIN)
        self._ticket = 0
        self._grace_secs = 30.0
        #: Nothing begins any more.
        self._ending = False
        self._out_of_time = False
        #: What it runs is to stand still, and whether it does.
        self._pause = self._paused = False
        #: Seconds between the walltime warning and the end.
        self._warning_secs = float(os.environ.get("SIREPO_JOBS_WARNING_SECS", "0") or 0)

    def run(self) -> int:
        """Work off this task; the exit status of its last attempt that did not end well, else 0."""
        self._listen()
        code = NOTHING_TO_DO
        for run_dir in self._batch.tasks[int(os.environ.get("SLURM_ARRAY_TASK_ID", "0") or 0)]:
            if self._ending:
                break  # no claim is taken: whoever waits for it hears that it has not begun
            path = f"{self._batch.run_root}/{run_dir}"
            job = slurm_files.read_job(path)
            if job is None or not self._claim(path):
                continue
            slurm_files.ring(self._batch.bells, slurm_files.bell(job.jid, job.attempt, "begun"))
            over = self._attempt(job, path)
            slurm_files.ring(self._batch.bells, slurm_files.bell(job.jid, job.attempt, "over"))
            if code in (0, NOTHING_TO_DO):
                code = _status(over)
        return code

    def _listen(self) -> None:
        for sock in (self._waker, self._wake):
            sock.setblocking(False)
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGUSR1, self._warned)
        signal.signal(signal.SIGTSTP, self._stopped)
        signal.signal(signal.SIGCONT, self._continued)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _claim(self, path: str) -> bool:
        owner = Owner(
            slurm_id=self._slurm_id,
            nonce=slurm_files.new_nonce(),
            host=os.uname().nodename,
            pid=os.getpid(),
            at=time.time_ns() // 1000,
        )
        try:
            return slurm_files.claim(path, owner)
        except OSError as exc:
            _log(f"{path}: the claim cannot be taken: {exc.strerror}")
            return False

    def _attempt(self, job: Spawn, path: str) -> Over:
        self._ticket, self._grace_secs = job.ticket, job.grace_secs
        slurm_files.beat(path)
        while True:
            try:
                child = self._births.begin(job, path)
                break
            except Busy as exc:
                _log(str(exc))
                time.sleep(_RETRY_SECS)
        if isinstance(child, Over):
            if not child.began:
                # the claim is taken, so this is its end; say why, where anything can be written at all
                exit_file.write(path, job, child)
            return child
        self._nursery.take(child)
        self._pause = self._paused = False
        over = self._wait(job, path)
        slurm_files.pause(path, on=False)
        return over

    def _wait(self, job: Spawn, path: str) -> Over:
        next_beat = time.monotonic() + slurm_files.BEATS_SECS
        self._obey(job, path)
        while True:
            due = self._nursery.next_due()
            when = next_beat if due is None else min(due, next_beat)
            if self._poll.poll(max(0, int((when - time.monotonic()) * 1000) + 1)):
                with suppress(BlockingIOError):
                    self._waker.recv(4096)
            over: list[Child] = self._nursery.reap()
            if over:
                return report(over[0])
            self._obey(job, path)
            self._nursery.expire()
            now = time.monotonic()
            if now >= next_beat:
                slurm_files.beat(path)
                next_beat = now + slurm_files.BEATS_SECS

    # -- signals; what they ask for is done between two looks, never in the middle of one

    def _stop(self, *_: object) -> None:
        """scancel, by the agent or by anybody."""
        self._ending = True

    def _warned(self, *_: object) -> None:
        """The walltime ends soon: end it ourselves, so that there is a record of it."""
        self._ending = self._out_of_time = True

    def _stopped(self, *_: object) -> None:
        self._pause = True

    def _continued(self, *_: object) -> None:
        self._pause = False

    def _obey(self, job: Spawn, path: str) -> None:
        if self._ending:
            self._pause = False  # what stands still would not hear of it
        if self._pause is not self._paused and self._nursery.pause(self._ticket, on=self._pause):
            self._paused = self._pause
            slurm_files.pause(path, on=self._paused)
            slurm_files.ring(self._batch.bells, slurm_files.bell(job.jid, job.attempt, "paused"))
        if self._out_of_time:
            left = max(self._warning_secs - MARGIN_SECS, 1.0)
            self._nursery.stop(self._ticket, min(self._grace_secs, left), Reason.TIME_LIMIT)
        elif self._ending:
            self._nursery.stop(self._ticket, self._grace_secs)


def slurm_id(environ: dict[str, str]) -> str:
    """The id of this Slurm job as squeue shows it and scancel takes it.

    >>> slurm_id({"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1"})
    '7_1'
    """
    if "SLURM_ARRAY_JOB_ID" in environ:
        return f"{environ['SLURM_ARRAY_JOB_ID']}_{environ['SLURM_ARRAY_TASK_ID']}"
    return environ.get("SLURM_JOB_ID", "")


def _status(over: Over) -> int:
    """What Slurm is told, for its own accounting."""
    if over.exit_code is not None:
        return min(over.exit_code, 255)
    return 128 + over.signal if over.signal is not None else 1


def main() -> int:
    """The exit status of the Slurm job."""
    os.umask(0o077)
    process.set_name("sj-payload")
    process.become_reaper()
    # PYTHONPATH was ours up to here; jobs get the one that the site's modules made.
    os.environ["PYTHONPATH"] = os.environ.get("SIREPO_JOBS_PYTHONPATH", "")
    if not os.environ["PYTHONPATH"]:
        del os.environ["PYTHONPATH"]
    path = os.environ.get("SIREPO_JOBS_BATCH", "")
    batch = slurm_files.read_batch(path)
    if batch is None:
        # it was withdrawn, and everything about it is over
        _log(f"there is nothing to do: {path} is gone")
        return NOTHING_TO_DO
    return Payload(batch).run()


def _log(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} payload: {text}\n")
    sys.stderr.flush()
