"""The job as a record: states, ids, one frozen `JobRecord` per job and one `AttemptRecord` per execution.

Instants are whole microseconds since 1970 UTC, by the supervisor's clock; they are for people and
for display, never for deciding what came first (that is `version` and `seq`).
"""

from enum import StrEnum
from typing import Any

from msgspec import Struct

from .reasons import Reason


class State(StrEnum):
    """Where a job is. The transitions between them are data in `transitions.py`."""

    #: Known, not yet released to the queue (dependencies).
    INACTIVE = "inactive"
    #: In the queue.
    PENDING = "pending"
    #: Promised to an agent; an attempt number exists.
    STARTING = "starting"
    #: The agent said that its process exists.
    RUNNING = "running"
    #: Its processes are stopped and may go on.
    SUSPENDED = "suspended"
    #: Asked to stop; its processes may still exist.
    CANCELING = "canceling"
    #: Out of the queue until somebody releases it.
    HELD = "held"
    #: Its agent is out of reach and nothing proves what became of the attempt.
    LOST = "lost"
    COMPLETED = "completed"
    ERROR = "error"
    CANCELED = "canceled"
    #: The same work is done under another jid.
    DEDUPED = "deduped"
    #: Ended, and its run dir has been removed.
    PURGED = "purged"


FINAL = frozenset({State.COMPLETED, State.ERROR, State.CANCELED, State.DEDUPED, State.PURGED})
#: An attempt exists that an agent answers for.
HELD_BY_AGENT = frozenset({State.STARTING, State.RUNNING, State.SUSPENDED, State.CANCELING, State.LOST})


class Stopping(StrEnum):
    """What is to become of a job whose processes were asked to end."""

    CANCEL = "cancel"
    HOLD = "hold"
    PREEMPT = "preempt"


class Usage(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one attempt used, as the kernel accounts it."""

    user_secs: float = 0.0
    system_secs: float = 0.0
    #: Peak resident set of the largest process, bytes.
    max_rss: int = 0
    #: What its processes had read from and written to disks (not: from what was in memory already).
    read_bytes: int = 0
    written_bytes: int = 0
    #: Of its whole container, where it has one: the peak of its memory since it was started, and what
    #: went over its network while the attempt ran. Jobs that ran in it at once have these together.
    container_memory: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0


class JobRecord(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Everything that changes about a job. Replaced, never mutated; only `lifecycle.step` makes new ones."""

    jid: str
    #: Order of acceptance, unique in the store.
    seq: int
    user: str
    state: State
    #: Rises by one with every change; blocking queries wait for it (I8, I11).
    version: int = 1
    #: The run: which request to execute this jid (SIR-20).
    serial: int = 1
    #: The execution, numbered over all runs of the jid (I5); 0 before the first.
    attempt: int = 0
    #: Failed attempts of this run that count against `max_attempts`.
    failures: int = 0
    #: Attempts of this run that never became a process; bounded, see `lifecycle.MAX_STARTS`.
    false_starts: int = 0
    #: Attempts of this run during which their agent, or its host, died; bounded, see `lifecycle.MAX_CRASHES`.
    crashes: int = 0
    reason: Reason | None = None
    situation: str = ""
    stopping: Stopping | None = None
    stopping_by: str = ""
    agent: str | None = None
    run_dir: str | None = None
    #: Digest of the container image of the present attempt.
    image_id: str | None = None
    #: Told to the agent with this attempt: without a word from the supervisor for so long it ends it (C9).
    lease_secs: float | None = None
    exit_code: int | None = None
    signal: int | None = None
    #: Final lengths of the output files; None until an exit record proves them.
    stdout_bytes: int | None = None
    stderr_bytes: int | None = None
    #: What proved the end of the attempt (C5).
    proof: str | None = None
    progress: dict[str, Any] | None = None
    usage: Usage | None = None
    original_jid: str | None = None
    created_at: int
    queued_at: int | None = None
    started_at: int | None = None
    ended_at: int | None = None


class AttemptRecord(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One execution, written once, when it has ended."""

    jid: str
    attempt: int
    serial: int
    agent: str | None
    run_dir: str | None
    image_id: str | None = None
    #: The state the job went to when the attempt ended.
    state: State
    reason: Reason | None
    situation: str = ""
    exit_code: int | None = None
    signal: int | None = None
    stdout_bytes: int | None = None
    stderr_bytes: int | None = None
    proof: str | None = None
    usage: Usage | None = None
    started_at: int | None = None
    ended_at: int | None = None


_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
#: Ten bits at a time: ids are made by the thousand.
_PAIRS = [a + b for a in _CROCKFORD for b in _CROCKFORD]
_SHIFTS = range(120, -1, -10)


def ulid(at: int, randomness: bytes) -> str:
    """The ULID of an instant in microseconds and 10 random bytes: 26 characters, sorts by time."""
    number = (at // 1000 & (1 << 48) - 1) << 80 | int.from_bytes(randomness[:10])
    return "".join([_PAIRS[number >> shift & 1023] for shift in _SHIFTS])
