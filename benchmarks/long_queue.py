"""How fast jobs go while a few or very many others wait: the whole system, real jobs of `/bin/true`.

Every cpu is held by a job that waits at a gate; meanwhile so many are submitted. Then the gate opens, and
the time is taken until the first of them have ended. Ours alone; `bin/bench` runs it at its end.

    .venv/bin/python -m benchmarks.long_queue [--queued 1000000]
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from .cpu import keep_orphans

sys.path.insert(0, str(Path(__file__).parent / "contestants"))

#: So many wait in a short queue, and all of them are run, in so many rounds before and after the long one.
SHORT = 1000
ROUNDS = 5
#: So many of the long queue are run while the time is taken.
ENDED = 5000


def measure(queued: int) -> dict[str, Any]:
    """Jobs per second out of a short queue (median) and out of a long one, in one run of one service."""
    from ours import Ours

    keep_orphans()
    service = Ours()
    service.start()
    try:
        service.throughput(200)
        short = [_rate(service, SHORT, SHORT) for _ in range(ROUNDS)]
        # The last one: what is left of it goes with the service.
        long = _rate(service, queued, min(queued, ENDED))
    finally:
        service.stop()
    return {
        "queued": queued,
        "per_sec_of_1000": statistics.median(short),
        "per_sec_of_queued": long,
        "rate_of_queued_to_1000": long / statistics.median(short),
    }


def _rate(service: Any, queued: int, ended: int) -> float:
    from ours import FINAL

    gate = Path(service.root) / "gate"
    os.mkfifo(gate)
    cpus = os.cpu_count() or 1
    held = service.client.submit([{"command": ["/bin/sh", "-c", f"read _ < {gate}"]}] * cpus)
    for job in held:
        while service.client.get(job.jid).state != "running":
            time.sleep(0.01)  # of a process that says nothing to anybody
    service._in_batches(queued)
    last = service.client.submit({"command": ["/bin/true"], "priority": 0})  # its news is the newest
    before = max(event["seq"] for event in service._events_of(last.jid))
    begin = time.perf_counter()
    left = ended + cpus
    with gate.open("wb", buffering=0) as opened:
        opened.write(b"\n" * cpus)
        for event in service.client.events(after=before):
            left -= event.state in FINAL
            if not left:
                break
    secs = time.perf_counter() - begin
    gate.unlink()
    return ended / secs


def main() -> None:
    """For people."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--queued", type=int, default=1_000_000)
    found = measure(parser.parse_args().queued)
    for name, value in found.items():
        print(f"{name} {value:,.2f}" if isinstance(value, float) else f"{name} {value:,}")


if __name__ == "__main__":
    main()
