"""A door before an engine's socket, through which an answer may never come back (F109)."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path


class Door:
    """Passes everything on, except the answer to the next `create` of an agent's container, if told so."""

    def __init__(self, engine: Path) -> None:
        self._engine = engine
        self._armed = False
        #: Answers that were swallowed.
        self.lost = 0

    def lose_next_create(self) -> None:
        """The engine will do what it is asked, and nobody will hear of it."""
        self._armed = True

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_unix_connection(self._engine)
        except OSError:  # it is down: so is the door
            writer.close()
            return
        swallow = asyncio.Event()

        async def answer() -> None:
            while data := await there.read(1 << 16):
                if swallow.is_set():
                    self.lost += 1
                    break
                writer.write(data)
                await writer.drain()
            writer.close()

        answering = asyncio.create_task(answer())
        try:
            while data := await reader.read(1 << 16):
                if self._armed and b"containers/create?name=sj-" in data and b"name=sj-open" not in data:
                    self._armed = False
                    swallow.set()
                back.write(data)
                await back.drain()
        except ConnectionError:
            pass
        finally:
            # whoever calls has gone, and wants no answer: none of our clients closes one half only
            answering.cancel()
            back.close()
            writer.close()
            await asyncio.gather(answering, return_exceptions=True)


@asynccontextmanager
async def a_door(path: Path, engine: Path) -> AsyncIterator[Door]:
    """A socket at `path` that leads to the engine's."""
    door = Door(engine)
    async with await asyncio.start_unix_server(door._serve, path):
        yield door
