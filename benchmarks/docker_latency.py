"""A warm job in a running agent against `docker run --rm` and `docker exec` of the same image, side by side.

    .venv/bin/python -m benchmarks.docker_latency [--count 100]

Starts an engine and a service of its own. Each round does one of each in turn, so that all three meet the
same machine. A job is timed from the request until the answer that it has ended; the others from the start
of the docker command to its end. Exits with 1 when a warm job takes more than a tenth of `docker run`.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from sirepo_jobs.client import Client
from tests.bundle_stage import agent_bundle
from tests.docker_stage import an_engine, busybox_files, docker_service, root_tar, write_policy


def timed(act: Callable[[], object]) -> float:
    """Milliseconds that it takes."""
    began = time.perf_counter()
    act()
    return (time.perf_counter() - began) * 1e3


async def run(count: int) -> int:
    """The whole of it; the exit status."""
    agent_bundle()
    with (
        tempfile.TemporaryDirectory(prefix="docker-latency.") as folder,
        an_engine(Path(folder, "e")) as engine,
    ):
        path = Path(folder)
        engine.make_image("bb:1", root_tar(busybox_files()), "ENV PATH=/bin")
        policy = write_policy(path / "docker.toml", {"here": engine}, "pull = false")
        async with docker_service(path, policy) as client:
            times = await asyncio.to_thread(measure, engine.docker, client, count)
    print("| | p50 ms | p99 ms | of |\n|---|---|---|---|")
    for name, all_msecs in times.items():
        p99 = statistics.quantiles(all_msecs, n=100)[98]
        print(f"| {name} | {statistics.median(all_msecs):.1f} | {p99:.1f} | {len(all_msecs)} |")
    ratio = statistics.median(times["warm job"]) / statistics.median(times["docker run --rm"])
    print(f"\nwarm job / docker run, p50: {ratio:.3f}")
    return 0 if ratio <= 0.1 else 1


def measure(docker: Callable[..., str], client: Client, count: int) -> dict[str, list[float]]:
    """Milliseconds of each, `count` times."""
    times: dict[str, list[float]] = {"warm job": [], "docker exec": [], "docker run --rm": []}

    def job() -> None:
        made = client.submit({"command": ["true"], "driver": "docker", "image": "bb:1"})
        ended = client.wait(made.jid, timeout=60)
        assert ended.state == "completed", ended

    job()  # brings the agent
    container = docker("ps", "-q")
    for _ in range(count):
        times["warm job"].append(timed(job))
        times["docker exec"].append(timed(lambda: docker("exec", container, "true")))
        times["docker run --rm"].append(
            timed(lambda: docker("run", "--rm", "--network", "none", "bb:1", "true"))
        )
    return times


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=100)
    sys.exit(asyncio.run(run(parser.parse_args().count)))
