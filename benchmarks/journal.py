"""What one sync of the launcher's journal takes: in a file that grows, and in space that was written before.

    .venv/bin/python -m benchmarks.journal DIR [--records 1000] [--names]

DIR says which file system is meant; both journals lie there, and take turns of 100 records. With `--names` a
process makes run dirs there meanwhile, as spawners do.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from sirepo_jobs.agents import journal as journal_of
from sirepo_jobs.agents.journal import Journal
from sirepo_jobs.protocol import Exited

TURN = 100
#: A run dir each two milliseconds.
_NAMES = """
import itertools, pathlib, sys, time
for n in itertools.count():
    path = pathlib.Path(sys.argv[1], str(n), "1")
    path.mkdir(parents=True)
    for name in ("stdout", "stderr", "exit.json"):
        (path / name).write_bytes(b"x" * 300)
    time.sleep(0.002)
"""


def measure(place: Path, records: int) -> dict[str, list[float]]:
    """Milliseconds of each sync, by kind of journal."""
    kinds = {"grows": 0, "written before": journal_of.AHEAD_BYTES}
    journals = {}
    for kind in kinds:
        (place / kind).mkdir()
        journals[kind] = Journal(str(place / kind))
        journals[kind].replay("benchmark")
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    seq = 0
    while len(found["grows"]) < records:
        for kind, ahead in kinds.items():
            journal_of.AHEAD_BYTES = ahead  # type: ignore[misc]
            for _ in range(TURN):
                seq += 1
                exited = Exited(
                    seq=seq, jid="0" * 26, serial=1, attempt=1, at=time.time_ns() // 1000, exit_code=0
                )
                journals[kind].keep(msgspec.json.encode(exited))
                journals[kind].write()
                begin = time.perf_counter()
                journals[kind].sync()
                found[kind].append((time.perf_counter() - begin) * 1e3)
    return found


@contextmanager
def _names(place: Path) -> Iterator[None]:
    with subprocess.Popen([sys.executable, "-c", _NAMES, str(place / "names")]) as maker:
        try:
            yield
        finally:
            maker.kill()


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dir", type=Path)
    parser.add_argument("--records", type=int, default=1000)
    parser.add_argument("--names", action="store_true")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=words.dir) as folder:
        if words.names:
            with _names(Path(folder)):
                found = measure(Path(folder), words.records)
        else:
            found = measure(Path(folder), words.records)
    for kind, ms in found.items():
        cuts = statistics.quantiles(ms, n=100)
        print(f"{kind}: p50 {cuts[49]:.2f} ms, p90 {cuts[89]:.2f}, p99 {cuts[98]:.2f}")


if __name__ == "__main__":
    main()
