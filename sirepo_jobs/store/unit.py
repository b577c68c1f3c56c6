"""What is to be written down together: one `Unit` per turn of the supervisor's loop.

A unit holds rows, not statements: rows about the same job replace each other before anything is
written, and units that wait for the writer are merged (group commit).
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from msgspec import Struct

from sirepo_jobs.job import AttemptRecord, JobRecord
from sirepo_jobs.tokens import TokenRow


class EventRow(Struct, frozen=True, kw_only=True):
    """One line of history, and of the event stream."""

    #: Position in the stream: rises without gaps over all jobs.
    seq: int
    jid: str
    user: str
    #: The job's version that this event made (I8).
    version: int
    at: int
    #: Name of the event's class, "Submitted" for the first.
    kind: str
    #: State after the event.
    state: str
    #: The event as JSON.
    data: bytes


class NewJob(Struct, frozen=True, kw_only=True):
    """What is fixed at acceptance."""

    name: str
    driver: str
    queue: str
    priority: int
    #: Canonical spec as JSON.
    spec: bytes


class AgentRow(Struct, frozen=True, kw_only=True):
    """An agent that was launched or let in; kept over restarts."""

    agent: str
    #: `driver.Environment` as JSON.
    environment: bytes
    #: `driver.Handle` as JSON; None before its launch has answered.
    handle: bytes | None = None
    #: Identity of its state directory, as told by `Hello`.
    install: str = ""
    #: Of its host, as told by `Hello`.
    boot_id: str = ""
    #: It was told to end when it has finished what it has.
    leaving: bool = False


class KeyRow(Struct, frozen=True, kw_only=True):
    """An `Idempotency-Key` and what it made (I2)."""

    user: str
    key: str
    #: SHA-256 of the canonical request.
    digest: bytes
    jids: list[str]
    created_at: int


@dataclass(slots=True)
class Unit:
    """Rows that become durable together, and what to do then."""

    #: Rows to be inserted, by jid; each has its record in `jobs`.
    new: dict[str, NewJob] = field(default_factory=dict)
    #: What was fixed at acceptance and is another way now, by jid; each has its record in `jobs`.
    fixed: dict[str, NewJob] = field(default_factory=dict)
    #: The newest record of every job that changed.
    jobs: dict[str, JobRecord] = field(default_factory=dict)
    events: list[EventRow] = field(default_factory=list)
    attempts: list[AttemptRecord] = field(default_factory=list)
    agents: dict[str, AgentRow] = field(default_factory=dict)
    keys: list[KeyRow] = field(default_factory=list)
    tokens: dict[str, TokenRow] = field(default_factory=dict)
    #: Ids of tokens to be forgotten.
    dead_tokens: list[str] = field(default_factory=list)
    #: Idempotency keys of before then are forgotten, some thousands of them at a time; 0: none.
    keys_before: int = 0
    #: Called on the loop's thread, in order, once everything above is durable.
    done: list[Callable[[], None]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(
            self.jobs
            or self.events
            or self.attempts
            or self.agents
            or self.keys
            or self.tokens
            or self.dead_tokens
            or self.keys_before
            or self.done
        )

    def absorb(self, later: "Unit") -> None:
        """Add the rows of a unit that was filled after this one."""
        self.new.update(later.new)
        self.fixed.update(later.fixed)
        self.jobs.update(later.jobs)
        self.events.extend(later.events)
        self.attempts.extend(later.attempts)
        self.agents.update(later.agents)
        self.keys.extend(later.keys)
        self.tokens.update(later.tokens)
        self.dead_tokens.extend(later.dead_tokens)
        self.keys_before = max(self.keys_before, later.keys_before)
        self.done.extend(later.done)
