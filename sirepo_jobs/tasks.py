"""The supervisor's background tasks: each has a name, one of a name runs, none dies in silence (F011)."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

_log = structlog.get_logger(__name__)

#: Seconds before a task that crashed is started again.
RESTART_SECS = 1.0


class Tasks:
    """The named tasks that run now."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._closing = False

    def ensure(self, name: str, make: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run `make()` as the task `name` unless that one runs already; after a crash it is started again."""
        if name not in self._tasks and not self._closing:
            self._tasks[name] = asyncio.create_task(self._guard(name, make), name=name)

    async def _guard(self, name: str, make: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            while True:
                try:
                    return await make()
                except Exception:  # noqa: BLE001 (the edge of a task)
                    _log.exception("a task crashed; it is started again", task=name, pause_secs=RESTART_SECS)
                    await asyncio.sleep(RESTART_SECS)
        finally:
            del self._tasks[name]

    async def close(self) -> None:
        """Cancel what runs and wait until it is over."""
        self._closing = True
        running = list(self._tasks.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
