"""What one turn of the supervisor's loop wants written down, and what waits for it.

Everything that happens between two flushes goes into one `Unit`; the store merges units further.
Whatever the world may see of a change (an answer, a message, an event) is put behind `after`, so it
happens only once the change is durable (C1, C14).
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from .errors import Unavailable
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
        #: Those who want to know whether it became durable, or cannot.
        self._waiting: dict[asyncio.Future[bool], None] = {}
        self._looking: asyncio.TimerHandle | None = None

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
        done = self._loop.create_future()
        self.after(partial(_tell, done, True))
        await done

    async def settled(self) -> bool:
        """Return True when everything so far is durable, False when nothing can be written at present."""
        if self._store.degraded:
            return False
        told: asyncio.Future[bool] = self._loop.create_future()
        self.after(partial(_tell, told, True))
        return await self._unless_degraded(told)

    async def written(self, then: str = "ask again") -> None:
        """Return when everything so far is durable. Raises `Unavailable` when that cannot be written now.

        `then`: what the caller had better do; most things may be asked again.
        """
        if not await self.settled():
            raise self.unwritten(then)

    def unwritten(self, then: str) -> Unavailable:
        """What is to be said of something that will be done when the store can be written again."""
        why = self._store.degraded or "it could not a moment ago"
        return Unavailable(
            f"this is not written down yet, and will be when the store can: {why}; {then}",
            code="store_degraded",
        )

    def _look_later(self) -> None:
        """One timer for all who wait."""
        if self._looking is None:
            self._looking = self._loop.call_later(LOOK_SECS, self._look)

    def _look(self) -> None:
        self._looking = None
        if self._store.degraded:
            for told in self._waiting:
                _tell(told, False)
        elif self._waiting:
            self._look_later()

    async def unless_degraded(self, under_way: "asyncio.Future[Any]") -> bool:
        """Wait for something that ends with a commit: True when it is done, False when it cannot be now.

        It goes on in either case: what was begun is written as soon as that is possible.
        """
        told: asyncio.Future[bool] = self._loop.create_future()
        under_way.add_done_callback(lambda _done: _tell(told, True))
        return await self._unless_degraded(told)

    async def _unless_degraded(self, told: "asyncio.Future[bool]") -> bool:
        """What it is told, or False from the next look on when nothing can be written."""
        self._waiting[told] = None
        self._look_later()
        try:
            return await told
        finally:
            self._waiting.pop(told, None)

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


def _tell(told: "asyncio.Future[bool]", word: bool) -> None:
    if not told.done():
        told.set_result(word)
