"""Parent of everything on the agent's side: one synchronous loop, no network, nothing that blocks for long.

A turn: hear everybody; decide; write intents down; tell the spawners; bring the records to disk; hand
them to the network side (`desk`). The network side and the spawners may die at any time: they are
started again, and the jobs do not notice.
"""

import os
import select
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from sirepo_jobs import garbage
from sirepo_jobs.agents import spawner
from sirepo_jobs.agents.child import report
from sirepo_jobs.agents.crew import Crew
from sirepo_jobs.agents.desk import Desk
from sirepo_jobs.agents.handover import Watch
from sirepo_jobs.agents.journal import Journal
from sirepo_jobs.agents.lane import Lane
from sirepo_jobs.agents.nursery import Nursery
from sirepo_jobs.agents.slate import Slate
from sirepo_jobs.agents.slurm_desk import BROKERS, SlurmDesk
from sirepo_jobs.agents.upstream import Upstream
from sirepo_jobs.driver import AgentSpec

#: How long the last records may take to be acknowledged when the agent stops; then the journal keeps them.
FAREWELL_SECS: Final = 2.0
#: A full disk is tried again so often.
DISK_SECS: Final = 0.5
MAX_LOG_BYTES: Final = 4 << 20
#: Without a supervisor for so long, it looks whether its home is still there; without both it ends.
LONELY_SECS: Final = 30.0


