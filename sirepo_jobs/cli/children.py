"""Child processes of `up`: started, waited for, started again with growing pauses, ended in order."""

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence

from sirepo_jobs.errors import Error

_FIRST_PAUSE_SECS = 0.2
_LONGEST_PAUSE_SECS = 10.0
#: Whoever lived so long was well; it is started again at once.
_WELL_SECS = 5.0


class NotStarted(Error):
    """A child ended, or did not get ready, when it was started the first time."""

    code = "not_started"


class Child:
    """One process that is to be there all the time."""

    def __init__(self, name: str, command: Sequence[str], is_ready: Callable[[int], Awaitable[bool]]) -> None:
        """`is_ready` is asked again and again, with the pid of the process."""
        self.name = name
        self.command = list(command)
        self._is_ready = is_ready
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._stopping = False

    async def start(self, secs: float) -> None:
        """Start it and wait until it is ready. Raises `NotStarted`."""
        process = await self._spawn()
        ended = asyncio.create_task(process.wait(), name=f"{self.name} ends")
        ready = asyncio.create_task(self._wait_ready(process.pid), name=f"{self.name} gets ready")
        try:
            done, _ = await asyncio.wait({ended, ready}, timeout=secs, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
            ready.cancel()
        if ended in done:
            raise NotStarted(f"the {self.name} did not start: it ended with status {ended.result()}")
        if ready not in done:
            raise NotStarted(f"the {self.name} was not ready within {secs:g}s")
        self._keeper = asyncio.create_task(self._keep(process), name=f"keep {self.name}")

    async def stop(self, secs: float) -> None:
        """TERM, after `secs` KILL; returns when it is gone. Safe to repeat."""
        self._stopping = True
        if self._keeper is not None:
            self._keeper.cancel()
        process = self._process
        if process is None or process.returncode is not None:
            return
        _send(process, signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), secs)
        except TimeoutError:
            self.kill()
            await process.wait()

    def kill(self) -> None:
        """KILL it now."""
        if self._process is not None:
            _send(self._process, signal.SIGKILL)

    async def _spawn(self) -> asyncio.subprocess.Process:
        # A group of its own: Ctrl-C at the terminal is for `up`, which ends the doors in order.
        self._process = await asyncio.create_subprocess_exec(
            *self.command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        return self._process

    async def _wait_ready(self, pid: int) -> None:
        while not await self._is_ready(pid):  # noqa: ASYNC110 (another process has no event for us)
            await asyncio.sleep(0.05)

    async def _keep(self, process: asyncio.subprocess.Process) -> None:
        pause = _FIRST_PAUSE_SECS
        while not self._stopping:
            since = time.monotonic()
            status = await process.wait()
            if time.monotonic() - since > _WELL_SECS:
                pause = 0.0
            print(
                f"sirepo-jobs: the {self.name} ended with status {status}; starting it again", file=sys.stderr
            )
            await asyncio.sleep(pause)
            pause = min(max(pause * 2, _FIRST_PAUSE_SECS), _LONGEST_PAUSE_SECS)
            process = await self._spawn()


def _send(process: asyncio.subprocess.Process, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)
