"""The parent's part: waits for jobs, keeps their limits, and leaves nothing of them behind (I17, I18).

Everything that a job leaves when its main process ends (daemons, other sessions, double forks) becomes
a child of this process, because it is a sub-reaper. So the topmost leftover is always in the list of
our children, and its mark says whose it is. It is killed, reaped, and the list is read again, until
nothing is left; only then is the attempt over. Nobody ever sleeps here: each death brings a SIGCHLD.
"""

import heapq
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final

from sirepo_jobs import failpoints
from sirepo_jobs.agents import process
from sirepo_jobs.agents.child import Child
from sirepo_jobs.agents.crowd import Crowd, families
from sirepo_jobs.agents.words import Spawn
from sirepo_jobs.reasons import Reason

_LIST_BYTES: Final = 1 << 16
#: Leases are looked at so often: what waits for something does not notice that the host was suspended.
LEASE_LOOK_SECS: Final = 1.0
#: Lengths of outputs are looked at so often: more often the nearer a job comes to its limit.
OUTPUT_LOOK_SECS: Final = 1.0
_HURRIED_LOOK_SECS: Final = 0.02
#: Who goes on growing while it is asked to end gets so much more than its limit, then KILL.
_OVERRUN: Final = 1.25
_PEEK: Final = os.WEXITED | os.WNOHANG | os.WNOWAIT


