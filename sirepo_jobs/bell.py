"""Tells all who wait that something has happened; each once, in the next turn of the loop."""

import asyncio


class Bell:
    """Whoever waits when it rings goes on, in the order in which they came."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        #: In the order in which they came, which is the same each time; a set's is not.
        self._waiting: dict[asyncio.Future[None], None] = {}

    def ring(self) -> None:
        """Wake everybody who waits now."""
        for one in self._waiting:
            if not one.done():
                one.set_result(None)

    async def wait(self) -> None:
        """Return after the next ring. Who gives up leaves nothing behind."""
        # a future for each: shared ones must be shielded, which costs a turn of the loop more
        one = asyncio.get_running_loop().create_future()
        self._waiting[one] = None
        try:
            await one
        finally:
            self._waiting.pop(one, None)
