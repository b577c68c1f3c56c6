"""Whether an agent can be trusted with more work just now. Pure: the clock is an argument.

An agent whose host is sick fails everything at once, and so draws in one job after the other (the black hole,
F035). After `ENOUGH` different jobs in a row that failed through no fault of theirs it gets no new work for a
while, and then for twice as long each time, until one job gets through.
"""

from typing import Final

ENOUGH: Final = 3
WITHIN_SECS: Final = 60.0
FIRST_PAUSE_SECS = 5.0
LAST_PAUSE_SECS = 300.0


class Health:
    """Of one agent, by what becomes of its attempts."""

    def __init__(self) -> None:
        #: Jobs that failed lately, and when; none got through since.
        self._failed: dict[str, float] = {}
        self._pauses = 0
        self._until = 0.0
        self._last = ""

    def failed(self, jid: str, why: str, now: float) -> float:
        """An attempt failed through no fault of its job. Returns for how many seconds it gets no work."""
        self._failed = {one: at for one, at in self._failed.items() if now - at < WITHIN_SECS}
        self._failed[jid] = now
        self._last = why
        if len(self._failed) < ENOUGH or now < self._until:
            return 0.0
        self._failed.clear()
        pause_secs = min(FIRST_PAUSE_SECS * 2.0**self._pauses, LAST_PAUSE_SECS)
        self._pauses += 1
        self._until = now + pause_secs
        return pause_secs

    def got_through(self) -> None:
        """An attempt began and ended by itself: all is well."""
        self._failed.clear()
        self._pauses = 0
        self._until = 0.0

    def why_not(self, now: float) -> str:
        """Why no work is given to it, for people; "" when it may have some."""
        if now >= self._until:
            return ""
        left = self._until - now
        return f"{ENOUGH} jobs in a row failed there, the last: {self._last}; tried again in {left:.0f} s"
