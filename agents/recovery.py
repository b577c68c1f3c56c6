"""What became of attempts that an earlier launcher began: found out from evidence, never guessed (C4, I10).

In this order: an exit record in the run dir stands; after a reboot nothing can live; what still lives is
killed, because nobody can take its true wait status any more, and the journal says so before; and once its
old spawners are gone too, so that nothing can begin behind our back, the rest is declared lost, or never
begun if no run dir was made.
"""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from sirepo_jobs.agents import exit_file, process
from sirepo_jobs.agents.journal import Helper, Intent
from sirepo_jobs.agents.words import Over
from sirepo_jobs.reasons import Reason

#: Old spawners end by themselves when their last job is over; after this they are made to.
SPAWNER_SECS: Final = 5.0
_STEP_SECS: Final = (0.01, 0.02, 0.05, 0.1, 0.2)


class Recovery:
    """Attempts of an earlier launcher, by ticket, until each is resolved."""

    def __init__(
        self,
        run_root: str,
        intents: dict[int, Intent],
        helpers: list[Helper],
        condemn: Callable[[set[int]], bool],
        *,
        rebooted: bool,
    ) -> None:
        self._root = run_root
        #: Write down, for good, that these tickets are about to be killed by us; False when it cannot be.
        self._condemn = condemn
        self._open = dict(intents)
        self._helpers = [] if rebooted else helpers
        self._rebooted = rebooted
        #: Those that an earlier launcher may have killed too: a second one shall know whose signal it was.
        self._condemned = {ticket for ticket, intent in intents.items() if intent.condemned}
        self._begun = time.monotonic()
        self._steps = 0
        #: When, by the monotonic clock, the next `step` is due; None when everything is resolved.
        self.due: float | None = self._begun if self._open or self._helpers else None

    def step(self) -> list[Over]:
        """Look again. Returns the ends that are certain by now."""
        overs = [over for ticket, intent in self._open.items() if (over := self._exit_record(ticket, intent))]
        for over in overs:
            del self._open[over.ticket]
        if not self._hunt() and not self._old_spawners():
            overs += [self._verdict(ticket, intent) for ticket, intent in self._open.items()]
            self._open.clear()
            self.due = None
            return overs
        self.due = time.monotonic() + _STEP_SECS[min(self._steps, len(_STEP_SECS) - 1)]
        self._steps += 1
        return overs

    def _exit_record(self, ticket: int, intent: Intent) -> Over | None:
        found = exit_file.read(f"{self._root}/{intent.run_dir}", intent.jid, intent.attempt)
        if found is None or (ticket in self._condemned and found.signal == signal.SIGKILL):
            return None
        return exit_file.as_over(found, ticket)

    def _hunt(self) -> bool:
        """Kill what lives of the open attempts; whether there was anything."""
        if self._rebooted or not self._open:
            return False
        marks = {intent.mark: ticket for ticket, intent in self._open.items()}
        prey = {pid: marks[mark] for pid, mark in process.marked_with(set(marks)).items()}
        for ticket, intent in self._open.items():
            if intent.pid and process.alive(intent.pid, intent.start):
                prey[intent.pid] = ticket
        # POSIT: written down before the act, so that whoever finds "signal 9" in an exit record knows
        # whose it was; else nothing is killed, and it is tried again.
        if prey and self._condemn(set(prey.values())):
            self._condemned.update(prey.values())
            stats = {pid: stat for pid in prey if (stat := process.stat_of(pid)) is not None}
            # The oldest first: a shell shall not end by itself because of what became of its child.
            for pid, stat in sorted(stats.items(), key=lambda item: (item[1].start, item[0])):
                kill(pid, stat.start)
        return bool(prey)

    def _old_spawners(self) -> bool:
        """Whether one lives still."""
        alive = [helper for helper in self._helpers if process.alive(helper.pid, helper.start)]
        if alive and time.monotonic() > self._begun + SPAWNER_SECS:
            for helper in alive:
                kill(helper.pid, helper.start)
        self._helpers = alive
        return bool(alive)

    def _verdict(self, ticket: int, intent: Intent) -> Over:
        at = time.time_ns() // 1000
        if over := self._exit_record(ticket, intent):
            return over
        if not self._rebooted and not os.path.lexists(f"{self._root}/{intent.run_dir}"):
            return Over(
                ticket=ticket,
                at=at,
                reason=Reason.START_FAILED,
                message="the launcher was killed before it began",
                began=False,
                proof="never_claimed",
            )
        return Over(
            ticket=ticket,
            at=at,
            started_at=intent.started_at or None,
            reason=Reason.NODE_FAILED if self._rebooted else Reason.AGENT_LOST,
            message="the host was rebooted" if self._rebooted else "the launcher was killed while it ran",
            proof="boot_changed" if self._rebooted else "launcher_lost",
        )


def kill(pid: int, start: int) -> None:
    """KILL this very process: whoever has its pid later is safe (I20)."""
    with suppress(ProcessLookupError, PermissionError):
        fd = os.pidfd_open(pid)
        try:
            # POSIT: while we hold the descriptor it means one process; check that it is the right one.
            if process.alive(pid, start):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        finally:
            os.close(fd)
