"""What one turn of the supervisor's loop wants written down, and what waits for it.

Everything that happens between two flushes goes into one `Unit`; the store merges units further.
Whatever the world may see of a change (an answer, a message, an event) is put behind `after`, so it
happens only once the change is durable (C1, C14).
"""

import asyncio
from collections.abc import Callable

from .store import Store
from .store.unit import Unit


class Commits:
    """The open unit. Owned by the supervisor; used on the loop's thread only."""

    def __init__(self, store: Store, loop: asyncio.AbstractEventLoop) -> None:
        self._store = store
        self._loop = loop
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

    def flush(self) -> None:
        """Hand the open unit to the store now."""
        self._scheduled = False
        if self._unit and not self._closed:
            unit, self._unit = self._unit, Unit()
            self._store.submit(unit)

    def close(self) -> None:
        """Hand over what there is, and nothing after it: what happens later is neither kept nor told."""
        self.flush()
        self._closed = True
