"""What was done and seen, in one file: one JSON object for each thing, in the order of one clock."""

import json
import threading
import time
from pathlib import Path
from typing import Any


def now() -> float:
    """Seconds since the boot of the host, standing still never: the clock of witnesses too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class History:
    """Append-only; any thread may note."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("a", buffering=1)
        self._lock = threading.Lock()

    def note(self, kind: str, **facts: Any) -> None:
        """Something happened now."""
        line = json.dumps({"at": round(now(), 4), "kind": kind, **facts})
        with self._lock:
            self._file.write(line + "\n")

    def close(self) -> None:
        """Nothing follows."""
        self._file.close()

    def read(self) -> list[dict[str, Any]]:
        """Everything so far."""
        return [json.loads(line) for line in self.path.read_text().splitlines()]
