"""Reading outputs for the supervisor: bytes at offsets, as many as it gives credit for (C8, C16).

To somebody on this host who opens the file too, it is told how far the bytes reach, and they need not travel.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from sirepo_jobs.agents.file_readings import ArchiveReading, Failed, FileReading
from sirepo_jobs.agents.roster import Key
from sirepo_jobs.protocol import (
    CHUNK_BYTES,
    WINDOW_BYTES,
    Exited,
    FileOpened,
    OutputEnd,
    OutputMark,
    ReadArchive,
    ReadFile,
    ReadOutput,
    ReadRange,
    encode_chunk,
)
from sirepo_jobs.run_tree import Refused, RunFiles

#: Followers look for growth so often, all with one timer.
FOLLOW_SECS: Final = 0.05
STREAMS: Final = ("stdout", "stderr")
MAX_READINGS: Final = 1000


class Reading:
    """One `ReadOutput` on its way."""

    def __init__(self, ask: ReadOutput) -> None:
        self.ask = ask
        self.fd = -1
        self.offset = ask.offset
        self.stop_at = None if ask.limit is None else ask.offset + ask.limit
        self.credit = WINDOW_BYTES
        #: Length of the file when its attempt ended; None while it may grow.
        self.final: int | None = None
        #: Everything there is was sent; look again later.
        self.idle = False
        #: When the last mark was set, by the loop's clock.
        self.marked_at = float("-inf")

    def close(self) -> None:
        """Safe to repeat."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    @property
    def key(self) -> Key:
        """The attempt that it reads of."""
        return (self.ask.jid, self.ask.attempt)


