"""How many processes and threads attempts have, and when to count them again (F050).

Counting everybody is dear, so it is done only when somebody can have got over a limit: when there are so
many more processes on this host than at the last count. One number tells that, and it costs nothing to read.
"""

import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Final

from sirepo_jobs.agents import process

#: That number is read so often: more often the faster it grows.
CALM_SECS: Final = 0.25
_HURRIED_SECS: Final = 0.02
#: What ends hides what begins, so everybody is counted now and then; it may take this part of the time.
COUNT_SECS: Final = 10.0
_SHARE: Final = 500
#: While somebody is over: the pause between two counts, in lengths of a count.
_PAUSE: Final = 2


class Crowd:
    """The watch over one nursery's attempts."""

    def __init__(self) -> None:
        #: When to look next, by the monotonic clock; None while nobody has a limit.
        self.due: float | None = None
        self._at = 0.0
        self._total = 0
        #: Everybody is counted when there are so many, and at the latest at this instant.
        self._enough = 0
        self._count_by = 0.0

    def watch(self, limit: int, now: float) -> None:
        """One more attempt, with this limit, begins."""
        self._enough = min(self._enough, self._total + limit)
        if self.due is None:
            self._at, self._total = now, everybody()
            self._enough = self._total + limit
            self._count_by = now + COUNT_SECS
            self.due = now + _HURRIED_SECS

    def look(
        self, now: float, limits: Mapping[int, int], count: Callable[[], Mapping[int, int]]
    ) -> dict[int, int]:
        """How many those have that are over their limit; `limits` and counts by main process."""
        if not limits:
            self.due = None
            return {}
        total = everybody()
        rate = (total - self._total) / max(now - self._at, 0.001)
        self._at, self._total = now, total
        over: dict[int, int] = {}
        took = 0.0
        if total >= self._enough or now >= self._count_by:
            counts = count()
            took = time.monotonic() - now
            over = {pid: counts[pid] for pid, limit in limits.items() if counts[pid] > limit}
            self._enough = total + max(1, min(limit - counts[pid] for pid, limit in limits.items()))
            self._count_by = now + max(COUNT_SECS, _SHARE * took)
        left = (self._enough - total) / (2 * rate) if rate > 0 else CALM_SECS
        self.due = now + took + max(min(left, CALM_SECS), _HURRIED_SECS, _PAUSE * took)
        return over


def everybody() -> int:
    """Processes and threads on this host; 0 where it cannot be told."""
    with suppress(OSError, ValueError, IndexError):
        fd = os.open("/proc/loadavg", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return int(os.read(fd, 256).split()[3].partition(b"/")[2])
        finally:
            os.close(fd)
    return 0


def families(mains: Iterable[int], main_of: Callable[[int], int | None]) -> dict[int, dict[int, int]]:
    """What descends from each of these children of ours, itself too: process -> number of its threads.

    `main_of` tells of a child of ours that is none of them, an orphan, to which it belongs.
    """
    stats = {pid: stat for pid in process.every_pid() if (stat := process.stat_of(pid)) is not None}
    found: dict[int, dict[int, int]] = {main: {} for main in mains}
    own = os.getpid()
    known: dict[int, int | None] = {own: None, 0: None}
    for pid, stat in stats.items():
        path, at = [], pid
        while at not in known:
            path.append(at)
            above = stats.get(at)
            if at in found:
                known[at] = at
            elif above is None:
                known[at] = None
            elif above.parent == own:
                known[at] = main_of(at)
            else:
                at = above.parent
        main = known[at]
        known.update(dict.fromkeys(path, main))
        if main in found:
            found[main][pid] = max(stat.threads, 1)
    return found
