"""What happens to jobs and agents, and what the shell is asked to do about it.

Events are named in the past tense and carry their time; effects are imperatives. Both are plain
records: they can be stored, sent and compared. `lifecycle.py` says what an event makes of a job.
"""

from enum import StrEnum
from typing import Any, ClassVar

from msgspec import Struct

from .job import Usage
from .reasons import Reason


class Event(Struct, frozen=True, kw_only=True, tag_field="event", omit_defaults=True):
    """Something happened, at an instant in microseconds."""

    #: True for events that speak of one attempt and are fenced by it.
    fenced: ClassVar[bool] = False
    at: int


class AttemptEvent(Event, frozen=True, kw_only=True, omit_defaults=True):
    """Something happened to one attempt."""

    fenced: ClassVar[bool] = True
    serial: int
    attempt: int


class Released(Event, frozen=True, kw_only=True):
    """Its dependencies are met, or somebody let a held job go."""

    by: str = ""


class Deduped(Event, frozen=True, kw_only=True):
    """The same work is being done, or done, under `original_jid`."""

    original_jid: str


class Assigned(Event, frozen=True, kw_only=True):
    """The job got its place: a new attempt on `agent`."""

    agent: str
    run_dir: str
    #: The attempt's lease, when the agent keeps leases and the job's policy wants one.
    lease_secs: float | None = None
    #: Digest of the container image, where there is one.
    image_id: str | None = None


class NotStarted(AttemptEvent, frozen=True, kw_only=True):
    """Proof that the attempt never became a process and never will."""

    reason: Reason
    message: str = ""
    #: Trying again cannot help, whatever is usual for the reason.
    final: bool = False


class Started(AttemptEvent, frozen=True, kw_only=True):
    """The attempt's process exists."""

    pid: int = 0


class Exited(AttemptEvent, frozen=True, kw_only=True):
    """The attempt is over, with proof."""

    proof: str
    exit_code: int | None = None
    signal: int | None = None
    reason: Reason | None = None
    message: str = ""
    #: We signaled it before it ended by itself.
    stopped: bool = False
    started_at: int | None = None
    stdout_bytes: int | None = None
    stderr_bytes: int | None = None
    usage: Usage | None = None


class CancelAsked(Event, frozen=True, kw_only=True):
    """Somebody wants it to end."""

    by: str
    reason: Reason = Reason.CANCELED_BY_USER


class HoldAsked(Event, frozen=True, kw_only=True):
    """Somebody wants it out of the queue; a running attempt is stopped first."""

    by: str


class PreemptAsked(Event, frozen=True, kw_only=True):
    """Policy wants its place; it goes back to the queue and is not charged."""

    by: str


class Suspended(AttemptEvent, frozen=True, kw_only=True):
    """The attempt's processes stand still."""


class Resumed(AttemptEvent, frozen=True, kw_only=True):
    """They go on."""


class AgentLost(AttemptEvent, frozen=True, kw_only=True):
    """The agent is out of reach, or (`AGENT_LOST`) knows nothing itself; nothing is known of the attempt."""

    reason: Reason = Reason.AGENT_UNREACHABLE
    message: str = ""


class AgentBack(AttemptEvent, frozen=True, kw_only=True):
    """The agent is back and holds the attempt in the state named."""

    holds: str


class DeathProven(AttemptEvent, frozen=True, kw_only=True):
    """The attempt is dead beyond doubt, and nothing tells its exit status."""

    proof: str
    reason: Reason = Reason.AGENT_LOST
    message: str = ""


class Progressed(AttemptEvent, frozen=True, kw_only=True):
    """The attempt said how far it is."""

    data: dict[str, Any]


class QueueMoved(AttemptEvent, frozen=True, kw_only=True):
    """The batch scheduler has the attempt, and something about its waiting there is another way."""

    reason: Reason | None = None
    message: str = ""


class Changed(Event, frozen=True, kw_only=True):
    """Somebody wants something another way: `changes` as in `changes.Changes`."""

    by: str
    changes: dict[str, Any]


class RetryAsked(Event, frozen=True, kw_only=True):
    """Somebody wants the job to run again: a new run of the same jid."""

    by: str


class Purged(Event, frozen=True, kw_only=True):
    """The run dirs are gone; the record stays."""


EVENTS: tuple[type[Event], ...] = (
    Released, Deduped, Assigned, NotStarted, Started, Exited, CancelAsked, HoldAsked, PreemptAsked, Suspended,
    Resumed, AgentLost, AgentBack, DeathProven, Progressed, QueueMoved, Changed, RetryAsked, Purged,
)  # fmt: skip


class AgentState(StrEnum):
    """Where an agent is, as the supervisor sees it (SYS-10)."""

    OFFLINE = "offline"
    LAUNCHING = "launching"
    ONLINE = "online"
    #: Gets no new work and ends when it is idle.
    DRAINING = "draining"
    #: Was online; the connection is lost and nothing proves that it is gone.
    UNREACHABLE = "unreachable"


class AgentEvent(StrEnum):
    """What happens to an agent."""

    LAUNCH_ASKED = "launch_asked"
    LAUNCH_FAILED = "launch_failed"
    CONNECTED = "connected"
    DISCONNECTED = "disconnected"
    DRAIN_ASKED = "drain_asked"
    #: Asked to end, it did not: it holds something, or the word was lost.
    STAYED = "stayed"
    #: Its driver has proof.
    GONE = "gone"


class Enqueue(Struct, frozen=True):
    """The job is in the queue from now on, and may begin after a pause."""

    pause_secs: float = 0.0


class Dequeue(Struct, frozen=True):
    """It left the queue by another way than `Assigned`."""


class Requeue(Struct, frozen=True):
    """Its place in the queue is another one now, or will be when it comes there."""


class StopAttempt(Struct, frozen=True):
    """Tell the agent to end the current attempt."""

    grace_secs: float


class EndAttempt(Struct, frozen=True):
    """The attempt is over: write its record, give its slots back, forget its op."""

    #: Why it ended, where the job itself has another reason by now: it is queued again, say.
    reason: Reason | None = None
    situation: str = ""


class Ended(Struct, frozen=True):
    """The run is over: whoever depends on the job may look."""


class Note(Struct, frozen=True):
    """Nothing changed; somebody reading the log may want to know why."""

    text: str


Effect = Enqueue | Dequeue | Requeue | StopAttempt | EndAttempt | Ended | Note
