"""Counted capacity: who holds how much of a pool, exactly once, on every path (SIR-13, SIR-L6, I21).

A pool never loses a slot: `free + held = size` is true after each call, and `check` says so. Giving
back what one does not hold is answered with False, not with slots from nowhere.
"""

from collections.abc import Hashable

from .resources import Resources

NOTHING = Resources(cpus=0)


class Pool:
    """The slots of one place."""

    def __init__(self, name: str, size: Resources) -> None:
        self.name = name
        self.size = size
        #: What nobody holds; below zero only while adopted work holds more than there is.
        self.free = size
        self._held: dict[Hashable, Resources] = {}

    def holds(self, holder: Hashable) -> bool:
        """Whether `holder` has slots here."""
        return holder in self._held

    @property
    def is_overbooked(self) -> bool:
        """More is held than there is: work was adopted that runs in slots of others."""
        return not NOTHING.fits(self.free)

    def take(self, holder: Hashable, need: Resources) -> bool:
        """Give `need` to `holder` if it fits; True when the holder has its slots, also from before."""
        if holder in self._held:
            return True
        if not need.fits(self.free):
            return False
        self.adopt(holder, need)
        return True

    def adopt(self, holder: Hashable, need: Resources) -> None:
        """Book slots that are in use already (after a restart), whether or not they fit."""
        if holder not in self._held:
            self._held[holder] = need
            self.free = self.free.plus(need, -1)

    def give_back(self, holder: Hashable) -> bool:
        """Return what `holder` has; False when it has nothing."""
        need = self._held.pop(holder, None)
        if need is None:
            return False
        self.free = self.free.plus(need)
        return True

    def hand_over(self, holder: Hashable, heir: Hashable, need: Resources) -> bool:
        """Pass slots from `holder` to `heir`, who needs `need`, without anybody coming between.

        What is left over is free. False, and nothing changes, when the holder has nothing or too little,
        or the heir has slots already.
        """
        had = self._held.get(holder)
        if had is None or heir in self._held or not need.fits(had):
            return False
        self.give_back(holder)
        self.adopt(heir, need)
        return True

    def check(self) -> None:
        """Raise `AssertionError` unless free + held = size."""
        total = self.free
        for need in self._held.values():
            total = total.plus(need)
        assert total == self.size, (
            f"pool {self.name}: free {self.free} + held {self._held} != size {self.size}"
        )
