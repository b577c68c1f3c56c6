"""Celery on Redis: two prefork workers."""

import os
import sys

from celery import Celery
from redis_server import Redis
from stage import begin, end, run_true, serve

if "BENCH_REDIS" in os.environ:
    app = Celery("celery_peer", broker=os.environ["BENCH_REDIS"], backend=os.environ["BENCH_REDIS"])
    app.conf.task_serializer = app.conf.result_serializer = "json"
    job = app.task(run_true, name="job")


class CeleryPeer:
    """Server, workers, and us as the client."""

    def start(self) -> None:
        self.redis = Redis()
        here = os.path.dirname(os.path.abspath(__file__))
        words = ["-A", "celery_peer", "worker", "-c", "2", "-P", "prefork", "--loglevel", "ERROR"]
        tuned = ["--without-gossip", "--without-mingle", "--without-heartbeat", "-O", "fair"]
        self.worker = begin(sys.executable, "-m", "celery", *words, *tuned, cwd=here)
        import celery_peer

        self.job = celery_peer.job
        self.latency()

    def stop(self) -> None:
        end(self.worker)
        self.redis.stop()

    def throughput(self, count: int) -> None:
        for result in [self.job.delay() for _ in range(count)]:
            assert result.get(timeout=60, interval=0.005) == 0

    def latency(self) -> None:
        assert self.job.delay().get(timeout=60, interval=0.001) == 0


if __name__ == "__main__":
    serve(CeleryPeer())
