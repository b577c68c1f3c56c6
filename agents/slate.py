"""What a spawner knows that it has not told yet, in memory shared with the launcher.

A spawner tells of a birth some milliseconds late, and of an end after everything is cleaned up. If it
is killed in between, the launcher reads here which process is whose and which wait status was taken.
"""

import mmap
import struct
from typing import Final, NamedTuple

from sirepo_jobs.reasons import Reason

_SLOT: Final = struct.Struct("<QqIiQB")
_STATUS: Final = struct.Struct("<i")
_STATUS_AT: Final = 20
_WHY_AT: Final = 32
#: Why it was signaled; by its place in here, 0 for not at all.
_WHY: Final = (None, None, Reason.TIME_LIMIT, Reason.AGENT_LOST, Reason.OUTPUT_LIMIT, Reason.PROCESS_LIMIT)
_STOPPED: Final = 1
_SLOTS: Final = 1024
#: No wait status is this.
_RUNNING: Final = -1


class Line(NamedTuple):
    """One attempt that its spawner had in hand."""

    ticket: int
    started_at: int
    pid: int
    #: The kernel's wait status, once the process was waited for.
    status: int | None
    #: The attempt in whose place it was started; 0 = none.
    instead_of: int
    #: We signaled it before it ended by itself ...
    stopped: bool
    #: ... because of this; None when somebody wished it.
    reason: Reason | None


#: All that is known of an attempt that does not stand on a slate.
NOTHING: Final = Line(0, 0, 0, None, 0, stopped=False, reason=None)


class Slate:
    """Fixed memory; one spawner writes, the launcher reads after that spawner's death."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _SLOT.size * _SLOTS)
        self._free = list(range(_SLOTS - 1, -1, -1))

    def note(self, ticket: int, pid: int, started_at: int, instead_of: int) -> int:
        """A process was born. Returns the slot for `ended` and `wipe`; -1 when there is no room."""
        if not self._free:
            return -1
        slot = self._free.pop()
        _SLOT.pack_into(self._memory, slot * _SLOT.size, ticket, started_at, pid, _RUNNING, instead_of, 0)
        return slot

    def ended(self, slot: int, status: int) -> None:
        """Its wait status was taken."""
        if slot >= 0:
            _STATUS.pack_into(self._memory, slot * _SLOT.size + _STATUS_AT, status)

    def blame(self, slot: int, reason: Reason | None) -> None:
        """It is being stopped by us."""
        if slot >= 0:
            self._memory[slot * _SLOT.size + _WHY_AT] = _WHY.index(reason, _STOPPED)

    def wipe(self, slot: int) -> None:
        """The launcher was told everything."""
        if slot >= 0:
            _SLOT.pack_into(self._memory, slot * _SLOT.size, 0, 0, 0, 0, 0, 0)
            self._free.append(slot)

    def read(self) -> dict[int, Line]:
        """By ticket: what was in hand."""
        lines = {}
        for ticket, started_at, pid, status, instead_of, why in _SLOT.iter_unpack(self._memory):
            if ticket:
                known = None if status == _RUNNING else status
                lines[ticket] = Line(
                    ticket, started_at, pid, known, instead_of, stopped=why > 0, reason=_WHY[why]
                )
        return lines

    def close(self) -> None:
        """Give the memory back."""
        self._memory.close()
