"""What the machine itself can do: processes from C, a process from Python, a pipe."""

import os
import subprocess
import sys
import tempfile
import time

from stage import run_true, serve

HERE = os.path.dirname(os.path.abspath(__file__))
CHUNK = 1 << 16


class Limit:
    """No queue, no record, no network."""

    def __init__(self) -> None:
        self.files = "files" in sys.argv[1:]

    def start(self) -> None:
        self.dir = tempfile.mkdtemp(prefix="bench-limit-")
        self.program = f"{self.dir}/limit_c"
        subprocess.run(["cc", "-O2", "-o", self.program, f"{HERE}/limit_c.c"], check=True)

    def stop(self) -> None:
        """What it wrote is removed with the whole run's, see `contest`."""

    def throughput(self, count: int) -> float:
        place = tempfile.mkdtemp(dir=self.dir) if self.files else "-"
        begin = time.perf_counter()
        subprocess.run([self.program, str(count), "2", "2", place], check=True)
        return time.perf_counter() - begin

    def latency(self) -> None:
        run_true()

    def log_follow(self, megabytes: int) -> float:
        """A job's lines through one Python process that reads a pipe."""
        begin = time.perf_counter()
        writer = subprocess.Popen(
            [sys.executable, f"{HERE}/lines.py", str(megabytes)], stdout=subprocess.PIPE
        )
        seen = 0
        assert writer.stdout is not None
        while chunk := os.read(writer.stdout.fileno(), CHUNK):
            seen += len(chunk)
        writer.stdout.close()
        assert writer.wait() == 0
        assert seen == megabytes * 1_000_000, seen
        return time.perf_counter() - begin


if __name__ == "__main__":
    serve(Limit())
