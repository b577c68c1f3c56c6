"""An output that the front end reads itself, where the supervisor tells how far it reaches (design 4, C8).

The agent has opened the file and vouches for each byte; it, and the supervisor, only say how far they may be
given away. Bytes that went through all of our processes would be copied a dozen times; so the kernel moves
them from the file to the client's socket, and where that cannot be (TLS) they are copied once.
"""

import asyncio
import os
import select
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from tornado.iostream import IOStream, StreamClosedError

from sirepo_jobs.errors import RemoteError
from sirepo_jobs.run_tree import OnDisk, Refused

#: Copied at once. Many readers may be slow, and each of them has so much in memory.
COPIED_BYTES: Final = 128 << 10
#: Moved at once; then others get their turn.
MOVED_BYTES: Final = 8 << 20
#: A thread waits so long for a client who is fast; for others the loop waits.
PATIENCE_MS: Final = 5
#: A disk that does not answer holds up these, and nobody else.
THREADS: Final = 4
_MAX_LINE_BYTES: Final = 32

_Result = TypeVar("_Result")
_threads = ThreadPoolExecutor(THREADS, thread_name_prefix="output")


class FilePass:
    """One output on its way from the disk to one client."""

    def __init__(
        self,
        place: OnDisk,
        *,
        begin: Callable[[], None],
        data: "Callable[[bytes], asyncio.Future[None] | None]",
        over: Callable[[Exception | None], None],
        direct: IOStream | None,
    ) -> None:
        """`begin`: told once the file is open. `data`: takes a piece, as `Answer.data` does. `over`: told
        when all is sent, or what went wrong; not after `close`. `direct`: the client's connection, where the
        answer is in chunks and whole chunks may be written to its socket."""
        self._place = place
        self._begin = begin
        self._data = data
        self._over = over
        self._direct = direct
        self._line = b""
        self._mark = self._offset = place.offset
        #: No further mark follows.
        self._ended = False
        self._news = asyncio.Event()
        self._fd = -1
        #: The file is open, or never will be.
        self.settled = asyncio.Event()
        #: A thread works for us: what it has in hand must not be closed.
        self._at_work = False
        self._closed = False
        self._task = asyncio.create_task(self._run(), name=f"output {place.run_dir}")

    def feed(self, data: bytes) -> None:
        """Marks as the supervisor sends them: lines with a number. Raises `RemoteError` for anything else."""
        *lines, self._line = (self._line + data).split(b"\n")
        if len(self._line) > _MAX_LINE_BYTES or not all(line.isdigit() for line in lines):
            raise RemoteError(f"{data[:64]!r} are no marks")
        if lines:
            self._mark = max(self._mark, int(lines[-1]))
            self._news.set()

    def end(self) -> None:
        """All marks are there."""
        self._ended = True
        self._news.set()

    def close(self) -> None:
        """Nobody wants it any more; safe to repeat."""
        self._closed = True
        self.settled.set()
        if not self._at_work:
            self._task.cancel()

    async def _run(self) -> None:
        try:
            await self._send_all()
        except StreamClosedError as exc:
            error: Exception | None = ConnectionResetError(str(exc))
        except (OSError, Refused, RemoteError) as exc:
            error = exc
        else:
            error = None
        finally:
            self.settled.set()
            if self._fd >= 0:
                os.close(self._fd)
        self._over(error)

    async def _send_all(self) -> None:
        await self._in_thread(self._open)
        self._begin()
        self.settled.set()
        while True:
            while (left := self._mark - self._offset) > 0:
                if self._direct is None or left < COPIED_BYTES:
                    await self._copy(min(left, COPIED_BYTES))
                else:
                    await self._move(min(left, MOVED_BYTES), self._direct)
            if self._ended:
                break
            self._news.clear()
            await self._news.wait()

    async def _copy(self, count: int) -> None:
        piece = await self._in_thread(os.pread, self._fd, count, self._offset)
        if not piece:
            raise self._cut()
        self._offset += len(piece)
        if (taken := self._data(piece)) is not None:
            await taken

    async def _move(self, count: int, client: IOStream) -> None:
        """One chunk, by the kernel. Nothing else is written meanwhile: what we said before was taken."""
        await client.write(b"%x\r\n" % count)
        end = self._offset + count
        # a descriptor of our own: Tornado waits with the other, and each can be waited for once
        out = os.dup(client.socket.fileno())
        try:
            while self._offset < end:
                moved = await self._in_thread(_move, self._fd, self._offset, end, out)
                if moved is None:
                    raise self._cut()
                self._offset += moved
                if self._offset < end:
                    await self._writable(out)
        finally:
            os.close(out)
        await client.write(b"\r\n")

    async def _writable(self, out: int) -> None:
        ready = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_writer(out, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_writer(out)

    def _cut(self) -> RemoteError:
        return RemoteError(f"{self._place.name} was cut at byte {self._offset}")

    def _open(self) -> None:
        self._fd = self._place.open()

    async def _in_thread(self, work: Callable[..., _Result], *words: Any) -> _Result:
        self._at_work = True
        try:
            result = await asyncio.get_running_loop().run_in_executor(_threads, work, *words)
        finally:
            self._at_work = False
        if self._closed:
            raise asyncio.CancelledError
        return result


def _move(fd: int, start: int, end: int, out: int) -> int | None:
    """Move bytes of a file into a socket while it takes them; how many, None where the file has no more."""
    poll = select.poll()
    poll.register(out, select.POLLOUT)
    offset = start
    while offset < end:
        try:
            moved = os.sendfile(out, fd, offset, end - offset)
        except BlockingIOError:
            if not poll.poll(PATIENCE_MS):
                break
        else:
            if not moved:
                return None
            offset += moved
    return offset - start
