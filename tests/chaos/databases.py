"""Where the store of a run is: a file in its root, or a PostgreSQL that is made for it and removed again."""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

DATABASES: Final = ("sqlite", "postgresql")
_SERVICES: Final = str(Path(__file__).parents[2] / "bin/dev-services")


@contextmanager
def opened(kind: str) -> Iterator[str | None]:
    """URL of an empty database on a server of our own; None for the default, a file."""
    if kind == "sqlite":
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="sjc-pg-") as place:
        try:
            started = subprocess.run(
                [_SERVICES, "postgres", "start", place], capture_output=True, text=True, check=False
            )
            found = re.search(r"^url=(.*)$", started.stdout, re.MULTILINE)
            if started.returncode or not found:
                raise SystemExit(f"PostgreSQL does not start: {started.stderr.strip()[-500:]}")
            yield found[1]
        finally:
            subprocess.run([_SERVICES, "postgres", "remove", place], check=True, capture_output=True)
