"""Procrastinate on a private PostgreSQL: durable, two at a time."""

import asyncio
import os
import subprocess
import sys
import tempfile
import time

import procrastinate
from stage import begin, end, run_true, serve

HERE = os.path.dirname(os.path.abspath(__file__))
SERVICES = os.path.join(os.path.dirname(os.path.dirname(HERE)), "bin", "dev-services")

if "BENCH_POSTGRES" in os.environ:
    app = procrastinate.App(
        connector=procrastinate.SyncPsycopgConnector(conninfo=os.environ["BENCH_POSTGRES"])
    )
    worker_app = procrastinate.App(
        connector=procrastinate.PsycopgConnector(conninfo=os.environ["BENCH_POSTGRES"])
    )

    @worker_app.task(name="job", queue="bench")
    async def job() -> None:
        """As a worker would: the command in a thread."""
        await asyncio.to_thread(run_true)


class Procrastinate:
    """Database, one worker process, and us as the client."""

    def start(self) -> None:
        self.dir = tempfile.mkdtemp(prefix="bench-pg-")
        said = subprocess.run(
            [SERVICES, "postgres", "start", self.dir], check=True, capture_output=True, text=True
        ).stdout
        url = next(line for line in said.splitlines() if line.startswith("url=")).removeprefix("url=")
        os.environ["BENCH_POSTGRES"] = url.replace("postgresql+psycopg", "postgresql")
        import procrastinate_peer

        self.app = procrastinate_peer.app
        self.app.open()
        self.app.schema_manager.apply_schema()
        command = [
            sys.executable,
            "-c",
            "import procrastinate_peer as p; p.worker_app.run_worker(concurrency=2)",
        ]
        self.worker = begin(*command, cwd=HERE)
        self.latency()

    def stop(self) -> None:
        end(self.worker)
        self.app.close()
        subprocess.run([SERVICES, "postgres", "remove", self.dir], check=True)

    def throughput(self, count: int) -> None:
        task = self.app.configure_task("job", queue="bench")
        before = self._done()
        task.batch_defer(*[{} for _ in range(count)])
        while self._done() < before + count:
            time.sleep(0.01)

    def latency(self) -> None:
        before = self._done()
        self.app.configure_task("job", queue="bench").defer()
        while self._done() == before:
            time.sleep(0.001)

    def _done(self) -> int:
        row = self.app.connector.execute_query_one(
            "SELECT count(*) AS n FROM procrastinate_jobs WHERE status = 'succeeded'"
        )
        return int(row["n"])


if __name__ == "__main__":
    serve(Procrastinate())
