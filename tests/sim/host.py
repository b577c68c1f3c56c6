"""A simulated host: its kernel as far as processes go, its clock, its disk.

Processes are born, stopped, killed, reaped and inherited as Linux does it. Their pids come from a small space
and are used again soon. What a job does is its `Program`; what ours do is code of ours.
"""

import random
import signal
from collections.abc import Callable
from typing import Any

from tests.sim.files import Files
from tests.sim.world import EPOCH_SECS, NodeLoop, World

PIDS = 400


class Proc:
    """One process."""

    def __init__(self, host: "Host", kind: str, parent: "Proc | None") -> None:
        self.host = host
        self.world = host.world
        self.kind = kind
        self.pid = host.free_pid()
        self.start = host.next_start()
        self.parent = parent
        self.children: list[Proc] = []
        self.session = self.pgid = self.pid
        #: R, T (stopped), Z, or X (reaped).
        self.state = "R"
        self.status = 0
        self.mark: int | None = None
        self.is_reaper = False
        self.dies_with_parent = False
        self.cwd = "/"
        #: Number -> what is called; None is the default action.
        self.handlers: dict[int, Callable[..., Any] | None] = {}
        self.wakeup: Any = None
        self.world_sockets: dict[int, Any] = {}
        self.fds: list[int] = []
        self.loop: NodeLoop | None = None
        #: Code of ours that has turns instead of a loop.
        self.actor: Any = None
        #: What a job does.
        self.program: Any = None
        self.last_words: BaseException | None = None
        host.procs[self.pid] = self
        if parent is not None:
            parent.children.append(self)

    @property
    def alive(self) -> bool:
        return self.state in "RT"


class Host:
    """One machine. It may lose power and come back under another boot id."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.dice = random.Random(f"{world.seed}/host {name}")
        self.files = Files()
        self.procs: dict[int, Proc] = {}
        self.boots = 1
        self.is_up = True
        self.has_no_pids = False
        #: Of the wall clock, in seconds.
        self.clock_offset = 0.0
        self._next_pid = self.dice.randrange(100, 100 + PIDS)
        self._starts = 0
        #: Called with every process that has died.
        self.on_death: Callable[[Proc], None] | None = None

    @property
    def boot_id(self) -> str:
        return f"boot-{self.name}-{self.boots}"

    def time_ns(self) -> int:
        return int((EPOCH_SECS + self.world.now + self.clock_offset) * 1e9)

    def free_pid(self) -> int:
        assert len(self.procs) < PIDS, "processes pile up"
        while self._next_pid in self.procs:
            self._next_pid = 100 + (self._next_pid - 99) % PIDS
        pid = self._next_pid
        self._next_pid = 100 + (self._next_pid - 99) % PIDS
        return pid

    def next_start(self) -> int:
        self._starts += 1
        return int(self.world.now * 100) * 1000 + self._starts

    # -- signals

    def kill(self, proc: Proc, number: int) -> None:
        """Deliver a signal."""
        if not proc.alive:
            return
        if proc.program is not None:
            proc.program.signaled(number)
            return
        if number == signal.SIGKILL:
            self.end(proc, 9)
        elif number == signal.SIGSTOP:
            self.stop(proc)
        elif number == signal.SIGCONT:
            self.go_on(proc)
        elif (handler := proc.handlers.get(number)) is not None:
            if callable(handler):
                before, self.world.current = self.world.current, proc
                handler(number, None)
                self.world.current = before
            if proc.wakeup is not None:
                proc.wakeup.send(bytes([number]))
        elif number == signal.SIGTERM:
            self.end(proc, 15)

    def kill_group(self, pgid: int, number: int) -> bool:
        """To everybody in the group, zombies of it count as somebody."""
        members = [proc for proc in self.procs.values() if proc.pgid == pgid]
        for proc in members:
            self.kill(proc, number)
        return bool(members)

    def stop(self, proc: Proc) -> None:
        if proc.state == "R":
            proc.state = "T"
            if proc.loop is not None:
                proc.loop.freeze()

    def go_on(self, proc: Proc) -> None:
        if proc.state == "T":
            proc.state = "R"
            if proc.loop is not None:
                proc.loop.thaw()
            if proc.actor is not None:
                proc.actor.wake()

    # -- ends

    def end(self, proc: Proc, status: int) -> None:
        """The process is over, with that wait status."""
        if not proc.alive:
            return
        proc.state, proc.status = "Z", status
        if proc.loop is not None:
            proc.loop.die()
        if proc.actor is not None:
            proc.actor.die()
        for sock in list(proc.world_sockets.values()):
            sock.close()
        for fd in proc.fds:
            self.world.open_files.pop(fd, None)  # type: ignore[attr-defined]
        if proc.program is not None:
            proc.program.gone(status)
        if self.on_death is not None:
            self.on_death(proc)
        heir = proc.parent
        while heir is not None and not (heir.alive and heir.is_reaper):
            heir = heir.parent
        for child in list(proc.children):
            self._inherit(child, heir)
            if child.dies_with_parent:
                self.kill(child, signal.SIGKILL)
        proc.children.clear()
        self._tell_parent(proc)

    def _inherit(self, child: Proc, heir: Proc | None) -> None:
        child.parent = heir
        if heir is not None:
            heir.children.append(child)
        if not child.alive:
            self._tell_parent(child)

    def _tell_parent(self, proc: Proc) -> None:
        parent = proc.parent
        if parent is None or not parent.alive:
            self.reap(proc)  # init waits for everybody
        elif parent.program is None:
            self.kill(parent, signal.SIGCHLD)
        # a program that does not wait leaves a zombie, until it dies itself

    def reap(self, proc: Proc) -> None:
        """Its pid is free."""
        proc.state = "X"
        if self.procs.get(proc.pid) is proc:
            del self.procs[proc.pid]
        if proc.parent is not None and proc in proc.parent.children:
            proc.parent.children.remove(proc)

    def lose_power(self) -> None:
        """Everything is dead at once; of the disk is left what was synced."""
        self.is_up = False
        for proc in list(self.procs.values()):
            proc.parent = None
            proc.children = []
        for proc in list(self.procs.values()):
            self.end(proc, 9)
        self.procs.clear()
        self.files.lose_power(self.world.now, self.dice)

    def boot(self) -> None:
        """It is there again."""
        self.boots += 1
        self.is_up = True
