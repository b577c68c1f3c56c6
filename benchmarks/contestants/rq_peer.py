"""RQ on Redis: two workers that do not fork for each job."""

import sys
import time

from redis import Redis as Connection
from redis_server import Redis
from rq import Queue
from stage import begin, end, run_true, serve


class Rq:
    """Server, workers, and us as the client."""

    def start(self) -> None:
        self.redis = Redis()
        self.queue = Queue("bench", connection=Connection.from_url(self.redis.url))
        words = ["worker", "--url", self.redis.url, "--worker-class", "rq.SimpleWorker", "--quiet", "bench"]
        self.workers = [begin(sys.executable, "-m", "rq.cli", *words, cwd=sys.path[0]) for _ in range(2)]
        self.latency()

    def stop(self) -> None:
        for worker in self.workers:
            end(worker)
        self.redis.stop()

    def throughput(self, count: int) -> None:
        for job in [self.queue.enqueue(run_true) for _ in range(count)]:
            self._wait(job, 0.005)

    def latency(self) -> None:
        self._wait(self.queue.enqueue(run_true), 0.001)

    @staticmethod
    def _wait(job, pause_secs: float) -> None:  # type: ignore[no-untyped-def]
        # RQ has no blocking way to wait for a result that is cheaper
        while job.get_status() not in ("finished", "failed"):
            time.sleep(pause_secs)
        assert job.return_value() == 0


if __name__ == "__main__":
    serve(Rq())
