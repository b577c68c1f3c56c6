"""The parent of jobs: a small loop that starts them, waits for them and tells the launcher.

Two of these start processes faster than one, and both stay small whatever the launcher remembers.
When the launcher dies, a spawner takes no new work, but keeps its jobs, their limits and their
`exit.json`, and ends with the last of them.
"""

import os
import select
import signal
import socket
import time
from collections import deque
from typing import Final

from sirepo_jobs.agents import process
from sirepo_jobs.agents.birth import Births, Busy, never
from sirepo_jobs.agents.lane import Lane
from sirepo_jobs.agents.nursery import Child, Nursery, report
from sirepo_jobs.agents.slate import Slate
from sirepo_jobs.agents.words import Kill, Over, Paused, Spawn, Spawned, decode_to_spawner, pack
from sirepo_jobs.driver import AgentSpec
from sirepo_jobs.reasons import Reason

#: A birth is told when the process has lived so long: for most short jobs it never has to be.
QUIET_SECS: Final = 0.004
#: How long to wait before each further try when the host cannot make a process.
RETRY_SECS: Final = (0.05, 0.2, 0.8, 2.0)
#: So much badness, in thousandths of all memory, do jobs have over the launcher and the agent.
_OOM_SCORE: Final = 200


class Spawner:
    """One spawner process."""

    def __init__(self, spec: AgentSpec, lane: Lane, slate: Slate) -> None:
        self._lane = lane
        self._slate = slate
        self._births = Births(spec.run_root, os.environ, spec.pass_env)
        self._nursery = Nursery()
        self._words: list[Spawned | Over | Paused] = []
        #: Born a moment ago, not told yet: (when to tell, child).
        self._young: deque[tuple[float, Child]] = deque()
        #: To be tried again: ticket -> (when, how often tried, what).
        self._again: dict[int, tuple[float, int, Spawn]] = {}

    def run(self) -> None:
        """Until the launcher has hung up and the last job is over."""
        waker, wake = socket.socketpair()
        waker.setblocking(False)
        wake.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(waker.fileno(), select.POLLIN)
        poll.register(self._lane.fileno(), select.POLLIN)
        lane_fd = self._lane.fileno()
        while not self._lane.closed or len(self._nursery) or self._words:
            for fd, event in poll.poll(self._timeout_ms()):
                if fd == lane_fd:
                    if event & ~select.POLLOUT:
                        self._hear(hung_up=bool(event & select.POLLHUP))
                else:
                    waker.recv(4096)
            for child in self._nursery.reap(on_ended=self._note_end):
                self._tell_over(child)
            self._tick()
            if self._words:
                self._lane.put(pack(self._words))
                self._words.clear()
            self._lane.flush()
            if self._lane.closed:
                if lane_fd >= 0:
                    poll.unregister(lane_fd)
                    lane_fd = -1
                self._again.clear()
                self._words.clear()
            else:
                poll.modify(lane_fd, select.POLLIN | (select.POLLOUT if self._lane.pending else 0))

    # -- what the launcher says

    def _hear(self, *, hung_up: bool) -> None:
        if hung_up:
            # POSIT: nothing is begun any more once the launcher is gone, not even what it still asked
            # for; its successor decides what was begun after this process has ended.
            self._lane.close()
            return
        frames = self._lane.take()
        for frame in frames:
            for word in decode_to_spawner(frame):
                if isinstance(word, Spawn):
                    self._start(word, 0)
                elif isinstance(word, Kill):
                    self._kill(word)
                elif self._nursery.pause(word.ticket, on=word.on):
                    self._words.append(Paused(ticket=word.ticket, at=_now_us(), on=word.on))
        os.chdir("/")

    def _start(self, spawn: Spawn, tries: int) -> None:
        try:
            child = self._births.start(spawn)
        except Busy as exc:
            if tries < len(RETRY_SECS):
                self._again[spawn.ticket] = (time.monotonic() + RETRY_SECS[tries], tries + 1, spawn)
            else:
                self._words.append(never(spawn, Reason.START_FAILED, str(exc)))
            return
        if isinstance(child, Over):
            self._words.append(child)
            return
        child.slot = self._slate.note(child.ticket, child.pid, child.started_at)
        self._nursery.take(child)
        self._young.append((child.started_mono + QUIET_SECS, child))

    def _kill(self, word: Kill) -> None:
        waiting = self._again.pop(word.ticket, None)
        if waiting is not None:
            self._words.append(
                never(waiting[2], Reason.START_FAILED, "canceled before it began", stopped=True)
            )
        else:
            self._nursery.stop(word.ticket, word.grace_secs)

    # -- what happens to jobs

    def _note_end(self, child: Child) -> None:
        assert child.status is not None
        self._slate.ended(child.slot, child.ticket, child.pid, child.started_at, child.status)

    def _tell_over(self, child: Child) -> None:
        self._words.append(report(child))
        self._slate.wipe(child.slot)

    # -- time

    def _tick(self) -> None:
        due = self._nursery.next_due()
        young, again = self._young, self._again
        if due is None and not young and not again:
            return
        now = time.monotonic()
        if due is not None and due <= now:
            self._nursery.expire()
        while young and (young[0][0] <= now or self._nursery.alive(young[0][1].ticket) is None):
            self._tell_birth(young.popleft()[1])
        for ticket in [ticket for ticket, (when, _, _) in again.items() if when <= now]:
            _, tries, spawn = again.pop(ticket)
            self._start(spawn, tries)

    def _tell_birth(self, child: Child) -> None:
        if self._nursery.alive(child.ticket) is not child:
            return
        stat = process.stat_of(child.pid)
        if stat is not None:
            self._words.append(
                Spawned(ticket=child.ticket, pid=child.pid, start=stat.start, at=child.started_at)
            )

    def _timeout_ms(self) -> int | None:
        due = self._nursery.next_due()
        if self._young and (due is None or self._young[0][0] < due):
            due = self._young[0][0]
        for when, _, _ in self._again.values():
            if due is None or when < due:
                due = when
        if due is None:
            return None
        return max(0, int((due - time.monotonic()) * 1000) + 1)


def _now_us() -> int:
    return time.time_ns() // 1000


def main(spec: AgentSpec, lane: Lane, slate: Slate) -> None:
    """The whole life of a spawner process, just forked from the launcher."""
    process.set_name("sj-spawner")
    process.become_reaper()
    process.refuse_privileges()
    process.prefer_for_oom(_OOM_SCORE)
    process.hide_memory()
    os.umask(0o077)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        # SIGTERM too: whoever wants the jobs to end tells the launcher.
        signal.signal(number, lambda *_: None)
    Spawner(spec, lane, slate).run()
