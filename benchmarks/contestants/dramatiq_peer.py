"""Dramatiq on Redis: two processes."""

import os
import sys

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend
from redis_server import Redis
from stage import begin, end, run_true, serve

if "BENCH_REDIS" in os.environ:
    broker = RedisBroker(url=os.environ["BENCH_REDIS"])
    broker.add_middleware(Results(backend=RedisBackend(url=os.environ["BENCH_REDIS"])))
    dramatiq.set_broker(broker)
    job = dramatiq.actor(run_true, store_results=True, actor_name="job")


class Dramatiq:
    """Server, workers, and us as the client."""

    def start(self) -> None:
        self.redis = Redis()
        here = os.path.dirname(os.path.abspath(__file__))
        words = ["dramatiq_peer", "--processes", "2", "--threads", sys.argv[1]]
        self.worker = begin(sys.executable, "-m", "dramatiq", *words, cwd=here)
        import dramatiq_peer

        self.job = dramatiq_peer.job
        self.latency()

    def stop(self) -> None:
        end(self.worker)
        self.redis.stop()

    def throughput(self, count: int) -> None:
        for message in [self.job.send() for _ in range(count)]:
            assert message.get_result(block=True, timeout=60_000) == 0

    def latency(self) -> None:
        assert self.job.send().get_result(block=True, timeout=60_000) == 0


if __name__ == "__main__":
    serve(Dramatiq())
