"""The parent of jobs: a small loop that starts them, waits for them and tells the launcher.

Two of these start processes faster than one, and both stay small whatever the launcher remembers.
A spawner may have attempts in reserve: when a job ends it starts the next one at once, without asking.
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

from sirepo_jobs import failpoints, garbage
from sirepo_jobs.agents import process
from sirepo_jobs.agents.birth import Births, Busy, never, unbegun
from sirepo_jobs.agents.child import Child, report
from sirepo_jobs.agents.lane import Lane
from sirepo_jobs.agents.nursery import Nursery, room_for
from sirepo_jobs.agents.pens import Pen, Pens
from sirepo_jobs.agents.slate import Slate
from sirepo_jobs.agents.words import (
    Drop,
    Dropped,
    FromSpawner,
    Go,
    Kill,
    Over,
    Paused,
    Renew,
    Spawn,
    Spawned,
    decode_to_spawner,
    pack,
)
from sirepo_jobs.driver import AgentSpec
from sirepo_jobs.reasons import Reason

#: A birth is told when the process has lived so long: for most short jobs it never has to be.
QUIET_SECS: Final = 0.004
#: An end whose slot is taken already may be told so much later, together with others ...
GROUP_SECS: Final = 0.012
#: ... while at least so many are in reserve.
ENOUGH: Final = 3
#: How long to wait before each further try when the host cannot make a process.
RETRY_SECS: Final = (0.05, 0.2, 0.8, 2.0)
#: So much badness, in thousandths of all memory, do jobs have over the launcher and the agent.
_OOM_SCORE: Final = 200


class Spawner:
    """One spawner process."""

    def __init__(self, spec: AgentSpec, lane: Lane, slate: Slate, pens: Pens | None = None) -> None:
        self._lane = lane
        self._poll = select.poll()
        self._waker, self._wake = socket.socketpair()
        self._slate = slate
        self._births = Births(spec.run_root, os.environ, spec.pass_env, spec.env)
        self._pens = pens
        self._nursery = Nursery()
        self._nursery.on_blame = self._note_blame
        self._lane_fd = -1
        self._words: list[FromSpawner] = []
        #: When the words must be told at the latest, by the monotonic clock.
        self._tell_at = 0.0
        #: On the slate until the words are told.
        self._told_slots: list[int] = []
        #: To be started when slots get free here, in this order.
        self._reserved: dict[int, Spawn] = {}
        #: Born a moment ago, not told yet: (when to tell, child).
        self._young: deque[tuple[float, Child]] = deque()
        #: To be tried again: ticket -> (when, how often tried, what).
        self._again: dict[int, tuple[float, int, Spawn]] = {}

    def run(self) -> None:
        """Until the launcher has hung up and the last job is over."""
        self.listen()
        garbage.settle()
        while not self.finished:
            self.turn(self._poll.poll(self.timeout_ms()))

    def listen(self) -> None:
        """Let the launcher, and deaths of children, wake poll."""
        self._waker.setblocking(False)
        self._wake.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        self._poll.register(self._waker.fileno(), select.POLLIN)
        self._poll.register(self._lane.fileno(), select.POLLIN)
        self._lane_fd = self._lane.fileno()

    @property
    def finished(self) -> bool:
        """The launcher has hung up and the last job is over."""
        return self._lane.closed and not len(self._nursery)

    def turn(self, ready: list[tuple[int, int]]) -> None:
        """Hear those of whom poll says that they have something to say, act on it, and tell."""
        for fd, event in ready:
            if fd == self._lane_fd:
                if event & ~select.POLLOUT:
                    self._hear(hung_up=bool(event & select.POLLHUP))
            else:
                self._waker.recv(4096)
                self._reap()
        self._tick()
        if self._lane.closed:
            if self._lane_fd >= 0:
                self._poll.unregister(self._lane_fd)
                self._lane_fd = -1
            self._again.clear()
            self._reserved.clear()
            self._words.clear()
        else:
            self._tell()

    # -- what the launcher says

    def _hear(self, *, hung_up: bool) -> None:
        if hung_up:
            # POSIT: nothing is begun any more once the launcher is gone, not even what it still asked
            # for; its successor decides what was begun after this process has ended.
            self._lane.close()
            return
        for frame in self._lane.take():
            for word in decode_to_spawner(frame):
                if isinstance(word, Spawn):
                    if word.reserved:
                        self._reserved[word.ticket] = word
                    else:
                        self._begin(word)
                elif isinstance(word, Go):
                    spawn = self._reserved.pop(word.ticket, None)
                    if spawn is not None:
                        self._begin(spawn)
                elif isinstance(word, Kill):
                    self._kill(word)
                elif isinstance(word, Renew):
                    self._nursery.renew(word.at)
                elif isinstance(word, Drop):
                    self._say(*(Dropped(ticket=ticket) for ticket in self._reserved))
                    self._reserved.clear()
                elif self._nursery.pause(word.ticket, on=word.on):
                    self._say(Paused(ticket=word.ticket, at=_now_us(), on=word.on))

    def _kill(self, word: Kill) -> None:
        waiting = self._again.pop(word.ticket, None)
        spawn = self._reserved.pop(word.ticket, None) if waiting is None else waiting[2]
        if spawn is None:
            self._nursery.stop(word.ticket, word.grace_secs, word.reason)
            return
        over = unbegun(spawn, word.reason)
        if waiting is None:
            self._say(over)  # it had no slots that another one could take
        else:
            self._end(over, spawn.cpus)

    # -- beginnings and ends

    def _begin(self, spawn: Spawn, tries: int = 0, instead_of: int = 0) -> None:
        if self._nursery.lease_is_over(spawn):
            self._end(never(spawn, Reason.START_FAILED, "its lease ended before it began"), spawn.cpus)
            return
        pen = None
        try:
            pen = self._enter_pen(spawn)
            child = self._births.start(spawn)
        except Busy as exc:
            self._leave(pen)
            if tries < len(RETRY_SECS):
                self._again[spawn.ticket] = (time.monotonic() + RETRY_SECS[tries], tries + 1, spawn)
            else:
                self._end(never(spawn, Reason.START_FAILED, str(exc)), spawn.cpus)
            return
        if isinstance(child, Over):
            self._leave(pen)
            self._end(child, spawn.cpus)
            return
        child.pen = pen
        child.slot = self._slate.note(child.ticket, child.pid, child.started_at, instead_of)
        self._nursery.take(child)
        self._young.append((child.started_mono + QUIET_SECS, child))

    def _enter_pen(self, spawn: Spawn) -> Pen | None:
        if self._pens is None:
            return None
        try:
            return self._pens.enter(None if spawn.processes is None else room_for(spawn.processes))
        except OSError as exc:
            raise Busy(f"cannot leave the process limit of the attempt before: {exc.strerror}") from exc

    def _leave(self, pen: Pen | None) -> None:
        if pen is not None and self._pens is not None:
            self._pens.empty(pen)

    def _end(self, over: Over, cpus: int) -> None:
        """Tell it, and start the next one that fits into its slots."""
        following = None
        for spawn in self._reserved.values():
            if spawn.cpus <= cpus:
                following = spawn
                break
        if following is None:
            self._say(over)
            return
        del self._reserved[following.ticket]
        over.successor = following.ticket
        if not self._words:
            self._tell_at = time.monotonic() + GROUP_SECS
        self._words.append(over)
        if len(self._reserved) < ENOUGH:
            self._tell_at = 0.0
        self._begin(following, instead_of=over.ticket)

    def _say(self, *words: FromSpawner) -> None:
        self._words += words
        self._tell_at = 0.0

    def _reap(self) -> None:
        for child in self._nursery.reap(on_ended=self._note_end):
            self._leave(child.pen)
            self._end(report(child), child.spawn.cpus)
            self._told_slots.append(child.slot)
        if not len(self._nursery):
            os.chdir("/")  # stand in nobody's way

    def _note_blame(self, child: Child) -> None:
        self._slate.blame(child.slot, child.reason)

    def _note_end(self, child: Child) -> None:
        assert child.status is not None
        self._slate.ended(child.slot, child.status)

    def _tell(self) -> None:
        if self._words and (self._tell_at == 0.0 or time.monotonic() >= self._tell_at):
            self._lane.put(pack(self._words))
            self._words.clear()
        elif not self._lane.pending:
            return
        self._lane.flush()
        for slot in self._told_slots:
            self._slate.wipe(slot)
        self._told_slots.clear()
        self._poll.modify(self._lane_fd, select.POLLIN | (select.POLLOUT if self._lane.pending else 0))

    # -- time

    def _tick(self) -> None:
        due = self._nursery.next_due()
        young, again = self._young, self._again
        if due is None and not young and not again:
            return
        now = time.monotonic()
        if due is not None and due <= now:
            self._nursery.expire()
        while young:
            when, child = young[0]
            if self._nursery.alive(child.ticket) is child:
                if when > now:
                    break
                self._tell_birth(child)
            young.popleft()
        if again:
            for ticket in [ticket for ticket, (when, _, _) in again.items() if when <= now]:
                _, tries, spawn = again.pop(ticket)
                self._begin(spawn, tries)

    def _tell_birth(self, child: Child) -> None:
        failpoints.hit("birth.untold")
        stat = process.stat_of(child.pid)
        if stat is not None:
            self._say(Spawned(ticket=child.ticket, pid=child.pid, start=stat.start, at=child.started_at))

    def timeout_ms(self) -> int | None:
        """How long the next turn may wait for somebody to say something; None = for ever."""
        due = self._nursery.next_due()
        if self._young and (due is None or self._young[0][0] < due):
            due = self._young[0][0]
        if self._words and (due is None or self._tell_at < due):
            due = self._tell_at
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
    process.leave_room()
    os.umask(0o077)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        # SIGTERM too: whoever wants the jobs to end tells the launcher.
        signal.signal(number, lambda *_: None)
    pens = Pens(spec.agent)
    try:
        Spawner(spec, lane, slate, pens).run()
    finally:
        pens.close()
