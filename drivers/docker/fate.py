"""What became of a container: what its engine says of it, and when that is not to be believed (C4, F107)."""

import time
from typing import Final

from sirepo_jobs.driver import Fate
from sirepo_jobs.drivers.docker.engine import Engine, EngineError, Missing

#: So long an engine must call a container running and know of nothing that runs in it: it may be wrong for a
#: moment while it finds its containers again.
HOLLOW_SECS: Final = 10.0


class Fates:
    """Asks engines, and remembers whom they called running without reason."""

    def __init__(self) -> None:
        #: When that began, and when it was seen last.
        self._hollow: dict[str, tuple[float, float]] = {}

    async def of(self, engine: Engine, container: str) -> Fate:
        """GONE only when the engine says that the container does not run or is not there."""
        hollow = self._hollow.pop(container, None)  # only the same answer again keeps it
        try:
            state = (await engine.inspect(container))["State"]
            if state.get("Paused"):
                return Fate.ALIVE
            if state.get("Running"):
                return (
                    Fate.ALIVE if await engine.has_processes(container) else self._of_empty(container, hollow)
                )
        except Missing:
            return Fate.GONE
        except (EngineError, KeyError):
            return Fate.UNKNOWN
        return Fate.UNKNOWN if state.get("Status") in ("restarting", "removing") else Fate.GONE

    def _of_empty(self, container: str, before: tuple[float, float] | None) -> Fate:
        # a shim that died while the engine restarted: nobody tells the engine, and it says so for ever
        now = time.monotonic()
        if before is None or now - before[1] > HOLLOW_SECS / 2:
            before = (now, now)
        self._hollow[container] = (before[0], now)
        return Fate.GONE if now - before[0] >= HOLLOW_SECS else Fate.UNKNOWN
