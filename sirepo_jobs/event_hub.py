"""The stream of what happened, for whoever listens: live from memory, older from the store (BAN-22, I12).

A listener keeps one number, its position. Nothing is queued for it, so a slow one costs nothing: it
falls behind the ring and reads on from the store.
"""

from collections import deque
from collections.abc import AsyncGenerator
from itertools import islice

from .bell import Bell
from .store import Store
from .store.unit import EventRow

#: Newest rows kept in memory: those of a few large batches.
RING = 4096
#: Rows read from the store at once.
PAGE = 500
#: Positions looked at in one go for the events of one user, who may have few among many.
WINDOW = 10_000


class EventHub:
    """Gives out positions in the stream, and lets listeners follow it."""

    def __init__(self, store: Store, last_seq: int) -> None:
        self._store = store
        self._given = last_seq
        #: Everything up to here is durable and visible.
        self.last = last_seq
        self._ring: deque[EventRow] = deque(maxlen=RING)
        self._news = Bell()

    def next_seq(self) -> int:
        """The next position."""
        self._given += 1
        return self._given

    def publish(self, rows: list[EventRow]) -> None:
        """Show rows that are durable now; they come in order."""
        if not rows:
            return
        self._ring.extend(rows)
        self.last = rows[-1].seq
        self._news.ring()

    async def news(self) -> None:
        """Return at the next publication."""
        await self._news.wait()

    async def follow(self, after: int, *, user: str | None) -> AsyncGenerator[list[EventRow], None]:
        """Every row above `after`, once and in order, then new ones as they come; `user`'s only, if given.

        As many at a time as there are: what one commit has made durable is one piece.
        """
        position = after
        while True:
            if position >= self.last:
                await self.news()
                continue
            if self._ring and position >= self._ring[0].seq - 1:
                # positions have no gaps, so this many are new
                rows = list(islice(reversed(self._ring), self.last - position))[::-1]
                position = rows[-1].seq
            else:
                upto = min(self.last, position + WINDOW)
                rows = await self._store.events(after=position, upto=upto, limit=PAGE, user=user)
                position = rows[-1].seq if len(rows) == PAGE else upto
            if user is not None:
                rows = [row for row in rows if row.user == user]
            if rows:
                yield rows
