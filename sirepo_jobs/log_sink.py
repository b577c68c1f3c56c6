"""Where lines of the log go out: a log that cannot be written costs lines, never time (F017, F096).

A full disk, a terminal that was stopped, a pipe that nobody reads: the process goes on, counts what is
lost, and says so in the log as soon as it can.
"""

import logging
import os
import threading
import time
from collections import deque
from typing import Final

#: So many bytes wait to be written; what is beyond is lost.
MAX_WAITING_BYTES: Final = 4 << 20
#: At the end of the process so long is waited for the last lines.
LAST_SECS: Final = 1.0


class Sink(logging.Handler):
    """Writes to a descriptor, which stays the caller's, from a thread of its own."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self._news = threading.Condition(threading.Lock())
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        #: Lines that were not written, and have not been told of.
        self._lost = 0
        #: A line was cut in the middle.
        self._torn = False
        self._busy = False
        threading.Thread(target=self._write_all, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Called by `logging` for each line; never waits for whoever reads it."""
        try:
            line = self.format(record).encode(errors="backslashreplace") + b"\n"
        except Exception:  # noqa: BLE001 (as every handler of the standard library does)
            self.handleError(record)
            return
        with self._news:
            if self._bytes + len(line) > MAX_WAITING_BYTES:
                self._lost += 1
                return
            self._lines.append(line)
            self._bytes += len(line)
            self._news.notify_all()

    def flush(self) -> None:
        """Wait a little until everything is written."""
        deadline = time.monotonic() + LAST_SECS
        with self._news:
            while (self._lines or self._busy) and (left := deadline - time.monotonic()) > 0:
                self._news.wait(left)

    def _write_all(self) -> None:
        while True:
            with self._news:
                self._busy = False
                self._news.notify_all()
                while not self._lines:
                    self._news.wait()
                self._busy = True
                line = self._lines.popleft()
                self._bytes -= len(line)
                lost = self._lost
            if lost and self._put(self._about(lost)):
                with self._news:
                    self._lost -= lost
            if not self._put(line):
                with self._news:
                    self._lost += 1

    def _put(self, line: bytes) -> bool:
        """Whether the whole of it went out."""
        rest = memoryview(b"\n" + line if self._torn else line)
        try:
            while rest:
                count = os.write(self._fd, rest)
                self._torn = True
                rest = rest[count:]
        except OSError:
            return False
        self._torn = False
        return True

    def _about(self, lost: int) -> bytes:
        record = logging.LogRecord(
            "sirepo_jobs.log", logging.WARNING, __file__, 0, "lines of this log were lost", None, None
        )
        record.lost = lost
        return self.format(record).encode() + b"\n"
