"""How often was logged in, so that no user is banned by the cluster (F140): remembered over restarts."""

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

DAY_SECS: Final = 86_400


class LoginBook:
    """Times of the last day's logins by cluster and user, in one small file; no secrets."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._times: dict[str, list[float]] = {}
        with suppress(OSError, ValueError, AttributeError, TypeError):
            found = json.loads(path.read_text())
            self._times = {str(key): [float(at) for at in times] for key, times in found.items()}

    def count(self, key: str) -> int:
        """Logins of the last 24 hours, failed ones too."""
        return len(self._recent(key))

    def free_in_secs(self, key: str, limit: int) -> float:
        """How long until one more is allowed; 0 = now."""
        recent = self._recent(key)
        if len(recent) < limit:
            return 0.0
        return max(0.0, recent[-limit] + DAY_SECS - self._clock())

    def add(self, key: str) -> None:
        """One more; written down before it is made."""
        self._times[key] = [*self._recent(key), self._clock()]
        part = self._path.with_suffix(".part")
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part.write_text(json.dumps(self._times))
        os.replace(part, self._path)

    def _recent(self, key: str) -> list[float]:
        now = self._clock()
        # a clock that was set back makes no times of the future count for ever
        return [at for at in self._times.get(key, []) if now - DAY_SECS < at <= now + DAY_SECS]
