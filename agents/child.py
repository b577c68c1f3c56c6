"""One attempt whose main process is our child: what is known of it, and the report of its end (I10)."""

import os
import resource
import signal
import time
from contextlib import suppress
from typing import Final

from sirepo_jobs.agents import containment, exit_file, oom
from sirepo_jobs.agents.pens import Pen
from sirepo_jobs.agents.words import Over, Spawn
from sirepo_jobs.job import Usage
from sirepo_jobs.reasons import Reason

_LEASE_OVER: Final = "ended by its lease: there was no word from the supervisor for so long"
_MESSAGES: Final = {
    Reason.AGENT_LOST: "ended with its agent, which was told to go by its host",
    Reason.OUT_OF_MEMORY: "the kernel killed it: the memory of its container was used up",
}
#: How it looks when the kernel kills: the job itself, or what its shell waited for.
_KILLED: Final = (-9, 137)


class Child:
    """An attempt whose main process is, or was, a child of this process."""

    __slots__ = (
        "err",
        "kill_at",
        "killed",
        "lease_over",
        "mark",
        "measured",
        "oom_kills",
        "out",
        "path",
        "pen",
        "pid",
        "processes",
        "reason",
        "rusage",
        "slot",
        "spawn",
        "started_at",
        "started_mono",
        "status",
        "stopped",
        "ticket",
        "traffic",
    )

    def __init__(
        self, spawn: Spawn, pid: int, path: str, started_at: int, started_mono: float, out: int, err: int
    ) -> None:
        self.spawn = spawn
        self.ticket = spawn.ticket
        self.mark = spawn.mark
        self.pid = pid
        self.path = path
        self.started_at = started_at
        #: By the monotonic clock, which alone decides about limits.
        self.started_mono = started_mono
        #: Open descriptors of the output files, -1 where we have none: their lengths stay true
        #: whatever the job does to the names.
        self.out = out
        self.err = err
        #: Wait status, None while the main process lives, or for ever when nobody could take it.
        self.status: int | None = None
        self.rusage: resource.struct_rusage | None = None
        #: How often the kernel had killed for memory when it began.
        self.oom_kills = oom.kills()
        self.traffic = containment.traffic()
        self.stopped = False
        self.reason: Reason | None = None
        self.lease_over = False
        self.kill_at: float | None = None
        self.killed = False
        self.slot = -1
        #: The kernel's fence around it, where there is one.
        self.pen: Pen | None = None
        #: Bytes of output when it was looked at last.
        self.measured = 0
        #: Processes and threads when it was found to have too many.
        self.processes = 0

    def signal_group(self, number: signal.Signals) -> None:
        """To the main process and its group."""
        # POSIT: the main process has not been reaped, so the group is its own.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def output_bytes(self) -> int:
        """Bytes of output so far; what cannot be looked at counts nothing."""
        total = 0
        for fd, name in ((self.out, "stdout"), (self.err, "stderr")):
            with suppress(OSError):
                total += (os.fstat(fd) if fd >= 0 else os.lstat(f"{self.path}/{name}")).st_size
        return total


def report(child: Child) -> Over:
    """The end of an attempt, from what the kernel said; closes its descriptors and writes `exit.json`."""
    stdout_bytes = _close_and_measure(child.out, f"{child.path}/stdout")
    stderr_bytes = _close_and_measure(child.err, f"{child.path}/stderr")
    child.out = child.err = -1
    at = time.time_ns() // 1000
    status = child.status
    if status is None:
        return Over(
            ticket=child.ticket,
            at=at,
            started_at=child.started_at or None,
            reason=Reason.AGENT_LOST,
            message="the process that watched over it was killed together with it",
            stopped=child.stopped,
            proof="launcher_lost",
            stdout_bytes=stdout_bytes,
            stderr_bytes=stderr_bytes,
        )
    code = os.waitstatus_to_exitcode(status)
    usage = child.rusage
    traffic = containment.traffic()
    if child.reason is None and not child.stopped and code in _KILLED and oom.kills() > child.oom_kills:
        child.reason = Reason.OUT_OF_MEMORY
    over = Over(
        ticket=child.ticket,
        at=at,
        started_at=child.started_at,
        exit_code=code if code >= 0 else None,
        signal=-code if code < 0 else None,
        reason=child.reason,
        message=_message(child, (stdout_bytes or 0) + (stderr_bytes or 0)),
        stopped=child.stopped,
        stdout_bytes=stdout_bytes,
        stderr_bytes=stderr_bytes,
        usage=None
        if usage is None
        else Usage(
            user_secs=usage.ru_utime,
            system_secs=usage.ru_stime,
            max_rss=usage.ru_maxrss * 1024,
            read_bytes=usage.ru_inblock * 512,
            written_bytes=usage.ru_oublock * 512,
            container_memory=containment.memory_peak(),
            received_bytes=traffic.received - child.traffic.received,
            sent_bytes=traffic.sent - child.traffic.sent,
        ),
    )
    exit_file.write(child.path, child.spawn, over)
    return over


def _message(child: Child, output_bytes: int) -> str:
    if child.reason is Reason.OUTPUT_LIMIT:
        limit = child.spawn.output_bytes
        return f"wrote {output_bytes} bytes to stdout and stderr; its limit is {limit}, so it was ended"
    if child.reason is Reason.PROCESS_LIMIT:
        limit = child.spawn.processes
        return f"had {child.processes} processes and threads; its limit is {limit}, so it was ended"
    if child.reason is Reason.AGENT_LOST and child.lease_over:
        return _LEASE_OVER
    return _MESSAGES.get(child.reason, "") if child.reason else ""


def _close_and_measure(fd: int, path: str) -> int | None:
    """The length of an output, whose descriptor, if there is one, is closed in any case."""
    try:
        if fd < 0:
            return os.lstat(path).st_size
        return os.fstat(fd).st_size
    except OSError:
        return None
    finally:
        if fd >= 0:
            os.close(fd)
