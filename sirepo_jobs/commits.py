"""What one turn of the supervisor's loop wants written down, and what waits for it.

Everything that happens between two flushes goes into one `Unit`; the store merges units further.
Whatever the world may see of a change (an answer, a message, an event) is put behind `after`, so it
happens only once the change is durable (C1, C14).
"""

import asyncio
from collections.abc import Callable
from typing import Any

from .store import Store
from .store.unit import Unit

#: While something becomes durable, the store's health is looked at so often.
LOOK_SECS = 0.2


class Commits:
    """The open unit. Owned by the supervisor; used on the loop's thread only."""

    def __init__(
        self, store: Store, loop: asyncio.AbstractEventLoop, decide: Callable[[], None] = lambda: None
    ) -> None:
        self._store = store
        self._loop = loop
        #: Called before a unit is handed over: what follows from this turn's news belongs to it.
        self._decide = decide
        self._unit = Unit()
        self._scheduled = False
        self._closed = False

    @property
    def unit(self) -> Unit:
        """The unit to add rows to; it is handed to the store when the present turn of the loop is over."""
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self.flush)
        return self._unit

    def after(self, act: Callable[[], None]) -> None:
        """Do `act` when everything written so far, this turn included, is durable."""
        self.unit.done.append(act)

    async def durable(self) -> None:
        """Return when everything written so far is durable."""
        done = asyncio.Event()
        self.after(done.set)
        await done.wait()

    async def settled(self) -> bool:
        """Return True when everything so far is durable, False when nothing can be written at present."""
        if self._store.degraded:
            return False
        durable = asyncio.ensure_future(self.durable())
        if await self.unless_degraded(durable):
            return True
        durable.cancel()
        return False

    async def unless_degraded(self, under_way: "asyncio.Future[Any]") -> bool:
        """Wait for something that ends with a commit: True when it is done, False when it cannot be now.

        It goes on in either case: what was begun is written as soon as that is possible.
        """
        while not (await asyncio.wait({under_way}, timeout=LOOK_SECS))[0]:
            if self._store.degraded:
                return False
        return True

    def flush(self) -> None:
        """Hand the open unit to the store now."""
        try:
            self._decide()
        finally:  # whatever is wrong there must not keep what has happened from being written down
            self._scheduled = False
            if self._unit and not self._closed:
                unit, self._unit = self._unit, Unit()
                self._store.submit(unit)

    def close(self) -> None:
        """Hand over what there is, and nothing after it: what happens later is neither kept nor told."""
        self.flush()
        self._closed = True
