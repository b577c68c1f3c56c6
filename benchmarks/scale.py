"""Many: jobs in the queue, and agents that have nothing to do. Ours alone; `bin/bench` runs it at its end.

* A million queued jobs against a thousand: what dispatching one costs then, and the memory of the queue.
* Ten thousand idle agents, each with a real websocket to a real door: memory of the supervisor, CPU time of
  their heartbeats, and how long it takes until all are there again after every connection was cut.

    .venv/bin/python -m benchmarks.scale [--quick]
"""

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from . import long_queue
from .brain import Brain

#: Jobs that are dispatched and ended while the time is taken.
DISPATCHED = 5000
#: As long as one heartbeat of each.
IDLE_SECS = 45.0


def rss_kb() -> int:
    """What this process has in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


# -- jobs in the queue


async def dispatch_us(queued: int, ended: int) -> tuple[float, int]:
    """CPU microseconds for each of the first `ended` of so many queued jobs, and memory while they wait."""
    with tempfile.TemporaryDirectory(prefix="bench-queue-") as folder:
        brain = Brain(Path(folder), 16)
        await brain.supervisor.recover()
        try:
            before = rss_kb()
            brain.agent.go.clear()
            await brain.submit(queued)
            grown = rss_kb() - before
            started = time.process_time()
            over = asyncio.create_task(brain.until_ended(ended))
            brain.agent.go.set()
            await over
            return (time.process_time() - started) / ended * 1e6, grown
        finally:
            brain.agent.stopped = True
            await brain.close()


def queues(long: int) -> dict[str, Any]:
    """A short queue and a long one, in turns; the long one is built once."""
    short = [asyncio.run(dispatch_us(1000, 1000))[0] for _ in range(5)]
    cpu_us, grown_kb = asyncio.run(dispatch_us(long, DISPATCHED))
    short += [asyncio.run(dispatch_us(1000, 1000))[0] for _ in range(5)]
    return {
        "queued": long,
        "us_of_1000": statistics.median(short),
        "us_of_queued": cpu_us,
        "rate_of_queued_to_1000": statistics.median(short) / cpu_us,
        "memory_mb": grown_kb / 1024,
    }


# -- agents that are idle


def agents(count: int, secs: float = IDLE_SECS) -> dict[str, Any]:
    """So many agents of one supervisor; this process is their other end."""
    with tempfile.TemporaryDirectory(prefix="bench-agents-") as folder:
        server = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.agent_house", folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            return asyncio.run(_with(count, secs, server, f"{folder}/socket"))
        finally:
            server.kill()
            server.wait()


async def _with(count: int, secs: float, server: "subprocess.Popen[bytes]", path: str) -> dict[str, Any]:
    from .agent_house import Crowd

    def ask(word: str, number: int = 0) -> dict[str, Any]:
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(f"{word} {number}\n".encode())
        server.stdin.flush()
        return dict(json.loads(server.stdout.readline()))

    async def until_there() -> dict[str, Any]:
        return await asyncio.to_thread(ask, "until", count)

    empty = await asyncio.to_thread(ask, "expect", count)
    crowd = Crowd(path, empty["tokens"])
    await asyncio.gather(crowd.connect(), until_there())
    await asyncio.sleep(2)
    full = await asyncio.to_thread(ask, "look")
    await asyncio.sleep(secs)
    later = await asyncio.to_thread(ask, "look")
    crowd.cut()
    began = time.monotonic()
    await asyncio.to_thread(ask, "until", -count)
    before_storm = await asyncio.to_thread(ask, "look")
    _, after_storm = await asyncio.gather(crowd.connect(), until_there())
    storm_secs = time.monotonic() - began
    crowd.cut()
    return {
        "agents": count,
        "kb_per_agent": (full["rss_kb"] - empty["rss_kb"]) / count,
        "idle_cpu": (later["cpu_secs"] - full["cpu_secs"]) / secs,
        "reconnect_secs": storm_secs,
        "reconnect_cpu_us": (after_storm["cpu_secs"] - before_storm["cpu_secs"]) / count * 1e6,
    }


# -- for people


def run(*, quick: bool) -> dict[str, Any]:
    """Everything; smaller with `quick`."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    room = (hard if hard != resource.RLIM_INFINITY else 1 << 20) - 200
    sizes = (100, 500) if quick else (1000, min(10_000, room))
    return {
        "queues": queues(20_000 if quick else 1_000_000),
        "long_queue": long_queue.measure(20_000 if quick else 1_000_000),
        "agents": [agents(count, 10.0 if quick else IDLE_SECS) for count in sizes],
    }


def as_text(found: dict[str, Any]) -> str:
    """For a terminal and for Markdown alike."""
    queue = found["queues"]
    lines = [
        "### Many queued jobs, many idle agents (ours alone)",
        "",
        "| | |",
        "|---|---|",
        f"| CPU us of the supervisor for one of 1,000 queued jobs, to its end | {queue['us_of_1000']:.0f} |",
        f"| one of {queue['queued']:,} | {queue['us_of_queued']:.0f} |",
        f"| its rate with {queue['queued']:,} / with 1,000, by CPU | {queue['rate_of_queued_to_1000']:.2f} |",
        f"| memory that {queue['queued']:,} queued jobs take | {queue['memory_mb']:.0f} MB |",
    ]
    whole = found["long_queue"]
    lines += [
        f"| real jobs per second out of {whole['queued']:,} queued | {whole['per_sec_of_queued']:.0f} |",
        f"| the same / out of 1,000, in one run | {whole['rate_of_queued_to_1000']:.2f} |",
    ]
    for one in found["agents"]:
        name = f"{one['agents']:,} idle agents"
        lines += [
            f"| {name}: memory each, in the supervisor | {one['kb_per_agent']:.1f} KB |",
            f"| {name}: part of one core | {one['idle_cpu'] * 100:.1f} % |",
            f"| {name}: from all cut to all back | {one['reconnect_secs']:.1f} s |",
            f"| {name}: CPU of the supervisor for each that is back | {one['reconnect_cpu_us']:.0f} us |",
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="20,000 jobs and 500 agents")
    print(as_text(run(quick=parser.parse_args().quick)))


if __name__ == "__main__":
    main()
