"""The words between supervisor and agent, and between agent and launcher: typed messages in versioned frames.

A **frame** is one websocket text message: a JSON envelope with one or many messages. A **chunk** is one
binary message: a fixed header and bytes of a job's output. Rules (SYS-12, C6, C7, I6):

* Every frame names the protocol version, the agent, the supervisor's `epoch` and the `session` (one
  connection); a receiver drops what is not current.
* Messages that must not be lost (`Durable`) carry the launcher's gapless `seq` and are repeated after
  each new connection until a frame's `ack` covers them; the supervisor acknowledges after its commit.
* Everything else is safe to lose: on each new connection the agent says what it holds (`Hello`) and
  the supervisor repeats what it still wants.
* A message of an unknown kind decodes to `Unknown` and is answered or skipped, never a reason to hang
  up; unknown fields are ignored. Both come from a newer version (I33).
"""

import struct
from typing import Annotated, Any, Final, NamedTuple

import msgspec
from msgspec import Struct

from .errors import RemoteError
from .job import Usage
from .reasons import Reason

VERSION: Final = 1
#: The limit on one websocket message, to be set on both stacks (Tornado and websockets) alike.
MAX_MESSAGE_BYTES: Final = 16 << 20
#: Frames are cut before they grow past this; one message may be larger, up to the limit above.
FRAME_TARGET_BYTES: Final = 256 << 10
#: In heartbeats: who has said nothing for so long is asked for a sign of life, at either end.
LATE: Final = 1.25
#: An agent that holds nothing sends a websocket's ping in place of a heartbeat, and so much more rarely ...
IDLE_BEATS: Final = 3
#: ... but as often as keeps proxies from closing a connection that seems dead (F070).
MAX_IDLE_SECS: Final = 45.0
#: Bytes of output in one chunk.
CHUNK_BYTES: Final = 128 << 10
#: Bytes of output that may be under way on one reading before the reader confirms some.
WINDOW_BYTES: Final = 1 << 20
#: An instant, a pid, a status: what every store and every clock can hold. A message with one beyond it is
#: none. Sizes and times of files are the jobs' to choose, so they are not bounded and never computed with.
Whole = Annotated[int, msgspec.Meta(ge=0, le=(1 << 53) - 1)]


def idle_secs(heartbeat_secs: float) -> float:
    """Between two heartbeats of an agent that holds nothing.

    >>> [idle_secs(secs) for secs in (1.0, 15.0, 30.0, 60.0)]
    [3.0, 45.0, 45.0, 60.0]
    """
    return max(heartbeat_secs, min(IDLE_BEATS * heartbeat_secs, MAX_IDLE_SECS))


class Attempt(Struct, frozen=True, kw_only=True):
    """Which execution a message speaks of; a stale one is noted and dropped (I6)."""

    jid: str
    serial: int
    attempt: int


# --- supervisor -> agent ------------------------------------------------------------------------


class Welcome(Struct, frozen=True, kw_only=True, tag_field="op", tag="welcome"):
    """Answer to `Hello`: the session is open. `acked` is the last durable `seq` that is committed."""

    acked: int
    #: Seconds between the agent's heartbeats.
    heartbeat_secs: float


class Run(Attempt, frozen=True, kw_only=True, tag_field="op", tag="run", omit_defaults=True):
    """Start this attempt. Repeating it changes nothing (C2: the attempt's directory is the fence)."""

    op_id: int
    command: list[str]
    env: dict[str, str] = {}
    #: The attempt's directory, relative to the agent's run root.
    run_dir: str
    soft_secs: float | None = None
    hard_secs: float | None = None
    grace_secs: float = 30.0
    progress: bool = False
    #: cpus of the claim that the attempt occupies.
    cpus: int = 1
    #: Do not start before `Grant`, or before an attempt with at least as many cpus ends here.
    standby: bool = False
    #: Without a word from the supervisor for so long, counted from the last one known, end it (C9).
    lease_secs: float | None = None
    #: When stdout and stderr together have more, end it (F053).
    output_bytes: int | None = None
    #: When it has more processes and threads, end it (F050).
    processes: int | None = None
    #: The spec as submitted, for `exit.json`.
    spec: msgspec.Raw = msgspec.Raw(b"{}")


class Grant(Attempt, frozen=True, kw_only=True, tag_field="op", tag="grant"):
    """The standby attempt has slots of its own now: start it, unless it runs already."""


