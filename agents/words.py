"""Words inside one agent: launcher <-> spawner (msgpack) and launcher <-> network side (JSON).

Both ends are forks of one process, so these need no versions. What the supervisor sees are the
messages of `sirepo_jobs.protocol`, which travel inside `ToRelay` and `FromRelay` unchanged.
"""

import msgspec
from msgspec import Struct

from sirepo_jobs.job import Usage
from sirepo_jobs.protocol import (
    Cancel,
    Counters,
    Durable,
    Grant,
    Hello,
    Run,
    Scheduling,
    Signal,
    Stop,
    Welcome,
)
from sirepo_jobs.reasons import Reason

# --- launcher -> spawner ------------------------------------------------------------------------


class Spawn(Struct, frozen=True, kw_only=True, tag="spawn", omit_defaults=True):
    """Start this attempt. `ticket` names it from here on; `mark` is what its processes carry."""

    ticket: int
    mark: int
    jid: str
    serial: int
    attempt: int
    command: list[str]
    #: Relative to the run root.
    run_dir: str
    env: dict[str, str] = {}
    soft_secs: float | None = None
    hard_secs: float | None = None
    grace_secs: float = 30.0
    progress: bool = False
    cpus: int = 1
    lease_secs: float | None = None
    output_bytes: int | None = None
    processes: int | None = None
    spec: bytes = b"{}"
    #: Do not start it before `Go`, or before an attempt with at least as many cpus ends with you.
    reserved: bool = False
    #: Of an earlier launcher or broker: find out what became of it (Slurm only).
    adopt: bool = False


class Go(Struct, frozen=True, kw_only=True, tag="go"):
    """Start the reserved one now, unless it runs already."""

    ticket: int


class Renew(Struct, frozen=True, kw_only=True, tag="renew"):
    """Leases count from this instant of the boot clock: then a word of ours reached the supervisor."""

    at: float


class Drop(Struct, frozen=True, kw_only=True, tag="drop"):
    """Give every reserved one back; each is answered by `Dropped`."""


class Kill(Struct, frozen=True, kw_only=True, tag="kill"):
    """TERM now, KILL after the grace."""

    ticket: int
    grace_secs: float
    #: Why, when it is not the supervisor's wish: `AGENT_LOST` when the agent has to go.
    reason: Reason | None = None


class Pause(Struct, frozen=True, kw_only=True, tag="pause"):
    """STOP the attempt's group, or CONT when `on` is false."""

    ticket: int
    on: bool


# --- spawner -> launcher ------------------------------------------------------------------------


class Spawned(Struct, frozen=True, kw_only=True, tag="spawned"):
    """The process exists and has lived for some milliseconds; shorter lives are told by `Over` alone."""

    ticket: int
    pid: int
    #: Start time of the process as the kernel counts it (field 22 of its stat).
    start: int
    at: int


class Over(Struct, kw_only=True, tag="over", omit_defaults=True):
    """The attempt has ended and nothing of it is left. Fields as in `protocol.Exited`."""

    ticket: int
    at: int
    started_at: int | None = None
    exit_code: int | None = None
    signal: int | None = None
    reason: Reason | None = None
    message: str = ""
    stopped: bool = False
    began: bool = True
    proof: str = "wait_status"
    stdout_bytes: int | None = None
    stderr_bytes: int | None = None
    usage: Usage | None = None
    #: Ticket of the reserved one that was started in its place; 0 = none.
    successor: int = 0


class Dropped(Struct, frozen=True, kw_only=True, tag="dropped"):
    """This one was reserved, and is not any more: it has not begun."""

    ticket: int


class Paused(Struct, frozen=True, kw_only=True, tag="paused"):
    """The group was stopped, or continued."""

    ticket: int
    at: int
    on: bool


class Situated(Struct, frozen=True, kw_only=True, tag="situated"):
    """Where it stands in Slurm's queue."""

    ticket: int
    situation: Scheduling


class Counted(Struct, frozen=True, kw_only=True, tag="counted"):
    """What Slurm was asked so far."""

    counters: Counters


# --- launcher <-> network side ------------------------------------------------------------------


class Watch(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the network side must know of a live attempt whose `Run` it has not seen itself."""

    jid: str
    serial: int
    attempt: int
    run_dir: str
    progress: bool = False
    lease_secs: float | None = None


class ToRelay(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Launcher to network side. Frames of a session that is over are dropped by the receiver."""

    session: int = 0
    epoch: int = 0
    #: Answer to `FromRelay.hail`.
    hello: Hello | None = None
    #: With `hello`: every attempt that has not ended.
    watch: list[Watch] = []
    msgs: list[Durable] = []
    #: Not kept: said again when they change, and with each new connection.
    notes: list[Scheduling | Counters] = []


class FromRelay(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Network side to launcher: what the supervisor said."""

    session: int = 0
    epoch: int = 0
    #: A connection begins: answer with `hello`, and say nothing durable until `Welcome` comes.
    hail: bool = False
    ack: int = 0
    #: As in `Renew`; 0 = nothing new.
    renewed_at: float = 0.0
    msgs: list[Welcome | Run | Grant | Cancel | Signal | Stop] = []


class _RawToRelay(Struct, frozen=True, kw_only=True, omit_defaults=True):
    session: int = 0
    epoch: int = 0
    msgs: list[msgspec.Raw] = []


ToSpawner = Spawn | Go | Drop | Kill | Pause | Renew
FromSpawner = Spawned | Over | Dropped | Paused | Situated | Counted

_json = msgspec.json.Encoder().encode
_pack = msgspec.msgpack.Encoder().encode

decode_to_spawner = msgspec.msgpack.Decoder(list[ToSpawner]).decode
decode_from_spawner = msgspec.msgpack.Decoder(list[FromSpawner]).decode
decode_to_relay = msgspec.json.Decoder(ToRelay).decode
decode_from_relay = msgspec.json.Decoder(FromRelay).decode


def pack(words: list[ToSpawner] | list[FromSpawner]) -> bytes:
    """One frame between launcher and spawner."""
    return _pack(words)


def relay(word: ToRelay | FromRelay) -> bytes:
    """One frame between launcher and network side."""
    return _json(word)


def relay_records(session: int, epoch: int, records: list[bytes]) -> bytes:
    """A `ToRelay` with durable messages that are encoded already."""
    return _json(_RawToRelay(session=session, epoch=epoch, msgs=[msgspec.Raw(raw) for raw in records]))