class Launcher:
    """The launcher of one agent home. `run` returns when it is told to stop and everything is over."""

    def __init__(self, spec: AgentSpec, network: Callable[[AgentSpec, Lane], None], lock: int) -> None:
        self._spec = spec
        self._network = network
        #: Only this process may hold it.
        self._lock = lock
        self._poll = select.poll()
        self._nursery = Nursery()
        self._journal = Journal(spec.home)
        self._upstream = Upstream(self._poll, self._network_child)
        if spec.slurm is None:
            self._crew = Crew(self._poll, self._spawner_child)
            self._desk = Desk(spec, self._journal, self._nursery, self._crew, self._upstream)
        else:
            self._crew = Crew(self._poll, self._broker_child, BROKERS)
            self._desk = SlurmDesk(spec, self._journal, self._nursery, self._crew, self._upstream)
        #: See `Hello.install`.
        self.install = self._desk.install
        self._recovery = self._desk.recovery()
        if self._desk.rebooted:
            # At once, and then under the new boot's name: what is begun from now on is of this boot.
            self.settle()
            self._desk.rewrite()
        #: Only an agent of Slurm jobs may have to make room for one on another login node.
        self._watch = None if spec.slurm is None else Watch(spec.home)
        #: A child has died since the last turn.
        self._bereaved = False
        #: A helper is missing.
        self._bereft = True
        self._farewell_until = 0.0
        self._look_home_at = time.monotonic() + LONELY_SECS
        self._waker, self._wake = socket.socketpair()

    # -- the loop

    def run(self) -> None:
        """Until it is told to stop, and everything is over."""
        self.listen_to_signals()
        garbage.settle()
        while not self.finished:
            self.turn(self._poll.poll(self.timeout_ms()))
        self._hang_up()

    def turn(self, ready: list[tuple[int, int]]) -> None:
        """Hear those of whom poll says that they have something to say, decide, and act on it."""
        for fd, event in ready:
            if event & ~select.POLLOUT:
                self._hear(fd)
        self._act()

    def settle(self) -> None:
        """Instead of `run`: find out what became of everything, write it down, and start nothing."""
        while self._recovery.due is not None:
            time.sleep(max(0.0, self._recovery.due - time.monotonic()))
            self._desk.settle(self._recovery.step())
        self._desk.sync()

    def listen_to_signals(self) -> None:
        """Let signals, and deaths of children, wake poll."""
        self._waker.setblocking(False)
        self._wake.setblocking(False)
        self._poll.register(self._waker.fileno(), select.POLLIN)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._close)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)

    def _close(self, *_: object) -> None:
        self._desk.leave()

    def _hear(self, fd: int) -> None:
        if fd == self._waker.fileno():
            with suppress(BlockingIOError):
                self._waker.recv(4096)
            self._bereaved = True
        elif fd == self._upstream.fileno():
            for frame in self._upstream.hear():
                self._desk.hear_supervisor(frame)
        else:
            for place in self._crew.places:
                if place.lane is not None and fd == place.lane.fileno():
                    self._desk.hear_spawner(place.hear())
                    if place.lane.closed:
                        # It is dead; its death is heard of in a moment.
                        self._poll.unregister(fd)

    def _act(self) -> None:
        desk = self._desk
        if self._bereaved:
            self._bereaved = False
            for child in self._nursery.reap(on_helper=self._on_helper):
                desk.over(report(child))
        now = time.monotonic()
        due = self._nursery.next_due()
        if due is not None and due <= now:
            self._nursery.expire()
        if self._recovery.due is not None and self._recovery.due <= now:
            desk.settle(self._recovery.step())
        if self._upstream.open:
            self._look_home_at = now + LONELY_SECS
        elif self._look_home_at <= now:
            self._look_home(now)
        if self._watch is not None and self._watch.due <= now and self._watch.must_leave(now):
            _log("another launcher has this home now; leaving, and Slurm's jobs go on")
            desk.leave()
            return
        if self._bereft:
            self._keep_helpers(now)
        desk.decide(now)
        desk.flush(now)

    def timeout_ms(self) -> int | None:
        """How long the next turn may wait for somebody to say something; None = for ever."""
        due = [self._nursery.next_due(), self._recovery.due, self._crew.next_due(), self._desk.next_due()]
        if self._desk.disk_full:
            due.append(time.monotonic() + DISK_SECS)
        if not self._upstream.open:
            due.append(self._look_home_at)
        if self._watch is not None:
            due.append(self._watch.due)
        if not self._upstream.pid:
            due.append(self._upstream.back_off.due)
        if self._desk.closing:
            due.append(time.monotonic() + 0.1)
        when = min((one for one in due if one is not None), default=None)
        return None if when is None else max(0, int((when - time.monotonic()) * 1000 + 0.999))

    def _look_home(self, now: float) -> None:
        """Where home was wiped, nobody will find this launcher, nor read its journal, ever again."""
        self._look_home_at = now + LONELY_SECS
        try:
            there = os.path.samestat(os.stat(f"{self._spec.home}/lock"), os.fstat(self._lock))
        except OSError:
            there = False
        if not there and not self._desk.closing:
            _log("home is gone and so is the supervisor; stopping")
            self._desk.closing = True

    # -- helpers

    def _on_helper(self, pid: int, status: int) -> None:
        self._bereft = True
        if pid == self._upstream.pid:
            self._upstream.died()
        for place in self._crew.places:
            if place.pid == pid:
                count = len(place.tickets)
                _log(f"spawner {pid} died with wait status {status}; taking over {count} attempts")
                self._desk.adopt(place)

    def _keep_helpers(self, now: float) -> None:
        if self._desk.closing and not self._desk.live:
            return
        for place in self._crew.keep(now):
            self._nursery.helpers.add(place.pid)
            self._desk.helper_started(place.pid)
        pid = self._upstream.keep(now)
        if pid:
            self._nursery.helpers.add(pid)
        self._bereft = not self._upstream.pid or not all(place.pid for place in self._crew.places)
        # What helpers say when they fall over goes there; nobody shall fill the disk by falling.
        with suppress(OSError):
            if os.fstat(2).st_size > MAX_LOG_BYTES:
                os.ftruncate(2, 0)

    def _spawner_child(self, lane: Lane, slate: Slate) -> None:
        self._abandon()
        spawner.main(self._spec, lane, slate)

    def _broker_child(self, lane: Lane, slate: Slate) -> None:
        self._abandon()
        # Imported in the child alone: the launcher stays small and has no asyncio.
        from sirepo_jobs.agents import broker

        broker.main(self._spec, lane)

    def _network_child(self, lane: Lane) -> None:
        self._abandon()
        self._network(self._spec, lane)

    def _abandon(self) -> None:
        """In a forked child: let go of everything that is the launcher's alone."""
        os.close(self._lock)
        self._journal.close()
        self._nursery.close()
        self._waker.close()
        self._wake.close()
        self._upstream.hang_up()
        self._crew.hang_up()

    # -- the end

    @property
    def finished(self) -> bool:
        """It was told to stop, and everything is over and told, or cannot be told."""
        if self._desk.leaving:
            return True
        if not self._desk.closing or self._desk.live or len(self._nursery):
            return False
        if not self._desk.unsaid or not self._upstream.open:
            return True
        now = time.monotonic()
        self._farewell_until = self._farewell_until or now + FAREWELL_SECS
        return now > self._farewell_until

    def _hang_up(self) -> None:
        """Let the helpers go: each ends when its lane does."""
        self._upstream.hang_up()
        self._crew.hang_up()
        deadline = time.monotonic() + 1.0
        while self._nursery.helpers and time.monotonic() < deadline:
            self._nursery.reap()
            select.select([self._waker], [], [], 0.05)
            with suppress(BlockingIOError):
                self._waker.recv(4096)
        for pid in self._nursery.helpers:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._desk.sync()


def _log(text: str) -> None:
    os.write(2, f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} launcher: {text}\n".encode())
