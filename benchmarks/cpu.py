"""CPU time of everything that a contestant runs, its servers and the jobs included.

A contestant is a child subreaper: whatever it starts stays below it, daemons too, and the times of those
that ended are with whoever reaped them.
"""

import ctypes
import os
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_TICKS = os.sysconf("SC_CLK_TCK")


def keep_orphans() -> None:
    """For the child, before it becomes the contestant: orphans below it become its own. Outlives exec."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def tree_secs(pid: int) -> float:
    """User and system time of `pid`, of all below it, and of those of them that ended and were waited for."""
    parents: dict[int, tuple[int, int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                fields = Path(f"/proc/{name}/stat").read_bytes().rpartition(b")")[2].split()
            except OSError:
                continue  # it ended meanwhile; its parent has its time, or will
            parents[int(name)] = int(fields[1]), sum(map(int, fields[11:15]))
    wanted, grown = {pid}, True
    while grown:
        more = {child for child, (parent, _) in parents.items() if parent in wanted} - wanted
        wanted |= more
        grown = bool(more)
    return sum(parents[one][1] for one in wanted if one in parents) / _TICKS
