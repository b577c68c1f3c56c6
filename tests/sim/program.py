"""What the jobs of a simulation do: run for a while, write bytes that can be verified, and end, or are ended.

A plan stands in the job's command, so it travels the whole way. The births and deaths of these processes are
the ground truth that the checker holds everything against.
"""

import signal
from typing import Any

import msgspec
from msgspec import Struct

from tests.sim.host import Host, Proc

PROGRAM = "/bin/payload"


class Plan(Struct, frozen=True, omit_defaults=True):
    """What one job is to do, each time it is started."""

    secs: float = 0.01
    exit_code: int = 0
    #: It kills itself with this signal instead.
    signal: int = 0
    #: Bytes of stdout, written in so many parts.
    stdout: int = 0
    parts: int = 1
    #: What TERM does: "die", "ignore", or "tidy" (end with exit code 3 a little later).
    term: str = "die"
    #: It leaves a process behind: "" or "child" (same session) or "daemon" (session of its own).
    leaves: str = ""
    #: Attempts before this one fail: it exits 0 from this attempt on.
    good_from: int = 1


def pattern(jid: str, attempt: int, stream: str) -> bytes:
    """What an attempt writes, over and over."""
    return f"<{jid}/{attempt}/{stream}>".encode()


def expected(jid: str, attempt: int, stream: str, offset: int, count: int) -> bytes:
    """The bytes that stand at an offset."""
    word = pattern(jid, attempt, stream)
    first = offset % len(word)
    return (word * (count // len(word) + 2))[first : first + count]


class Program:
    """A running payload."""

    def __init__(
        self, host: Host, proc: Proc, plan: Plan, jid: str, attempt: int, cpus: int, out: Any
    ) -> None:
        self.host, self.proc, self.plan = host, proc, plan
        self.jid, self.attempt, self.cpus = jid, attempt, cpus
        self._world = host.world
        self._out = out
        self._written = 0
        self._left = plan.secs
        self._running_since = self._world.now
        self._timer: Any = None
        #: Somebody other than itself has sent it a signal that ends programs.
        self.was_signaled = False
        self._world.note("born", jid, attempt, host.name, proc.pid, cpus)
        self._go()
        self._steps = plan.parts
        for part in range(plan.parts if plan.stdout else 0):
            self._world.after(plan.secs * part / plan.parts, self._write)

    def _go(self) -> None:
        self._running_since = self._world.now
        self._timer = self._world.after(self._left, self._finish)

    def _write(self) -> None:
        if self.proc.state != "R" or self._steps <= 0:
            return
        self._steps -= 1
        count = self.plan.stdout - self._written if not self._steps else self.plan.stdout // self.plan.parts
        try:
            data = expected(self.jid, self.attempt, "stdout", self._written, count)
            self._written += self.host.files.write(self._out, data, self._world.now)
        except OSError:
            pass  # its own trouble

    def _finish(self) -> None:
        if self.proc.state != "R":
            return
        while self._steps > 0 and self.plan.stdout:
            self._write()
        plan = self.plan
        if plan.signal:
            self._end(plan.signal)
        else:
            self._end((plan.exit_code if self.attempt >= plan.good_from else 7) << 8)

    def _end(self, status: int) -> None:
        if self.plan.leaves:
            child = Proc(self.host, "leftover", self.proc)
            child.mark = self.proc.mark
            if self.plan.leaves == "child":
                child.session = child.pgid = self.proc.session
            child.program = Leftover(self.host, child, self.jid, self.attempt)
        self.host.end(self.proc, status)

    def gone(self, status: int) -> None:
        """It is dead, for whatever reason."""
        self._timer.cancel()
        self._world.note(
            "died", self.jid, self.attempt, status, self._written, self.was_signaled, self.host.name
        )

    def signaled(self, number: int) -> None:
        if number == signal.SIGKILL:
            self.was_signaled = True
            self._timer.cancel()
            self._end(9)
        elif number == signal.SIGTERM:
            self.was_signaled = True
            if self.plan.term == "die" and self.proc.state == "R":
                self._timer.cancel()
                self._end(15)
            elif self.plan.term == "tidy" and self.proc.state == "R":
                self._timer.cancel()
                self._timer = self._world.after(0.02, self._tidy)
        elif number == signal.SIGSTOP and self.proc.state == "R":
            self.proc.state = "T"
            self._timer.cancel()
            self._left = max(0.0, self._left - (self._world.now - self._running_since))
        elif number == signal.SIGCONT and self.proc.state == "T":
            self.proc.state = "R"
            if self.was_signaled and self.plan.term == "die":
                self._end(15)
            else:
                self._go()

    def _tidy(self) -> None:
        if self.proc.state == "R":
            self._end(3 << 8)


class Leftover:
    """A process that a job has left behind; it would live for ever."""

    def __init__(self, host: Host, proc: Proc, jid: str, attempt: int) -> None:
        self.host, self.proc, self.jid, self.attempt = host, proc, jid, attempt
        host.world.note("left", jid, attempt, proc.pid)

    def signaled(self, number: int) -> None:
        if number in (signal.SIGKILL, signal.SIGTERM):
            self.host.end(self.proc, number)

    def gone(self, status: int) -> None:
        """It is dead."""
        self.host.world.note("left_gone", self.jid, self.attempt, self.proc.pid)


class Decoy:
    """A process of somebody else; a signal to it is a crime."""

    def __init__(self, host: Host, proc: Proc) -> None:
        self.host, self.proc = host, proc

    def signaled(self, number: int) -> None:
        self.host.world.note("hurt", self.host.name, self.proc.pid, number)

    def gone(self, status: int) -> None:
        """The host has lost power."""


def plan_of(command: list[str]) -> Plan:
    """The plan in a job's command."""
    return msgspec.json.decode(command[1], type=Plan)