class Cancel(Attempt, frozen=True, kw_only=True, tag_field="op", tag="cancel"):
    """End the attempt: TERM to its group, KILL after `grace_secs`; one that has not begun never begins."""

    op_id: int
    grace_secs: float


class Signal(Attempt, frozen=True, kw_only=True, tag_field="op", tag="signal"):
    """Stop (`suspend`) or continue the processes of the attempt."""

    op_id: int
    suspend: bool


class ReadOutput(Attempt, frozen=True, kw_only=True, tag_field="op", tag="read_output"):
    """Send bytes of `stdout` or `stderr` from `offset` on, as chunks marked with `op_id`.

    With `follow` the reading goes on until the attempt has ended and every byte is sent. It ends with
    `OutputEnd`. With `marks` no bytes are sent but how far they reach (`OutputMark`).
    """

    op_id: int
    run_dir: str
    stream: str
    offset: int
    #: Bytes at most; None = all.
    limit: int | None = None
    follow: bool = False
    #: Whoever reads can open the file itself; only for agents whose `Hello` says so.
    marks: bool = False


class ReadFile(Attempt, frozen=True, kw_only=True, tag_field="op", tag="read_file", omit_defaults=True):
    """Open a regular file of a run dir and say what it is (`FileOpened`); bytes follow `ReadRange`.

    With `etag` only if it is still that file; with `limit` it is read from `offset` on at once.
    """

    op_id: int
    run_dir: str
    #: As in `run_path`.
    path: str
    etag: str = ""
    offset: int = 0
    limit: int = 0


class ReadRange(Struct, frozen=True, kw_only=True, tag_field="op", tag="read_range"):
    """Send these bytes of the file that `op_id` has opened, as chunks; `OutputEnd` follows."""

    op_id: int
    offset: int
    limit: int


class ReadArchive(Attempt, frozen=True, kw_only=True, tag_field="op", tag="read_archive"):
    """Send a zip archive of a directory, as chunks; `OutputEnd` follows."""

    op_id: int
    run_dir: str
    #: As in `run_path`; "" is the run dir.
    path: str


class ListFiles(Attempt, frozen=True, kw_only=True, tag_field="op", tag="list_files"):
    """Say what lies in a directory, in order of names, a directory before what it holds (`FileList`)."""

    op_id: int
    run_dir: str
    #: As in `run_path`; "" is the run dir.
    path: str
    recursive: bool
    #: Only what follows this path, below `path`.
    after: str
    limit: int


class Heard(Struct, frozen=True, kw_only=True, tag_field="op", tag="heard"):
    """The heartbeat `n` has come: leases count from when it was sent."""

    n: int


class Credit(Struct, frozen=True, kw_only=True, tag_field="op", tag="credit"):
    """The reader has taken `count` bytes of the reading `op_id`: so many more may be sent."""

    op_id: int
    count: int


class StopReading(Struct, frozen=True, kw_only=True, tag_field="op", tag="stop_reading"):
    """Nobody listens to the reading `op_id` any more."""

    op_id: int


class Stop(Struct, frozen=True, kw_only=True, tag_field="op", tag="stop"):
    """End the agent and its launcher. Without `kill_jobs` only if it holds no attempt."""

    kill_jobs: bool = False


# --- agent -> supervisor ------------------------------------------------------------------------


class Held(Attempt, frozen=True, kw_only=True, omit_defaults=True):
    """One attempt in an agent's inventory."""

    #: standby | starting | running | suspended | ended (its record follows)
    state: str
    started_at: Whole | None = None


class Hello(Struct, frozen=True, kw_only=True, tag_field="op", tag="hello"):
    """First message of a connection: who I am and what I hold (SYS-15)."""

    agent: str
    #: Software version of the agent, for people.
    version: str
    host: str
    pid: Whole
    #: Of the host: a changed one proves that every process of before is gone (F026).
    boot_id: str
    #: Of the agent's state directory: a changed one proves that its records are gone (F025).
    install: str
    #: Last `seq` that the launcher's journal has given out.
    last_seq: Whole
    inventory: list[Held]
    #: Attempts with a lease are ended here when it is over.
    leases: bool = False
    #: When this was true, in seconds of the host's boot clock: one that was long under way is stale.
    made_at: float = 0.0
    #: It came by a unix socket and can tell how far an output reaches instead of sending it. Whether it is on
    #: the supervisor's host is the supervisor's to know: agents of clusters come through such a socket, too.
    marks: bool = False


