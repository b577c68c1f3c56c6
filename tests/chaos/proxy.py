"""A proxy that misbehaves: delays, cuts, refuses, goes silent; and, where it can read the frames of a
websocket, says messages twice, holds them back and says old ones again.

What a network cannot do is left out: bytes inside one connection are never reordered or altered. Late
messages of an old connection come by a new one, as they do from a proxy that retries.
"""

import asyncio
import os
import random
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

_READ_BYTES = 1 << 16
_TEXT, _BINARY = 1, 2


class Faults:
    """What a link does wrong at present; all off by default."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Behave."""
        #: Seconds that every piece is late.
        self.delay_secs = 0.0
        #: New connections are closed at once.
        self.refuse = False
        #: Nothing passes in these directions, and nobody is told (half-open, one-way).
        self.silent: frozenset[str] = frozenset()
        #: Each connection is cut after so many more bytes, in the middle of whatever that is.
        self.cut_after: int | None = None
        #: How likely a message comes twice, or is followed by one of an earlier connection.
        self.twice = 0.0
        self.old = 0.0
        #: Bytes arrive in slices of this size.
        self.slice_bytes = 0


class Frames:
    """Cuts one direction of a connection into its head (HTTP) and whole websocket frames."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._upgraded = False

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """`(opcode, bytes)` of everything complete; opcode 0 for what is not one whole message."""
        self._held += data
        found: list[tuple[int, bytes]] = []
        if not self._upgraded:
            end = self._held.find(b"\r\n\r\n")
            if end < 0:
                return found
            found.append((0, bytes(self._held[: end + 4])))
            del self._held[: end + 4]
            self._upgraded = True
        while (length := self._length()) is not None and len(self._held) >= length:
            frame = bytes(self._held[:length])
            del self._held[:length]
            final = frame[0] & 0x80
            found.append((frame[0] & 0x0F if final else 0, frame))
        return found

    def _length(self) -> int | None:
        held = self._held
        if len(held) < 2:
            return None
        size, at = held[1] & 0x7F, 2
        if size >= 126:
            more = 2 if size == 126 else 8
            if len(held) < at + more:
                return None
            size = int.from_bytes(held[at : at + more])
            at += more
        return at + (4 if held[1] & 0x80 else 0) + size


class Link:
    """One listening address and where it leads."""

    def __init__(self, name: str, reach: Callable[[], Any], *, frames: bool, seed: int) -> None:
        self.name = name
        self.faults = Faults()
        #: For the report.
        self.counts = dict.fromkeys(("connections", "cut", "twice", "old", "refused", "bytes"), 0)
        self._reach = reach
        self._frames = frames
        self._rng = random.Random(seed)
        self._open: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        #: Text messages of connections before, by direction.
        self._past: dict[str, deque[bytes]] = {"up": deque(maxlen=50), "down": deque(maxlen=50)}
        self.changed = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, for as long as both ends and the faults allow."""
        # asyncio's servers complain about connections that are canceled, as ours are at the end.
        with suppress(asyncio.CancelledError):
            await self._serve(reader, writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.faults.refuse:
            self.counts["refused"] += 1
            _abort(writer)
            return
        try:
            far_reader, far_writer = await self._reach()
        except OSError:
            _abort(writer)
            return
        self.counts["connections"] += 1
        ends = {writer, far_writer}
        self._writers |= ends
        tasks = {
            asyncio.ensure_future(self._pump("up", reader, far_writer)),
            asyncio.ensure_future(self._pump("down", far_reader, writer)),
        }
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            # A polite end of one direction is passed on; the other may still have something to say.
            if all(not task.cancelled() and task.exception() is None and task.result() for task in done):
                await asyncio.wait(tasks, timeout=5)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for end in ends:
                _abort(end)
            self._writers -= ends

    async def _pump(self, way: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        frames = Frames() if self._frames else None
        said: list[bytes] = []
        old = list(self._past[way])
        budget: int | None = None
        try:
            while data := await reader.read(_READ_BYTES):
                faults = self.faults
                while way in faults.silent:
                    self.changed.clear()
                    await self.changed.wait()
                if faults.delay_secs:
                    await asyncio.sleep(faults.delay_secs * self._rng.random())
                if faults.cut_after is not None:
                    budget = faults.cut_after if budget is None else budget
                    if len(data) > budget:
                        writer.write(data[:budget])
                        await writer.drain()
                        self.counts["cut"] += 1
                        return False
                    budget -= len(data)
                else:
                    budget = None
                self.counts["bytes"] += len(data)
                if frames is None:
                    await self._write(writer, data)
                    continue
                for opcode, frame in frames.feed(data):
                    await self._write(writer, frame)
                    if opcode == _TEXT:
                        said.append(frame)
                    if opcode in (_TEXT, _BINARY) and self._rng.random() < faults.twice:
                        self.counts["twice"] += 1
                        await self._write(writer, frame)
                    if opcode == _TEXT and old and self._rng.random() < faults.old:
                        self.counts["old"] += 1
                        await self._write(writer, self._rng.choice(old))
            with suppress(OSError, RuntimeError):
                writer.write_eof()
            return True
        except (OSError, asyncio.IncompleteReadError):
            return False
        finally:
            self._past[way].extend(said[-50:])

    async def _write(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        step = self.faults.slice_bytes or len(data)
        for at in range(0, len(data), step):
            writer.write(data[at : at + step])
            await writer.drain()

    def cut(self) -> None:
        """Reset every connection now."""
        for writer in list(self._writers):
            self.counts["cut"] += 1
            _abort(writer)


def _abort(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


class Proxy:
    """All links, served by a thread of their own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._servers: list[asyncio.Server] = []
        self.links: dict[str, Link] = {}

    def unix(self, name: str, path: str, target: str, seed: int) -> Link:
        """Listen on a socket file for what goes to another one; its messages can be told apart."""

        async def reach() -> Any:
            return await asyncio.open_unix_connection(target)

        link = self.links[name] = self._call(self._make(name, reach, frames=True, seed=seed))
        self._servers.append(self._call(asyncio.start_unix_server(link.serve, path)))
        os.chmod(path, 0o600)
        return link

    def tcp(self, name: str, port: int, seed: int) -> tuple[Link, int]:
        """Listen on a port of the loopback interface for what goes to another one."""

        async def reach() -> Any:
            return await asyncio.open_connection("127.0.0.1", port)

        link = self.links[name] = self._call(self._make(name, reach, frames=False, seed=seed))
        server = self._call(asyncio.start_server(link.serve, "127.0.0.1", 0))
        self._servers.append(server)
        return link, server.sockets[0].getsockname()[1]

    async def _make(self, name: str, reach: Callable[[], Any], *, frames: bool, seed: int) -> Link:
        return Link(name, reach, frames=frames, seed=seed)

    def do(self, act: Callable[[], None]) -> None:
        """Change faults or cut, between two steps of the links."""

        async def run() -> None:
            act()
            for link in self.links.values():
                link.changed.set()

        self._call(run())

    def close(self) -> None:
        """End everything."""

        async def stop() -> None:
            for server in self._servers:
                server.close()
            for link in self.links.values():
                link.cut()
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self._call(stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _call(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)
