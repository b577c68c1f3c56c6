"""Where a followed job shows itself: its own bytes as they are, and beside them how far it is.

On a terminal the last line is ours: it is wiped before the job's bytes are written and drawn again
when they end a line. Elsewhere there are plain lines on stderr, few of them.
"""

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable

from sirepo_jobs.client import Job

from .render import color_wanted, safe

STDOUT, STDERR = 1, 2
_PLAIN_SECS = 1.0
_PLAIN_POINTS = 10.0
#: A job that moves slowly is heard of all the same.
_PLAIN_SILENCE_SECS = 60.0


class Screen:
    """Safe to use from several threads."""

    def __init__(self, *, status: bool = True, clock: Callable[[], float] = time.monotonic) -> None:
        self._lock = threading.Lock()
        self._clock = clock
        self._status = status
        self._terminal = status and color_wanted()
        self._line = ""
        self._drawn = False
        #: What was written last, by us or by the job, ended a line.
        self._at_start = True
        self._shared = self._terminal and sys.stdout.isatty()
        self._told_percent = -_PLAIN_POINTS
        self._told_at = -1e9

    def write(self, fd: int, data: bytes) -> None:
        """The job's bytes, all of them and nothing else. Raises `BrokenPipeError` when nobody reads."""
        with self._lock:
            on_terminal = self._terminal and (fd == STDERR or self._shared)
            if on_terminal:
                self._wipe()
            _write_all(fd, data)
            if on_terminal:
                self._at_start = data.endswith(b"\n")
                self._draw()

    def show(self, job: Job) -> None:
        """How far the job is, or why it waits."""
        if not self._status:
            return
        with self._lock:
            if self._terminal:
                self._wipe()
                self._line = _bar(job) if job.percent is not None else _waiting(job)
                self._draw()
            elif job.percent is not None:
                self._tell(job.percent, last=job.ended)

    def done(self) -> None:
        """Leave the terminal as it was."""
        with self._lock:
            self._wipe()
            self._line = ""

    def _tell(self, percent: float, *, last: bool) -> None:
        now = self._clock()
        since = now - self._told_at
        moved = percent - self._told_percent
        far = moved >= _PLAIN_POINTS or since >= _PLAIN_SILENCE_SECS
        if not moved or not (last or percent >= 100 or (far and since >= _PLAIN_SECS)):
            return
        self._told_percent, self._told_at = percent, now
        _write_all(STDERR, f"progress {percent:.0f}%\n".encode())

    def _wipe(self) -> None:
        if self._drawn:
            _write_all(STDERR, b"\r\x1b[K")
            self._drawn = False

    def _draw(self) -> None:
        if self._line and self._at_start:
            _write_all(STDERR, self._line.encode())
            self._drawn = True


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _bar(job: Job) -> str:
    """`melt  ━━━━━━━━━─────  62%  step 620`, within the width of the terminal."""
    from rich.console import Console
    from rich.progress_bar import ProgressBar

    width = max(shutil.get_terminal_size().columns, 20)
    percent = job.percent or 0.0
    name = safe(job.name)[: width // 4]
    tail = f" {percent:3.0f}%{_remark(job)}"[: width // 2]
    console = Console(file=sys.stderr, width=width)
    with console.capture() as captured:
        bar = ProgressBar(total=100, completed=percent, width=max(width - len(name) - len(tail) - 3, 5))
        console.print(bar, end="")
    return f"{name} {captured.get()}{tail}" if name else captured.get() + tail


def _remark(job: Job) -> str:
    said = job.progress or {}
    message = said.get("message")
    if isinstance(message, str):
        return f"  {safe(message)}"
    frames = said.get("frame_count")
    return f"  frame {frames}" if isinstance(frames, int) else ""


def _waiting(job: Job) -> str:
    """Why nothing happens; nothing once the job runs."""
    if job.state not in ("inactive", "pending", "starting", "held", "lost"):
        return ""
    width = max(shutil.get_terminal_size().columns, 20)
    why = f": {safe(job.situation)}" if job.situation else ""
    return f"{job.state}{why}"[: width - 1]