class Started(Attempt, frozen=True, kw_only=True, tag_field="op", tag="started"):
    """The attempt's process exists."""

    seq: Whole
    at: Whole
    pid: Whole


class Exited(Attempt, frozen=True, kw_only=True, tag_field="op", tag="exited", omit_defaults=True):
    """The attempt is over and nothing of it is left. Carries the proof (I9, I10)."""

    seq: Whole
    at: Whole
    started_at: Whole | None = None
    #: One of the two, from the kernel's wait status; neither when nothing proves it.
    exit_code: Whole | None = None
    signal: Whole | None = None
    #: Why, where it is more than the exit status: TIME_LIMIT, COMMAND_NOT_FOUND, ...
    reason: Reason | None = None
    message: str = ""
    #: We signaled it before it ended by itself (I18).
    stopped: bool = False
    #: False: it never became a process, and never will (I5).
    began: bool = True
    #: exit_record | wait_status | never_claimed | launcher_lost | boot_changed
    proof: str = "wait_status"
    stdout_bytes: int | None = None
    stderr_bytes: int | None = None
    usage: Usage | None = None
    #: The standby attempt that took over its slots, as "jid/attempt".
    successor: str = ""


class Suspended(Attempt, frozen=True, kw_only=True, tag_field="op", tag="suspended"):
    """The attempt's processes were stopped, or continued when `on` is false."""

    seq: Whole
    at: Whole
    on: bool


class Progress(Attempt, frozen=True, kw_only=True, tag_field="op", tag="progress"):
    """The newest line of JSON that the attempt wrote about itself."""

    at: Whole
    data: dict[str, Any]


class Scheduling(Attempt, frozen=True, kw_only=True, tag_field="op", tag="scheduling", omit_defaults=True):
    """Where the attempt stands with the batch scheduler; repeated when it changes, and on each connection."""

    at: Whole
    scheduler: str = "slurm"
    #: The scheduler's id of its job; "" before there is one.
    id: str = ""
    #: The scheduler's own words.
    state: str = ""
    word: str = ""
    #: The same for people.
    reason: Reason | None = None
    text: str = ""
    #: It will never start as it is.
    never: bool = False
    #: Microseconds: when the scheduler expects it to start.
    starts_at: Whole | None = None
    #: Place in the scheduler's queue, 1 = next.
    position: Whole | None = None
    queued: Whole | None = None
    nodes: str = ""


class Counters(Struct, frozen=True, kw_only=True, tag_field="op", tag="counters"):
    """What the agent has asked of its scheduler since it was started, and how much it holds there."""

    at: Whole
    counts: dict[str, Whole]


class OutputEnd(Struct, frozen=True, kw_only=True, tag_field="op", tag="output_end", omit_defaults=True):
    """The reading `op_id` is over; `error` says why when it is not because everything was sent."""

    op_id: int
    offset: int
    error: str = ""
    #: The kind of error, for readings of files: link, hard_link, not_found, changed, ...
    code: str = ""


class OutputMark(Struct, frozen=True, kw_only=True, tag_field="op", tag="output_mark"):
    """The reading `op_id` may go on to `offset` in the file that is `inode` of `device`."""

    op_id: int
    offset: int
    device: int
    inode: int


class FileOpened(Struct, frozen=True, kw_only=True, tag_field="op", tag="file_opened"):
    """What `ReadFile` has opened; it stays open until its reading ends."""

    op_id: int
    etag: str
    size: int
    mtime_ns: int


