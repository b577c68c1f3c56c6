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
        self._hollow: dict[str, float] = {}

    async def of(self, engine: Engine, container: str) -> Fate:
        """GONE only when the engine says that the container does not run or is not there."""
        try:
            state = (await engine.inspect(container))["State"]
            if state.get("Paused"):
                return Fate.ALIVE
            if state.get("Running"):
                return self._of_running(container, empty=not await engine.has_processes(container))
        except Missing:
            self._hollow.pop(container, None)
            return Fate.GONE
        except (EngineError, KeyError):
            return Fate.UNKNOWN
        return Fate.UNKNOWN if state.get("Status") in ("restarting", "removing") else Fate.GONE

    def _of_running(self, container: str, *, empty: bool) -> Fate:
        if not empty:
            self._hollow.pop(container, None)
            return Fate.ALIVE
        # a shim that died while the engine restarted: nobody tells the engine, and it says so for ever
        since = self._hollow.setdefault(container, time.monotonic())
        return Fate.GONE if time.monotonic() - since >= HOLLOW_SECS else Fate.UNKNOWN
