"""sirepo_jobs as its users meet it: `sirepo-jobs up`, everything through the front end and the Python client.

Safe settings, the only ones there are: accepted means on disk, a run dir with two output files and an exit
record for each job.
"""

import os
import select
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from stage import TRUE, end, serve

from sirepo_jobs.client import Client

HERE = os.path.dirname(os.path.abspath(__file__))
BATCH = 1000
FINAL = {"completed", "error", "canceled", "deduped", "purged"}
SPEC = {"command": [TRUE]}


class Ours:
    """One service on a root of its own."""

    up: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        self.root = tempfile.mkdtemp(prefix="bench-ours-")
        self.up = subprocess.Popen(
            [sys.executable, "-m", "sirepo_jobs.cli", "up", "--root", self.root, "--port", "0"],
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
        )
        assert self.up.stdout is not None
        ready, _, _ = select.select([self.up.stdout], [], [], 60)
        line = self.up.stdout.readline().decode() if ready else ""
        if not line.startswith("listening on "):
            raise RuntimeError(f"the service did not start: {line!r}")
        self.client = Client(line.split()[-1], Path(self.root, "token").read_text().strip())
        self.latency()  # the agent is there now

    def stop(self) -> None:
        if self.up is not None:
            command = [sys.executable, "-m", "sirepo_jobs.cli", "down", "--root", self.root, "--stop-agents"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            end(self.up)

    def throughput(self, count: int) -> float:
        """In batches, as whoever has many jobs hands them in."""
        return self._throughput(count, self._in_batches)

    def throughput_single(self, count: int) -> float:
        """One request for each job, eight at a time."""
        return self._throughput(count, self._one_by_one)

    def _in_batches(self, count: int) -> None:
        for first in range(0, count, BATCH):
            self.client.submit([SPEC] * min(BATCH, count - first))

    def _one_by_one(self, count: int) -> None:
        with ThreadPoolExecutor(8) as pool:
            for _ in pool.map(lambda _n: self.client.submit(SPEC), range(count)):
                pass

    def _throughput(self, count: int, submit) -> float:  # type: ignore[no-untyped-def]
        # from an event that we know: nothing that ends before the stream is open is missed
        before = self._last_seq()
        begin = time.perf_counter()
        sender = threading.Thread(target=submit, args=(count,))
        sender.start()
        ended = 0
        for event in self.client.events(after=before):
            if event.state in FINAL:
                assert event.state == "completed", event
                ended += 1
                if ended == count:
                    break
        sender.join()
        return time.perf_counter() - begin

    def _last_seq(self) -> int:
        """The newest event: that of a job which we make for this."""
        job = self.client.submit(SPEC)
        self.client.wait(job.jid)
        return max(event["seq"] for event in self._events_of(job.jid))

    def _events_of(self, jid: str) -> list[dict[str, int]]:
        return list(self.client.transport.call("GET", f"/api/v1/jobs/{jid}/events")["events"])

    def submit(self, count: int) -> float:
        """Durable acceptance alone, of jobs that do not run yet."""
        begin = time.perf_counter()
        held = [{**SPEC, "command": ["/bin/sleep", "0"]}] * BATCH
        for first in range(0, count, BATCH):
            self.client.submit(held[: min(BATCH, count - first)])
        secs = time.perf_counter() - begin
        for job in self.client.jobs(state="active"):
            self.client.wait(job.jid)
        return secs

    def latency(self) -> None:
        job = self.client.run(SPEC)
        assert job.exit_code == 0, job

    def requests(self, count: int) -> float:
        """GET of one job, over one connection."""
        jid = self.client.submit(SPEC).jid
        self.client.wait(jid)
        begin = time.perf_counter()
        for _ in range(count):
            self.client.get(jid)
        return time.perf_counter() - begin

    def log_follow(self, megabytes: int) -> float:
        begin = time.perf_counter()
        job = self.client.submit({"command": [sys.executable, f"{HERE}/lines.py", str(megabytes)]})
        seen = sum(map(len, self.client.logs(job.jid, follow=True)))
        assert seen == megabytes * 1_000_000, seen
        return time.perf_counter() - begin


if __name__ == "__main__":
    serve(Ours())
