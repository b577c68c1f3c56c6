"""The spawners as the launcher sees them: who has which attempt, and how each is started again."""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from sirepo_jobs.agents import process
from sirepo_jobs.agents.lane import Lane, lane_pair
from sirepo_jobs.agents.slate import Slate
from sirepo_jobs.agents.words import ToSpawner

#: Back-off of a helper that keeps dying.
FIRST_SECS: Final = 0.05
LAST_SECS: Final = 5.0
#: One that lived so long starts again at once.
HEALTHY_SECS: Final = 10.0


class BackOff:
    """When something that died may be started again."""

    def __init__(self) -> None:
        self._secs = 0.0
        self._started = 0.0
        #: By the monotonic clock.
        self.due = 0.0

    def started(self) -> None:
        """It was started now."""
        self._started = time.monotonic()

    def died(self) -> None:
        """It died now."""
        now = time.monotonic()
        healthy = now - self._started > HEALTHY_SECS
        self.due = now if healthy else now + self._secs
        self._secs = 0.0 if healthy else min(max(2 * self._secs, FIRST_SECS), LAST_SECS)


class Spawner:
    """One place for a spawner process."""

    def __init__(self) -> None:
        self.pid = 0
        self.lane: Lane | None = None
        self.slate: Slate | None = None
        #: Attempts that it was asked for and has not ended.
        self.tickets: set[int] = set()
        #: Those of them that it keeps in reserve, as far as it has told.
        self.reserved: set[int] = set()
        #: So many more it may have in reserve: earned by short jobs.
        self.credit = 0
        #: When it last ended a job, by the monotonic clock.
        self.busy_at = 0.0
        #: What it is told next.
        self.words: list[ToSpawner] = []
        self.back_off = BackOff()

    def start(self, body: Callable[[Lane, Slate], None]) -> int:
        """Fork it; `body` runs in the child, with its end of the lane. Returns its start time."""
        ours, theirs = lane_pair()
        slate = Slate()

        def child() -> None:
            ours.close()
            body(Lane(theirs), slate)

        self.pid = fork(child)
        theirs.close()
        self.lane = Lane(ours)
        self.slate = slate
        self.back_off.started()
        stat = process.stat_of(self.pid)
        return 0 if stat is None else stat.start

    def died(self) -> None:
        """Forget the process; what it had in hand was taken over."""
        if self.lane is not None:
            self.lane.close()
        if self.slate is not None:
            self.slate.close()
        self.pid = 0
        self.lane = None
        self.slate = None
        self.tickets = set()
        self.reserved = set()
        self.credit = 0
        self.words = []
        self.back_off.died()


def fork(body: Callable[[], None]) -> int:
    """Run `body` in a child process, which ends with it. Returns the child's pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        body()
        code = 0
    except BaseException:  # noqa: BLE001 - the edge of a process: say it and end
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(code)
