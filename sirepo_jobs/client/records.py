"""What the API answers, typed. Fields that a newer server adds are ignored here and kept in `raw`."""

from datetime import datetime
from typing import Any

import msgspec
from msgspec import Struct

from sirepo_jobs.errors import Error
from sirepo_jobs.job import FINAL

#: Exit statuses that are ours (peers: coreutils `timeout`, docker).
EXIT_TIME_LIMIT = 124
EXIT_OURS = 125
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127


class Submitted(Struct, frozen=True):
    """The answer to a submission: from here on the job is not lost."""

    jid: str
    serial: int = 1
    state: str = "pending"


class Job(Struct, frozen=True, kw_only=True):
    """A job as it was when the server answered."""

    jid: str
    state: str
    serial: int = 1
    attempt: int = 0
    version: int = 0
    reason: str | None = None
    fault: str | None = None
    retryable: bool | None = None
    #: One sentence for people.
    situation: str = ""
    #: One of the two once the job has ended and something proves it.
    exit_code: int | None = None
    signal: int | None = None
    name: str = ""
    user: str = ""
    driver: str = ""
    queue: str = ""
    priority: int = 5
    tags: dict[str, str] = {}
    run_dir: str | None = None
    agent: str | None = None
    #: Digest of the container image that it runs or ran in.
    image_id: str | None = None
    #: What the job last said about itself.
    progress: dict[str, Any] | None = None
    usage: dict[str, Any] | None = None
    #: Final lengths of the output.
    stdout_bytes: int | None = None
    stderr_bytes: int | None = None
    created_at: datetime | None = None
    queued_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    original_jid: str | None = None
    spec: dict[str, Any] | None = None
    #: The whole answer.
    raw: dict[str, Any] = {}

    @property
    def ended(self) -> bool:
        """It will not change any more."""
        return self.state in FINAL

    @property
    def percent(self) -> float | None:
        """How far it says it is, 0 to 100; None when it says nothing that can be read so."""
        said = (self.progress or {}).get("percent_complete")
        if isinstance(said, bool) or not isinstance(said, int | float):
            return None
        return min(max(float(said), 0.0), 100.0)


class Explanation(Struct, frozen=True, kw_only=True):
    """Why a job is where it is. `raw` has the numbers: `waiting`, `agent`, `placement`, `ending`, `asked`."""

    jid: str
    state: str
    #: One paragraph for people.
    summary: str
    reason: str | None = None
    fault: str | None = None
    retryable: bool | None = None
    hint: str | None = None
    #: The whole answer.
    raw: dict[str, Any] = {}

    @property
    def stderr(self) -> list[str]:
        """The last lines of a failed job's stderr, as far as they could be read."""
        return list((self.raw.get("ending") or {}).get("stderr") or ())


class Event(Struct, frozen=True, kw_only=True):
    """One line of the event stream."""

    #: Where to go on: `events(after=event.seq)`.
    seq: int = 0
    jid: str = ""
    version: int = 0
    at: datetime | None = None
    #: What happened: `Submitted`, `Started`, `Exited`, ...
    kind: str = ""
    #: State of the job after it.
    state: str = ""
    data: dict[str, Any] = {}


class JobPage(Struct, frozen=True):
    """One page of a list."""

    jobs: list[dict[str, Any]]
    next_cursor: str | None = None


def job_of(answer: dict[str, Any]) -> Job:
    """The job of a decoded answer. Raises `Error` when it is none."""
    try:
        return msgspec.convert({**answer, "raw": answer}, Job)
    except msgspec.ValidationError as exc:
        raise Error(f"the server's answer is no job: {exc}", code="bad_answer") from None


def exit_status(job: Job) -> int:
    """What a shell would say of an ended job.

    Its own code; 128+n when signal n ended it; 124 for a time limit; 126 and 127 for a command that
    could not be executed or found; 125 when it ended without having run to an end of its own.

    >>> exit_status(Job(jid="a", state="completed", exit_code=0))
    0
    >>> exit_status(Job(jid="a", state="error", exit_code=3, reason="EXIT_NONZERO"))
    3
    >>> exit_status(Job(jid="a", state="canceled", signal=15, reason="CANCELED_BY_USER"))
    143
    >>> exit_status(Job(jid="a", state="error", signal=15, reason="TIME_LIMIT"))
    124
    """
    if job.reason == "TIME_LIMIT":
        return EXIT_TIME_LIMIT
    if job.reason == "COMMAND_NOT_FOUND":
        return EXIT_NOT_FOUND
    if job.reason == "COMMAND_NOT_EXECUTABLE":
        return EXIT_NOT_EXECUTABLE
    if job.signal is not None:
        return 128 + job.signal
    if job.exit_code is not None:
        # A job that was called off is not a success, whatever it managed to say at the end.
        return job.exit_code or (0 if job.state in ("completed", "purged") else EXIT_OURS)
    return 0 if job.state == "completed" else EXIT_OURS
