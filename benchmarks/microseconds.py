"""Where a job's microseconds go: CPU time of each of our processes, per job, in a batch through all of them.

    .venv/bin/python -m benchmarks.microseconds [--jobs 3000] [--rounds 3]

On a machine that others use too, `chrt -r 1` before it keeps their work out of the figures.
"""

import argparse
import os
import statistics
import sys
from pathlib import Path

from .cpu import keep_orphans

sys.path.insert(0, str(Path(__file__).parent / "contestants"))


def own_secs(pid: int) -> float:
    """What the threads of a process have used, as the scheduler counts it; children are not in it."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def processes() -> dict[int, str]:
    """All below this one, and itself: pid -> what it is."""
    parents, found = {}, {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            head, _, tail = (path / "stat").read_text().rpartition(")")
            words = (path / "cmdline").read_text().split("\0")
        except OSError:
            continue  # it ended meanwhile
        pid, name = int(path.name), head.partition("(")[2]
        parents[pid] = int(tail.split()[1])
        kinds = [word for word in ("supervisor", "frontend") if word in words]
        found[pid] = name if name.startswith("sj-") else kinds[0] if kinds else "other"
    mine, grown = {os.getpid()}, True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in mine} - mine
        mine |= more
        grown = bool(more)
    found[os.getpid()] = "client"
    return {pid: found[pid] for pid in mine}


def measure(jobs: int, rounds: int) -> dict[str, float]:
    """Microseconds per job, by kind of process, medians of the rounds; `rate` is jobs per second."""
    from ours import Ours

    keep_orphans()
    service = Ours()
    samples: list[dict[str, float]] = []
    service.start()
    try:
        service.throughput(200)
        for _ in range(rounds):
            known = processes()
            before = {pid: own_secs(pid) for pid in known}
            secs = service.throughput(jobs)
            sample = dict.fromkeys(known.values(), 0.0)
            for pid, kind in known.items():
                sample[kind] += (own_secs(pid) - before[pid]) / jobs * 1e6
            samples.append({**sample, "all of ours": sum(sample.values()), "rate": jobs / secs})
    finally:
        service.stop()
    return {kind: statistics.median(one[kind] for one in samples) for kind in samples[0]}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    words = parser.parse_args()
    found = measure(words.jobs, words.rounds)
    print(f"{found.pop('rate'):.0f} jobs/s\n\n| process | us per job |\n|---|---|")
    for kind, us in sorted(found.items(), key=lambda item: item[1]):
        print(f"| {kind} | {us:.0f} |")


if __name__ == "__main__":
    main()
