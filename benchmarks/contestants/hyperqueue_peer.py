"""HyperQueue: a local cluster of two cores, with files for stdout and stderr.

Its client looks once per second whether a job is done; that is what one job takes, as its users meet it.
"""

import shutil
import tempfile
from pathlib import Path

from hyperqueue import Job, LocalCluster
from hyperqueue.cluster import WorkerConfig
from stage import TRUE, serve


class HyperQueue:
    """Server and worker on this machine."""

    def start(self) -> None:
        self.dir = tempfile.mkdtemp(prefix="bench-hq-")
        self.cluster = LocalCluster()
        self.cluster.start_worker(WorkerConfig(cores=2))
        self.client = self.cluster.client()
        self.latency()

    def stop(self) -> None:
        self.cluster.stop()
        shutil.rmtree(self.dir, ignore_errors=True)

    def throughput(self, count: int) -> None:
        place = Path(tempfile.mkdtemp(dir=self.dir))
        job = Job(max_fails=0)
        for number in range(count):
            job.program([TRUE], stdout=place / f"{number}.out", stderr=place / f"{number}.err")
        self.client.wait_for_jobs([self.client.submit(job)])

    def latency(self) -> None:
        job = Job(max_fails=0)
        job.program([TRUE], stdout=Path(self.dir) / "out", stderr=Path(self.dir) / "err")
        self.client.wait_for_jobs([self.client.submit(job)])


if __name__ == "__main__":
    serve(HyperQueue())
