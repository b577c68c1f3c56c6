"""Threads that wait for disks, so that one which does not answer holds up its own outputs only (F038).

They are daemons: the front end ends without them. A run root has few of them, and they stay with it while
they hang, so nothing that lies elsewhere waits for them.
"""

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

from sirepo_jobs.run_tree import Refused

#: Of one run root.
ROOT_THREADS: Final = 4
#: While so many are busy, no further output is opened.
THREADS: Final = 64
#: A run root is complained of so often at most.
COMPLAINT_SECS: Final = 60.0


class DiskThreads:
    """All of them, of one event loop."""

    def __init__(self) -> None:
        self._lanes: dict[str, Lane] = {}
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._made = 0
        self.busy = 0

    def lane(self, run_root: str) -> "Lane":
        """Those of one run root."""
        if run_root not in self._lanes:
            self._lanes[run_root] = Lane(self, run_root)
        return self._lanes[run_root]

    def do(self, work: Callable[[], Any], back: Callable[[], None]) -> asyncio.Future[Any]:
        """What comes of `work`, done at once in a thread. `back` is told when that is free again, also
        when nobody waits for the result any more."""
        if self.busy == self._made:
            threading.Thread(target=self._serve, name="output", daemon=True).start()
            self._made += 1
        self.busy += 1
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def settle(result: Any, error: Exception | None) -> None:
            self.busy -= 1
            back()
            if future.done():
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        def run() -> None:
            result, error = None, None
            try:
                result = work()
            except Exception as exc:  # noqa: BLE001 (whoever waits for the result hears of it)
                error = exc
            with suppress(RuntimeError):  # the loop is closed, and nobody is left to hear of it
                loop.call_soon_threadsafe(settle, result, error)

        self._work.put(run)
        return future

    def close(self) -> None:
        """Let threads end as soon as they are free."""
        for _ in range(self._made):
            self._work.put(None)

    def _serve(self) -> None:
        while (run := self._work.get()) is not None:
            run()


class Lane:
    """The threads of one run root."""

    def __init__(self, threads: DiskThreads, run_root: str) -> None:
        self._threads = threads
        self._run_root = run_root
        self._turns = asyncio.Semaphore(ROOT_THREADS)
        #: Threads that have not come back in time.
        self._overdue = 0
        self._complained_at: float | None = None

    def check(self) -> None:
        """Raise `Refused` where nothing further is to be opened now."""
        if self._overdue:
            raise Refused(f"{self._run_root} does not answer", "trouble")
        if self._threads.busy >= THREADS:
            raise Refused(f"{THREADS} threads wait for disks already", "trouble")

    async def begin(self, work: Callable[..., Any], *words: Any) -> asyncio.Future[Any]:
        """Wait for a free thread, and have it do `work`."""
        await self._turns.acquire()
        return self._threads.do(partial(work, *words), self._turns.release)

    def hangs(self, future: asyncio.Future[Any]) -> None:
        """What was begun takes too long: until it ends, nothing is opened here."""
        self._overdue += 1
        future.add_done_callback(self._answers)

    def _answers(self, _future: asyncio.Future[Any]) -> None:
        self._overdue -= 1

    def may_complain(self) -> bool:
        """One line in the log says it for a while."""
        now = time.monotonic()
        if self._complained_at is not None and now < self._complained_at + COMPLAINT_SECS:
            return False
        self._complained_at = now
        return True