class Readings:
    """All readings of one connection, served in turns by one task."""

    def __init__(
        self,
        files: RunFiles,
        is_live: Callable[[Key], bool],
        send: Callable[[bytes], Awaitable[None]],
        say: Callable[[OutputEnd | OutputMark | FileOpened], None],
    ) -> None:
        self._files = files
        self._is_live = is_live
        #: Sends a chunk, and waits while the connection is slow.
        self._send = send
        self._say = say
        self._readings: dict[int, Reading | FileReading | ArchiveReading] = {}
        self._wake = asyncio.Event()

    def add(self, ask: ReadOutput | ReadFile | ReadArchive) -> None:
        """Begin one; who asks twice under one `op_id` gets one."""
        if ask.op_id in self._readings:
            return
        offset = 0 if isinstance(ask, ReadArchive) else ask.offset
        if isinstance(ask, ReadOutput) and ask.stream not in STREAMS:
            self._say(OutputEnd(op_id=ask.op_id, offset=offset, error=f"there is no stream {ask.stream!r}"))
        elif len(self._readings) >= MAX_READINGS:
            error = "too many readings at once"
            self._say(OutputEnd(op_id=ask.op_id, offset=offset, error=error, code="busy"))
        else:
            self._readings[ask.op_id] = self._reading(ask)
            self._wake.set()

    def _reading(self, ask: ReadOutput | ReadFile | ReadArchive) -> Reading | FileReading | ArchiveReading:
        match ask:
            case ReadFile():
                return FileReading(ask, self._files, self._say)
            case ReadArchive():
                return ArchiveReading(ask, self._files)
        return Reading(ask)

    def take(self, ask: ReadRange) -> None:
        """Send these bytes of a file that was opened."""
        reading = self._readings.get(ask.op_id)
        if isinstance(reading, FileReading):
            reading.take(ask.offset, ask.limit)
            self._wake.set()

    def credit(self, op_id: int, count: int) -> None:
        """So many more bytes may be sent."""
        reading = self._readings.get(op_id)
        if reading is not None:
            reading.credit = min(reading.credit + max(count, 0), WINDOW_BYTES)
            self._wake.set()

    def remove(self, op_id: int) -> None:
        """Nobody listens any more."""
        reading = self._readings.pop(op_id, None)
        if reading is not None:
            reading.close()

    def ended(self, exited: Exited) -> None:
        """The attempt is over: its files have their final lengths."""
        for reading in self._readings.values():
            if isinstance(reading, Reading) and reading.key == (exited.jid, exited.attempt):
                final = exited.stdout_bytes if reading.ask.stream == "stdout" else exited.stderr_bytes
                if final is not None:
                    reading.final = final
                reading.idle = False
                self._wake.set()

    async def serve(self) -> None:
        """Until canceled. Small turns: nobody waits behind a long file."""
        try:
            while True:
                self._wake.clear()
                busy = waiting = False
                for op_id in list(self._readings):
                    reading = self._readings.get(op_id)
                    if reading is None:
                        continue
                    with self._files.busy(reading.ask.run_dir):
                        if isinstance(reading, Reading):
                            chunk = self._next(reading)
                            waiting = waiting or reading.idle
                        else:
                            chunk = self._next_of_files(op_id, reading)
                    if chunk is not None:
                        busy = True
                        if chunk:
                            await self._send(chunk)
                        await asyncio.sleep(0)
                if not busy:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(FOLLOW_SECS if waiting else None):
                            await self._wake.wait()
        finally:
            for op_id in list(self._readings):
                self.remove(op_id)

    def _next_of_files(self, op_id: int, reading: FileReading | ArchiveReading) -> bytes | None:
        """The same for a file or an archive; empty when there was much to do for no bytes."""
        if reading.credit <= 0:
            return None
        offset = reading.offset
        try:
            data = reading.next(min(CHUNK_BYTES, reading.credit))
        except Failed as exc:
            self.remove(op_id)
            self._say(OutputEnd(op_id=op_id, offset=reading.offset, error=str(exc), code=exc.code))
            return None
        if reading.over:
            self.remove(op_id)
            self._say(OutputEnd(op_id=op_id, offset=reading.offset))
            return None
        reading.credit -= len(data or b"")
        return encode_chunk(op_id, offset, data) if data else data

    def _next(self, reading: Reading) -> bytes | None:
        """The next chunk, if there is one; ends the reading when it is over."""
        reading.idle = False
        if reading.credit <= 0:
            return None
        live = self._is_live(reading.key)
        try:
            if reading.fd < 0:
                reading.fd = self._files.open(reading.ask.run_dir, reading.ask.stream)
            info = os.fstat(reading.fd)
            size = info.st_size
            if reading.offset > size:
                raise Refused(f"offset {reading.offset} lies behind the end at {size}: the file was cut")
            count = size - reading.offset if reading.ask.marks else min(CHUNK_BYTES, reading.credit)
            if reading.stop_at is not None:
                count = min(count, reading.stop_at - reading.offset)
            if not live and reading.final is not None:
                count = min(count, reading.final - reading.offset)
            if count > 0 and reading.ask.marks:
                return self._mark(reading, info, count, live)
            data = os.pread(reading.fd, count, reading.offset) if count > 0 else b""
        except FileNotFoundError:
            if live and reading.ask.follow:
                reading.idle = True  # it has not begun
                return None
            self._end(reading, f"{reading.ask.stream} does not exist", "not_found")
            return None
        except (OSError, Refused) as exc:
            self._end(reading, str(exc))
            return None
        if data:
            chunk = encode_chunk(reading.ask.op_id, reading.offset, data)
            reading.offset += len(data)
            reading.credit -= len(data)
            return chunk
        if reading.offset == reading.stop_at or not reading.ask.follow:
            self._end(reading)
            return None
        if live:
            reading.idle = True
            return None
        if reading.final is not None and reading.offset < reading.final:
            self._end(reading, f"the file was cut: it had {reading.final} bytes and has {size}")
            return None
        self._end(reading)
        return None

    def _mark(self, reading: Reading, info: os.stat_result, count: int, live: bool) -> bytes | None:
        """Tell of so many bytes more; of a file that grows not more often than followers look."""
        now = asyncio.get_running_loop().time()
        if live and now - reading.marked_at < FOLLOW_SECS:
            reading.idle = True
            return None
        reading.marked_at = now
        reading.offset += count
        self._say(
            OutputMark(op_id=reading.ask.op_id, offset=reading.offset, device=info.st_dev, inode=info.st_ino)
        )
        return b""

    def _end(self, reading: Reading, error: str = "", code: str = "") -> None:
        self.remove(reading.ask.op_id)
        self._say(OutputEnd(op_id=reading.ask.op_id, offset=reading.offset, error=error, code=code))