class FileInfo(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One entry of a directory."""

    #: As in `run_path`, below the run dir.
    path: str
    #: file | directory | link | fifo | socket | device
    kind: str
    size: int = 0
    mtime_ns: int = 0
    #: Of a regular file.
    etag: str = ""
    #: Why what it holds is not listed.
    note: str = ""


class FileList(Struct, frozen=True, kw_only=True, tag_field="op", tag="file_list", omit_defaults=True):
    """The answer to `ListFiles`."""

    op_id: int
    files: list[FileInfo]
    #: There is more after the last.
    more: bool = False


class Heartbeat(Struct, frozen=True, kw_only=True, tag_field="op", tag="heartbeat", omit_defaults=True):
    """I am alive; `held` attempts are with me. One with an `n` is answered by `Heard`."""

    at: Whole
    held: Whole
    n: Whole = 0


class Unsupported(Struct, frozen=True, kw_only=True, tag_field="op", tag="unsupported"):
    """Answer to a message of a kind that this side does not know."""

    kind: str


class Unknown(Struct, frozen=True, kw_only=True):
    """A message of a kind that this version does not know, or a known kind with a wrong shape."""

    kind: str
    why: str


ReadAsk = ReadOutput | ReadFile | ReadArchive | ListFiles
ToAgent = (
    Welcome
    | Run
    | Grant
    | Cancel
    | Signal
    | ReadAsk
    | ReadRange
    | Credit
    | StopReading
    | Stop
    | Heard
    | Unsupported
)
Durable = Started | Exited | Suspended
FromAgent = (
    Hello
    | Durable
    | Progress
    | Scheduling
    | Counters
    | OutputEnd
    | OutputMark
    | FileOpened
    | FileList
    | Heartbeat
    | Unsupported
)


class ToAgentFrame(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Envelope of messages to an agent."""

    agent: str
    epoch: int
    session: int
    v: int = VERSION
    #: Every durable `seq` up to here is committed.
    ack: int = 0
    msgs: list[ToAgent] = []


class FromAgentFrame(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Envelope of messages from an agent; `epoch` and `session` as told by `Welcome`, 0 before it."""

    agent: str
    epoch: int = 0
    session: int = 0
    v: int = VERSION
    msgs: list[FromAgent] = []


class _LooseFrame(Struct, frozen=True, kw_only=True):
    agent: str
    epoch: int = 0
    session: int = 0
    v: int = VERSION
    ack: int = 0
    msgs: list[msgspec.Raw] = []


class _Kind(Struct, frozen=True):
    op: str = "?"


class Received(NamedTuple):
    """A decoded frame: its envelope and its messages in order, unknown ones as `Unknown`."""

    agent: str
    epoch: int
    session: int
    ack: int
    msgs: list[Any]


_encode = msgspec.json.Encoder().encode
_decode_to_agent = msgspec.json.Decoder(ToAgentFrame).decode
_decode_from_agent = msgspec.json.Decoder(FromAgentFrame).decode
_decode_loose = msgspec.json.Decoder(_LooseFrame).decode
_decode_kind = msgspec.json.Decoder(_Kind).decode
_one_to_agent = msgspec.json.Decoder(ToAgent).decode
_one_from_agent = msgspec.json.Decoder(FromAgent).decode


def encode(frame: ToAgentFrame | FromAgentFrame) -> bytes:
    """The bytes of a frame."""
    return _encode(frame)


def decode_to_agent(data: bytes | str) -> Received:
    """What the supervisor says. Raises `RemoteError` when it is no frame at all."""
    try:
        frame = _decode_to_agent(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return _decode_one_by_one(data, _one_to_agent)
    return Received(frame.agent, frame.epoch, frame.session, frame.ack, frame.msgs)


def decode_from_agent(data: bytes | str) -> Received:
    """What an agent says. Raises `RemoteError` when it is no frame at all."""
    try:
        frame = _decode_from_agent(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return _decode_one_by_one(data, _one_from_agent)
    return Received(frame.agent, frame.epoch, frame.session, 0, frame.msgs)


def _decode_one_by_one(data: bytes | str, one: Any) -> Received:
    """The slow way: keeps every message that can be read beside one that cannot."""
    try:
        frame = _decode_loose(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as exc:
        raise RemoteError(f"this is no frame of protocol version {VERSION}: {exc}") from None
    msgs: list[Any] = []
    for raw in frame.msgs:
        try:
            msgs.append(one(raw))
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as exc:
            msgs.append(Unknown(kind=_kind(raw), why=str(exc)))
    return Received(frame.agent, frame.epoch, frame.session, frame.ack, msgs)


def _kind(raw: msgspec.Raw) -> str:
    try:
        return _decode_kind(raw).op[:64]
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return "?"


_CHUNK = struct.Struct(">BIQ")
_CHUNK_MARK = 1


def encode_chunk(op_id: int, offset: int, data: bytes) -> bytes:
    """A binary message: bytes of the reading `op_id` that stand at `offset` of its file."""
    return _CHUNK.pack(_CHUNK_MARK, op_id, offset) + data


def decode_chunk(message: bytes) -> tuple[int, int, memoryview]:
    """`(op_id, offset, bytes)` of a chunk. Raises `RemoteError`."""
    if len(message) < _CHUNK.size or message[0] != _CHUNK_MARK:
        raise RemoteError(f"a binary message of {len(message)} bytes that is no output chunk")
    _, op_id, offset = _CHUNK.unpack_from(message)
    return op_id, offset, memoryview(message)[_CHUNK.size :]
