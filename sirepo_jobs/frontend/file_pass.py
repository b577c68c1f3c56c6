"""An output that the front end reads itself, where the supervisor tells how far it reaches (design 4, C8).

The agent has opened the file and vouches for each byte; it, and the supervisor, only say how far they may be
given away. Bytes that went through all of our processes would be copied a dozen times; so the kernel moves
them from the file to the client's socket, and where that cannot be (TLS) they are copied once.
"""

import asyncio
import logging
import os
import select
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from tornado.iostream import IOStream, StreamClosedError

from sirepo_jobs.errors import RemoteError
from sirepo_jobs.run_tree import OnDisk, Refused

from .disk_threads import Lane

log = logging.getLogger(__name__)

#: Copied at once. Many readers may be slow, and each of them has so much in memory.
COPIED_BYTES: Final = 128 << 10
#: Moved at once; then others get their turn.
MOVED_BYTES: Final = 8 << 20
#: A thread waits so long for a client who is fast; for others the loop waits.
PATIENCE_MS: Final = 5
#: Then it is another one's turn.
TURN_SECS: Final = 1.0
#: In a file at once: whoever has a disk so slow that this takes longer than `READ_SECS` is not waited for.
STEP_BYTES: Final = 1 << 20
#: A file that is not open by then comes by way of its agent.
OPEN_SECS: Final = 2.5
#: An output whose disk does not answer for so long breaks off.
READ_SECS: Final = 10.0
_MAX_LINE_BYTES: Final = 32


class FilePass:
    """One output on its way from the disk to one client."""

    def __init__(
        self,
        place: OnDisk,
        lane: Lane,
        *,
        begin: Callable[[], None],
        data: "Callable[[bytes], asyncio.Future[None] | None]",
        over: Callable[[Exception | None], None],
        direct: IOStream | None,
    ) -> None:
        """`lane`: of the place's run root. `begin`: told once the file is open. `data`: takes a piece, as
        `Answer.data` does. `over`: told when all is sent, or what went wrong; not after `close`.
        `direct`: the client's connection, where the answer is in chunks and whole chunks may be written to
        its socket."""
        self._place = place
        self._lane = lane
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
        #: The client's socket, while its bytes are moved there.
        self._out = -1
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

    def may_complain(self) -> bool:
        """Whether the log has not heard of this run root for a while."""
        return self._lane.may_complain()

    def close(self) -> None:
        """Nobody wants it any more; safe to repeat."""
        self._closed = True
        self.settled.set()
        if not self._at_work:
            self._task.cancel()
        elif self._out >= 0:
            # as long as the thread has it in hand it is not closed, whoever else closes it
            with suppress(OSError), socket.socket(fileno=os.dup(self._out)) as client:
                client.shutdown(socket.SHUT_RDWR)

    async def _run(self) -> None:
        try:
            await self._send_all()
        except StreamClosedError as exc:
            error: Exception | None = ConnectionResetError(str(exc))
        except (OSError, Refused, RemoteError) as exc:
            error = exc
        except Exception as exc:
            log.exception("an output broke off")
            error = exc
        else:
            error = None
        finally:
            self.settled.set()
            self._let_go(self._fd)
        self._over(error)

    def _let_go(self, fd: int) -> None:
        # what a thread has in hand, while the front end ends, goes with the process
        if fd >= 0 and not self._at_work:
            os.close(fd)

    async def _send_all(self) -> None:
        self._lane.check()
        await self._in_thread(OPEN_SECS, self._open)
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
        piece = await self._in_thread(READ_SECS, os.pread, self._fd, count, self._offset)
        if not piece:
            raise self._cut()
        self._offset += len(piece)
        if (taken := self._data(piece)) is not None:
            await taken

    async def _move(self, count: int, client: IOStream) -> None:
        """One chunk, by the kernel. Nothing else is written meanwhile: what we said before was taken."""
        await client.write(b"%x\r\n" % count)
        if client.closed():  # it was, while that was taken; there is no socket any more
            raise StreamClosedError
        end = self._offset + count
        # a descriptor of our own: Tornado waits with the other, and each can be waited for once
        self._out = out = os.dup(client.socket.fileno())
        try:
            while self._offset < end:
                moved = await self._in_thread(READ_SECS, _move, self._fd, self._offset, end, out)
                if moved is None:
                    raise self._cut()
                self._offset += moved
                if self._offset < end:
                    await self._writable(out)
        finally:
            self._out = -1
            self._let_go(out)
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

    async def _in_thread(self, secs: float, work: Callable[..., Any], *words: Any) -> Any:
        """What comes of `work`. After `secs` whoever reads is told that it hangs; we wait on, since a thread
        has our descriptors in hand. Raises `Refused` when no thread is free in that time."""
        until = time.monotonic() + secs
        try:
            async with asyncio.timeout(secs):
                future = await self._lane.begin(work, *words)
        except TimeoutError:
            raise self._late(secs) from None
        self._at_work = True
        done, _ = await asyncio.wait({future}, timeout=until - time.monotonic())
        if not done:
            self._lane.hangs(future)
            if not self._closed:
                self._over(self._late(secs))
                self._closed = True
        try:
            await asyncio.wait({future})
        finally:
            self._at_work = not future.done()
        if self._closed:
            future.exception()  # of no interest
            raise asyncio.CancelledError
        return future.result()

    def _late(self, secs: float) -> Refused:
        return Refused(f"{self._place.run_root} has not answered for {secs:g} s", "trouble")


def _move(fd: int, start: int, end: int, out: int) -> int | None:
    """Move bytes of a file into a socket while it takes them; how many, None where the file has no more."""
    poll = select.poll()
    poll.register(out, select.POLLOUT)
    offset = start
    until = time.monotonic() + TURN_SECS
    while offset < end and time.monotonic() < until:
        try:
            moved = os.sendfile(out, fd, offset, min(end - offset, STEP_BYTES))
        except BlockingIOError:
            if not poll.poll(PATIENCE_MS):
                break
        else:
            if not moved:
                return None
            offset += moved
    return offset - start