class Nursery:
    """All attempts whose parent this process is."""

    def __init__(self) -> None:
        #: Children that are no jobs; they are reaped and handed to the caller, never touched otherwise.
        self.helpers: set[int] = set()
        #: Hears of attempts that are about to be signaled, as soon as that is certain.
        self.on_blame: Callable[[Child], None] | None = None
        self._mains: dict[int, Child] = {}
        self._children: dict[int, Child] = {}
        self._marks: dict[int, Child] = {}
        #: Main process gone, something else perhaps not, by ticket.
        self._dying: dict[int, Child] = {}
        #: Orphans of attempts that go on. A pid is nobody else's before we reap it.
        self._strays: dict[int, Child] = {}
        self._due: list[tuple[float, int, str]] = []
        #: Attempts with a lease, and the instant of the boot clock from which leases count.
        self._leased: dict[int, Child] = {}
        self.renewed_at = process.boot_secs()
        #: When, by the monotonic clock, they are looked at next.
        self._look_at = 0.0
        #: When outputs were measured, and are measured next; None while nobody has a limit.
        self._measured_at = 0.0
        self._measure_at: float | None = None
        self._crowd = Crowd()
        try:
            self._list: int | None = os.open(
                f"/proc/self/task/{threading.get_native_id()}/children", os.O_RDONLY | os.O_CLOEXEC
            )
        except OSError:  # a kernel without CONFIG_PROC_CHILDREN
            self._list = None

    def __len__(self) -> int:
        """Attempts that are not over."""
        return len(self._children)

    def close(self) -> None:
        """Give the descriptor back."""
        if self._list is not None:
            os.close(self._list)

    # -- taking in

    def take(self, child: Child) -> None:
        """A living child, or a zombie that nobody has waited for."""
        self._know(child)
        self._mains[child.pid] = child
        spawn = child.spawn
        if spawn.soft_secs is not None:
            heapq.heappush(self._due, (child.started_mono + spawn.soft_secs, child.ticket, "soft"))
        if spawn.hard_secs is not None:
            heapq.heappush(self._due, (child.started_mono + spawn.hard_secs, child.ticket, "hard"))
        if spawn.lease_secs is not None:
            self._leased[child.ticket] = child
            self._look_at = 0.0
        if spawn.output_bytes is not None and self._measure_at is None:
            self._measured_at = child.started_mono
            self._measure_at = child.started_mono + 5 * _HURRIED_LOOK_SECS
        if spawn.processes is not None:
            self._crowd.watch(spawn.processes, child.started_mono)

    def take_rest(self, child: Child) -> None:
        """An attempt whose main process is gone already: kill what is left of it, and call it over."""
        self._know(child)
        self._dying[child.ticket] = child

    def _know(self, child: Child) -> None:
        self._children[child.ticket] = child
        self._marks[child.mark] = child

    def alive(self, ticket: int) -> Child | None:
        """The attempt, while its main process has not been reaped."""
        child = self._children.get(ticket)
        return child if child is not None and ticket not in self._dying else None

    # -- stopping

    def stop(self, ticket: int, grace_secs: float, reason: Reason | None = None) -> None:
        """TERM to the group, KILL after the grace. Asking again can only shorten the grace."""
        child = self.alive(ticket)
        if child is None:
            return
        kill_at = time.monotonic() + max(grace_secs, 0.0)
        if child.kill_at is not None:
            if kill_at < child.kill_at:
                child.kill_at = kill_at
                heapq.heappush(self._due, (kill_at, ticket, "kill"))
            return
        if not self._blame(child, reason):
            return
        child.kill_at = kill_at
        heapq.heappush(self._due, (kill_at, ticket, "kill"))
        child.signal_group(signal.SIGTERM)
        # A stopped group could not hear it.
        child.signal_group(signal.SIGCONT)

    def kill(self, ticket: int, reason: Reason | None = None) -> None:
        """KILL to the group; what is outside of it follows when the main process is gone."""
        child = self.alive(ticket)
        if child is not None and not child.killed and (child.stopped or self._blame(child, reason)):
            child.killed = True
            if child.pen is not None:
                child.pen.kill()
            child.signal_group(signal.SIGKILL)

    def pause(self, ticket: int, *, on: bool) -> bool:
        """STOP or CONT the group; whether there was one."""
        child = self.alive(ticket)
        if child is None:
            return False
        child.signal_group(signal.SIGSTOP if on else signal.SIGCONT)
        return True

    def _blame(self, child: Child, reason: Reason | None) -> bool:
        """Note that we end it; False when it has ended by itself, so that its own result stands."""
        ended = os.waitid(os.P_PID, child.pid, _PEEK)
        if ended is not None:
            return False
        child.stopped = True
        child.reason = reason
        if self.on_blame is not None:
            self.on_blame(child)
        return True

    # -- leases

    def renew(self, at: float) -> None:
        """A word that was sent at this instant of the boot clock has reached the supervisor."""
        self.renewed_at = max(self.renewed_at, at)

    def lease_is_over(self, spawn: Spawn) -> bool:
        """Whether the supervisor may soon conclude that this attempt is no more: then it must not be."""
        return spawn.lease_secs is not None and process.boot_secs() >= self.renewed_at + spawn.lease_secs

    def _end_leases(self, now: float) -> None:
        left = LEASE_LOOK_SECS
        held_for = process.boot_secs() - self.renewed_at
        for ticket, child in list(self._leased.items()):
            lease_secs = child.spawn.lease_secs
            if ticket not in self._children or lease_secs is None:
                del self._leased[ticket]
            elif lease_secs <= held_for:
                del self._leased[ticket]
                child.lease_over = not child.stopped
                self.stop(ticket, child.spawn.grace_secs, Reason.AGENT_LOST)
            else:
                left = min(left, lease_secs - held_for)
        self._look_at = now + left

    # -- outputs

    def _measure(self, now: float) -> None:
        """Ask those to end that wrote more than they may (F053). Their files stay as they are."""
        limited = [child for child in self._children.values() if child.spawn.output_bytes is not None]
        left = OUTPUT_LOOK_SECS
        since = max(now - self._measured_at, 0.001)
        for child in limited:
            size, limit = child.output_bytes(), child.spawn.output_bytes or 0
            rate, child.measured = (size - child.measured) / since, size
            if size <= limit:
                left = min(left, (limit - size) / (2 * rate)) if rate > 0 else left
                continue
            self.stop(child.ticket, child.spawn.grace_secs, Reason.OUTPUT_LIMIT)
            if size > limit * _OVERRUN:
                self.kill(child.ticket)
            left = min(left, 5 * _HURRIED_LOOK_SECS)
        self._measured_at = now
        self._measure_at = now + max(left, _HURRIED_LOOK_SECS) if limited else None

    # -- processes

    def _count(self, now: float) -> None:
        """Ask those to end that have more processes and threads than they may (F050)."""
        limits = {
            pid: child.spawn.processes
            for pid, child in self._mains.items()
            if child.spawn.processes is not None
        }
        for pid, number in self._crowd.look(now, limits, lambda: self._numbers(limits)).items():
            child = self._mains[pid]
            child.processes = max(child.processes, number)
            self.stop(child.ticket, child.spawn.grace_secs, Reason.PROCESS_LIMIT)
            if number >= room_for(limits[pid]):
                self.kill(child.ticket)

    def _numbers(self, mains: Iterable[int]) -> dict[int, int]:
        numbers = {pid: pen.count() for pid in mains if (pen := self._mains[pid].pen) is not None}
        rest = [pid for pid in mains if pid not in numbers]
        if rest:
            numbers |= {pid: sum(found.values()) for pid, found in families(rest, self._main_of).items()}
        return numbers

    def _main_of(self, pid: int) -> int | None:
        owner = self._strays.get(pid) or self.owner_of(pid)
        return None if owner is None else owner.pid

    # -- time

    def next_due(self) -> float | None:
        """When, by the monotonic clock, `expire` has something to do."""
        due = self._due
        while due and due[0][1] not in self._children:
            heapq.heappop(due)
        when = due[0][0] if due else None
        if self._leased and (when is None or self._look_at < when):
            when = self._look_at
        for at in (self._measure_at, self._crowd.due):
            if at is not None and (when is None or at < when):
                when = at
        return when

    def expire(self) -> None:
        """Do what limits and graces demand by now."""
        now = time.monotonic()
        if self._leased and self._look_at <= now:
            self._end_leases(now)
        if self._measure_at is not None and self._measure_at <= now:
            self._measure(now)
        if self._crowd.due is not None and self._crowd.due <= now:
            self._count(now)
        due = self._due
        while due and due[0][0] <= now:
            _, ticket, what = heapq.heappop(due)
            child = self.alive(ticket)
            if child is None:
                continue
            if what == "soft":
                self.stop(ticket, child.spawn.grace_secs, Reason.TIME_LIMIT)
            elif what == "hard":
                self.kill(ticket, Reason.TIME_LIMIT)
            else:
                self.kill(ticket)

    # -- waiting

    def reap(
        self,
        on_helper: Callable[[int, int], None] | None = None,
        on_ended: Callable[[Child], None] | None = None,
    ) -> list[Child]:
        """Take every death there is, clean up after it, and return the attempts that are over.

        `on_helper(pid, status)` hears of helpers; it may `take` the children that a helper left.
        `on_ended(child)` hears of a main process as soon as its status is known.
        """
        while True:
            try:
                # POSIT: the kernel looks at children in the order in which they became ours, and hands
                # over a dead process's children at its death. So we hear of a helper's death before
                # anybody whom it left to us is reaped, and `on_helper` can take them in first.
                pid, status, rusage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            child = self._mains.pop(pid, None)
            if child is None:
                self._strays.pop(pid, None)
                if pid in self.helpers:
                    self.helpers.discard(pid)
                    if on_helper is not None:
                        on_helper(pid, status)
                continue
            failpoints.hit("nursery.reaped")
            child.status = status
            child.rusage = rusage
            self._dying[child.ticket] = child
            if on_ended is not None:
                on_ended(child)
        return self._bury() if self._dying else []

    def _bury(self) -> list[Child]:
        """Kill what the dying left; return those that left nothing, or nothing any more."""
        remaining: set[int] = set()
        mains, helpers = self._mains, self.helpers
        unknown: list[int] = []
        for pid in self.list_children():
            if pid in mains or pid in helpers:
                continue
            owner = self._strays.get(pid) or self.owner_of(pid)
            if owner is None:
                unknown.append(pid)
            elif owner.ticket in self._dying:
                if owner.pen is not None and owner.ticket not in remaining:
                    owner.pen.kill()
                remaining.add(owner.ticket)
                _kill_leftover(pid)
            else:
                self._strays[pid] = owner
        if unknown:
            self._bury_unknown(unknown, remaining)
        over = [child for ticket, child in self._dying.items() if ticket not in remaining]
        for child in over:
            del self._dying[child.ticket]
            del self._children[child.ticket]
            self._marks.pop(child.mark, None)
        return over

    def _bury_unknown(self, unknown: list[int], remaining: set[int]) -> None:
        """Orphans without a mark: killed as soon as they can only be leftovers of the dying."""
        sessions = {child.pid: child for child in self._dying.values()}
        for pid in unknown:
            stat = process.stat_of(pid)
            if stat is None or stat.state in "ZX":
                continue  # it is reaped with the next SIGCHLD, which is on its way
            owner = sessions.get(stat.session)
            if owner is not None or not self._mains:
                remaining.add(owner.ticket if owner is not None else next(iter(self._dying)))
                _kill_leftover(pid)

    def owner_of(self, pid: int) -> Child | None:
        """The attempt that a process belongs to, by its mark, else by its environment."""
        mark = process.mark_of(pid)
        if mark is not None and mark in self._marks:
            return self._marks[mark]
        for mark in process.env_marks_of(pid):
            if mark in self._marks:
                return self._marks[mark]
        return None

    def list_children(self) -> list[int]:
        """Pids of all children of this process, zombies too."""
        if self._list is not None:
            text = os.pread(self._list, _LIST_BYTES, 0)
            if len(text) < _LIST_BYTES - 16:
                return [int(word) for word in text.split()]
        own = os.getpid()
        return [pid for pid in process.every_pid() if (stat := process.stat_of(pid)) and stat.parent == own]


def room_for(limit: int) -> int:
    """So many processes and threads can there be, for a while, where the limit is this."""
    return int(limit * _OVERRUN)


def _kill_leftover(pid: int) -> None:
    """KILL to a child of ours and to its whole group at once, so that nobody in it can fork on."""
    # POSIT: we have not reaped it, so nobody else has its pid, nor its group's number; and a group
    # belongs to one session, so to one attempt (I20).
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(os.getpgid(pid), signal.SIGKILL)
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)
