"""`run`: hand in a job, show its output live, exit as it did."""

import signal
import sys
import threading
import time
from collections.abc import Iterable
from typing import Any, Literal

import click

from sirepo_jobs.client import Client, Job, exit_status
from sirepo_jobs.errors import Error

from .render import safe
from .screen import STDERR, STDOUT, Screen
from .spec_options import make_spec, spec_options
from .surroundings import LONG_PATIENCE_SECS, Surroundings, options
from .trouble import EXIT_INTERRUPTED, EXIT_OURS, EXIT_PIPE, Trouble, tell

#: A job that reports its progress a hundred times a second is looked at less often.
_LOOK_SECS = 0.1


@click.command("run", context_settings={"allow_interspersed_args": False})
@spec_options
@click.option("--no-progress", is_flag=True, help="Show no progress.")
@options
@click.argument("command", nargs=-1, type=click.UNPROCESSED, required=True)
@click.pass_obj
def run_command(here: Surroundings, /, command: tuple[str, ...], no_progress: bool, **described: Any) -> int:
    """Run a job to its end: its output is ours, its exit status too.

    128+n when signal n ended it, 124 for the time limit, 126 and 127 for a command that cannot be
    executed or found, 125 for failures of ours. Ctrl-C leaves the job running and says how to find it.

    \b
    sirepo-jobs run --time-limit 10m -- python simulate.py --steps 100
    """
    client = here.client()
    key = described.pop("idempotency_key")
    jid = client.submit(make_spec(command, described), idempotency_key=key).jid
    client.transport.patience_secs = LONG_PATIENCE_SECS
    follower = Follower(client, jid, Screen(status=not no_progress))
    try:
        job = follower.follow()
    except KeyboardInterrupt:
        follower.screen.done()
        say_it_goes_on(jid)
        return EXIT_PIPE if follower.nobody_reads else EXIT_INTERRUPTED
    follower.screen.done()
    for trouble in follower.troubles:
        tell(here, Trouble.of_error(trouble))
    if job.situation and exit_status(job) >= EXIT_OURS - 1:
        print(f"sirepo-jobs: {job.reason}: {safe(job.situation)}", file=sys.stderr)
    return EXIT_OURS if follower.troubles else exit_status(job)


def say_it_goes_on(jid: str) -> None:
    """What Ctrl-C did, and what it did not."""
    print(
        f"\nleft job {jid}, which goes on. To see it: sirepo-jobs logs -f {jid}; "
        f"to end it: sirepo-jobs cancel {jid}",
        file=sys.stderr,
    )


class Follower:
    """Watches one job in this thread and copies its two streams in two others."""

    def __init__(self, client: Client, jid: str, screen: Screen) -> None:
        self.screen = screen
        self._client = client
        self._jid = jid
        self._job: Job | None = None
        self._news = threading.Condition()
        #: Why some output could not be shown.
        self.troubles: list[Error] = []
        #: Our stdout or stderr was closed under us.
        self.nobody_reads = False

    def follow(self) -> Job:
        """The job when it has ended and all of its output is written."""
        copies = [
            threading.Thread(target=self._copy, args=(stream, fd), name=stream, daemon=True)
            for stream, fd in (("stdout", STDOUT), ("stderr", STDERR))
        ]
        for copy in copies:
            copy.start()
        job = self._watch()
        for copy in copies:
            copy.join()
        return job

    def _watch(self) -> Job:
        job = self._client.get(self._jid)
        while True:
            with self._news:
                self._job = job
                self._news.notify_all()
            self.screen.show(job)
            if job.ended:
                return job
            looked_at = time.monotonic()
            known = job
            job = self._client.get(self._jid, wait=60, version=known.version)
            if job.state == known.state and job.version > known.version:
                time.sleep(max(0.0, looked_at + _LOOK_SECS - time.monotonic()))

    def _copy(self, stream: Literal["stdout", "stderr"], fd: int) -> None:
        try:
            self._copy_attempts(stream, fd)
        except BrokenPipeError:
            # As for any program whose reader has left; only that the job is not the program.
            self.nobody_reads = True
            main = threading.main_thread().ident
            if main is not None:
                signal.pthread_kill(main, signal.SIGINT)
        except Error as exc:
            self.troubles.append(exc)

    def _copy_attempts(self, stream: Literal["stdout", "stderr"], fd: int) -> None:
        """One attempt after the other: a job that is tried again speaks again."""
        told = 0
        while True:
            # Of the newest attempt, whose start the server waits for; older ones may have been quick.
            log = self._client.logs(self._jid, stream, follow=True).connect()
            for missed in range(told + 1, log.attempt or 0):
                self._copy_bytes(self._client.logs(self._jid, stream, attempt=missed), fd)
            self._copy_bytes(log, fd)
            job = self._when_over(log.attempt)
            told = log.attempt or 0
            if (job.ended and job.attempt <= told) or not told:
                return

    def _copy_bytes(self, log: Iterable[bytes], fd: int) -> None:
        for piece in log:
            self.screen.write(fd, piece)

    def _when_over(self, attempt: int | None) -> Job:
        """The job as soon as it has ended or tries again."""
        with self._news:
            while True:
                job = self._job
                if job is not None and (job.ended or (attempt is not None and job.attempt > attempt)):
                    return job
                self._news.wait()
